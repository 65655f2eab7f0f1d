"""How far one or many runs are: a bar on a terminal, else a line now and then. All of it goes to stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from continual.config import Config
from continual.errors import UserError
from continual.experiment import Progress
from continual.sweep import Outcome

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

REFRESH_SECONDS = 0.1
LINE_SECONDS = 30.0


class Watcher(Protocol):
    """What is told about several runs, in their order."""

    def begin(self, job: Config) -> Progress | None:
        """A run begins; its progress goes to what is returned."""
        ...

    def end(self, outcome: Outcome) -> None:
        """That run is over."""
        ...


@contextmanager
def watcher(n_runs: int, quiet: bool = False) -> Iterator[Watcher]:
    """A bar if stderr is a terminal, lines if it is not, nothing if ``quiet``."""
    if quiet:
        yield _Nothing()
    elif sys.stderr.isatty():
        with _bar(n_runs) as bar:
            yield bar
    else:
        yield _Lines(n_runs)


class _Nothing:
    def begin(self, job: Config) -> Progress | None:
        return None

    def end(self, outcome: Outcome) -> None:
        pass


class _Lines:
    """A line when a run is over, and one now and then within it."""

    def __init__(self, n_runs: int) -> None:
        self.n_runs, self.ended = n_runs, 0

    def begin(self, job: Config) -> Progress:
        began = last = 0.0

        def progress(done: float, total: int) -> None:
            nonlocal began, last
            if not began:  # building data and network takes its time too, and is no progress
                began = last = monotonic()
            if monotonic() - last >= LINE_SECONDS:
                last = monotonic()
                self._say(job, f"{done / total:.0%} after {last - began:.0f} s")

        return progress

    def end(self, outcome: Outcome) -> None:
        self.ended += 1
        if self.n_runs > 1:  # else the result follows
            self._say(outcome.config, told(outcome), self.ended)

    def _say(self, job: Config, what: str, number: int | None = None) -> None:
        at = f"[{number or self.ended + 1}/{self.n_runs}] " if self.n_runs > 1 else ""
        print(f"{at}{title(job)}: {what}", file=sys.stderr, flush=True)


@contextmanager
def _bar(n_runs: int) -> Iterator[Watcher]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield _Bar(bars, n_runs)


class _Bar:
    """One bar over all runs."""

    def __init__(self, bars: "Bars", n_runs: int) -> None:
        self.bars, self.n_runs, self.ended = bars, n_runs, 0
        self.task = bars.add_task("", total=n_runs)

    def begin(self, job: Config) -> Progress:
        self._move(0.0, title(job))
        due = monotonic()

        def progress(done: float, total: int) -> None:
            nonlocal due
            if monotonic() >= due:
                due = monotonic() + REFRESH_SECONDS
                self._move(done / total, title(job))

        return progress

    def end(self, outcome: Outcome) -> None:
        self._move(1.0, title(outcome.config))
        self.ended += 1

    def _move(self, share: float, name: str) -> None:
        count = f"{min(self.ended + 1, self.n_runs)}/{self.n_runs} " if self.n_runs > 1 else ""
        self.bars.update(self.task, completed=self.ended + share, description=count + name)


def title(job: Config) -> str:
    """How a run is called, e.g. ``split-digits er seed 3``."""
    return f"{job.scenario} {job.name} seed {job.resolved['seed']}"


def told(outcome: Outcome) -> str:
    """How a run ended, in a few words."""
    if outcome.run is None:
        return f"FAILED, {reason(outcome)}"
    if not outcome.run.ran:
        return "has finished before, not run again"
    seconds = outcome.run.metrics.get("seconds")
    since = "" if outcome.run.since is None else f", continued from update {outcome.run.since}"
    return ("finished" if seconds is None else f"finished in {seconds:.1f} s") + since


def reason(outcome: Outcome) -> str:
    """Why a run failed, on one line."""
    error = outcome.error
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())
