"""What the thin sinks share: records become points, points go out in bursts, and no failure ends a run."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

from continual.alerts import Alert, watched
from continual.errors import UserError
from continual.record import Record
from continual.track import Curves, Matrix, RunFacts, Tracker, row

LOGGER = logging.getLogger(__name__)
BURST_SECONDS = 2.0


class Point(NamedTuple):
    """A value of the curve ``name``; ``at`` is the task index for ``R/<probe>``, else the number of rows seen."""

    name: str
    value: float
    at: int


class Outlet(Protocol):
    """One run in a library that keeps curves; made when the run starts or goes on. Whatever it raises ends it.

    A run that goes on sends all its points again, in their order: the outlet begins anew or leaves out what is there.
    """

    def send(self, points: Sequence[Point]) -> None:
        """Write down what came since the last call."""
        ...

    def finish(self, metrics: Mapping[str, float], status: str) -> None:
        """End the run with its final metrics; ``status`` as in :class:`continual.track.Tracker`."""
        ...


def outlet(name: str, run: RunFacts, alert: Alert, start: Callable[[], Outlet]) -> Tracker:
    """The tracker of ``run`` that fills what ``start`` makes; its first error ends it with one warning.

    Args:
        name: what the warning calls it.
        run: the run.
        alert: when to say a line on stderr.
        start: called once, now.
    """
    return watched(_OutletTracker(name, run, start), alert, run)


def need(extra: str, module: str) -> None:
    """Raise a UserError unless ``module``, which the extra ``extra`` brings, is installed."""
    if find_spec(module) is None:
        raise UserError(f"track={extra} needs the package {module}: pip install 'continual[{extra}]'")


def hyperparameters(run: RunFacts) -> dict[str, str]:
    """Dotted key of the config -> value as text, and what the run is."""
    return _flat(run.config) | {"scenario": run.scenario, "name": run.name, "seed": str(run.seed)}


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


class _OutletTracker:
    def __init__(self, name: str, run: RunFacts, start: Callable[[], Outlet]) -> None:
        self._name, self._run, self._curves = name, run, Curves(run.n_tasks)
        self._pending: list[Point] = []
        self._due = 0.0
        self._outlet: Outlet | None = None
        with self._surviving("start"):
            self._outlet = start()

    def go_on(self, moments: Iterable[Sequence[Record]]) -> None:
        for records in moments:
            self.log(records)

    def log(self, records: Sequence[Record]) -> None:
        if self._outlet is None or not records:
            return
        with self._surviving("log"):
            self._pending += self._points(records)
            if time.monotonic() >= self._due:
                self._flush(self._outlet)

    def finish(self, summary: Mapping[str, float], matrix: Matrix | None, status: str) -> None:
        if self._outlet is None:
            return
        with self._surviving("finish"):
            self._flush(self._outlet)
            self._outlet.finish(summary, status)
        self._outlet = None

    def _points(self, records: Sequence[Record]) -> Iterator[Point]:
        values = row(records, self._run.n_tasks, self._run.n_classes) | self._curves(records)
        rows_seen, task = int(values.pop("rows_seen")), int(values.pop("task", -1))
        for name, value in values.items():
            yield Point(name, value, task if name.startswith("R/") else rows_seen)

    def _flush(self, outlet: Outlet) -> None:
        outlet.send(self._pending)
        self._pending = []
        self._due = time.monotonic() + BURST_SECONDS

    @contextmanager
    def _surviving(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._outlet = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            LOGGER.warning("%s failed to %s, so tracking stops here; the run goes on (%s)", self._name, doing, reason)
