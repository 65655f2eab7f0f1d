"""A request to stop (Ctrl-C, or SIGTERM as a cluster sends it) waits for the end of the update, which is kept."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from continual.errors import Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """What asked for the stop: ``number`` of the signal, None as long as nothing did."""

    def __init__(self, grace: float) -> None:
        self.number: int | None = None
        self._grace = grace
        self._lock = threading.Lock()
        self._over = False

    def error(self) -> BaseException:
        """What to raise where the run can stop."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else Terminated(128 + (self.number or 0))

    def ask(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: the first request is noted, the second one raises at once."""
        if self.number is not None:
            raise self.error()
        self.number = number
        timer = threading.Timer(self._grace, self._hurry)
        timer.daemon = True
        timer.start()

    def end(self) -> None:
        """Nothing is to be raised any more."""
        with self._lock:
            self._over = True

    def _hurry(self) -> None:
        """Time is up: ask again."""
        with self._lock:
            if not self._over:
                signal.pthread_kill(threading.main_thread().ident or 0, self.number or signal.SIGINT)


@contextmanager
def gently(grace: float) -> Iterator[Stop]:
    """Within it a signal is noted in the Stop; it raises if it comes twice, ``grace`` seconds later, or at the end.

    Signals that are ignored stay so, and only the main thread can ask for any.
    """
    stop = Stop(grace)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    taken = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, stop.ask)
    try:
        yield stop
    finally:
        stop.end()
        for number, handler in taken.items():
            signal.signal(number, handler)
    if stop.number is not None:  # it came too late to stop anything here
        raise stop.error()


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises Terminated, as Ctrl-C raises KeyboardInterrupt; only the main thread can ask for it."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    before = None
    with suppress(ValueError):
        before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
