"""What a user wants to be told while a run is still going on: a line on stderr, and an alert where the run is tracked.

The bound is set by ``track.alert.forgetting=0.2``; a factory of trackers puts :func:`watched` around what it opens.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from continual.errors import UserError
from continual.record import Record

if TYPE_CHECKING:
    from continual.track import Matrix, RunFacts, Tracker

Tell = Callable[[str, str], None]
TOLD = "alerts.txt"
ROUNDING = 1e-9  # in floats 0.3 - 0.1 is less than 0.2


@dataclass(frozen=True, slots=True)
class Alert:
    """When to raise an alert.

    Attributes:
        forgetting: fall of a task's accuracy, see :class:`Lost`, that raises an alert when it is reached, in (0, 1]:
            near 0 a single lost row does, at 1 only a flawless task that is lost whole; None for no alert.

    Raises:
        UserError: the value is outside of this.
    """

    forgetting: float | None = None

    def __post_init__(self) -> None:
        if self.forgetting is not None and not 0 < self.forgetting <= 1:
            raise UserError(
                f"track.alert.forgetting is {self.forgetting}; it is a fall of accuracy above 0 and at most 1, "
                "or null for no alert"
            )


NO_ALERT = Alert()


class Lost:
    """How much accuracy each learned task has lost so far, as the records of a run come moment by moment.

    ::

        lost_j(t) = max_{ends l before t} R[l, j] - a_j(t)    for each task j that has ended before t

    ``a_j(t)`` is the accuracy on task j's probe now, within a task or at its end. In [-1, 1]: 1 if all was lost, 0 if
    nothing, negative if it was never better. At the last end it is
    :func:`continual.metrics.forgetting_per_task`.
    """

    def __init__(self) -> None:
        self._best: dict[int, float] = {}
        self._learned: set[int] = set()

    def __call__(self, records: Sequence[Record]) -> dict[int, float]:
        """{task: what it has lost} of the tasks that are measured in this moment's ``records``."""
        now = {
            r.probe: r.value
            for r in records
            if r.metric == "accuracy" and r.at in ("step", "end") and r.probe is not None and not math.isnan(r.value)
        }
        old = self._learned & self._best.keys() & now.keys()
        lost = {task: self._best[task] - now[task] for task in sorted(old)}
        if records and records[0].at == "end":
            self._best |= {task: max(value, self._best.get(task, value)) for task, value in now.items()}
            self._learned |= {r.task for r in records if r.task is not None}
        return lost


def passing(lost: Mapping[int, float], bound: float) -> set[int]:
    """The tasks that have lost ``bound`` or more."""
    return {task for task, fall in lost.items() if fall >= bound - ROUNDING}


def first_time(run: "RunFacts", place: str, title: str) -> bool:
    """Whether an alert has yet to be raised at ``place``; it counts as raised there from now on.

    It is written down in ``alerts.txt`` in the run's directory, as a run that was killed measures some moments again.
    """
    line = f"{run.run_id} {place}: {title}\n"
    try:
        with (run.directory / TOLD).open("a+", encoding="utf-8") as file:
            file.seek(0)
            known = line in file
            if not known:
                file.write(line)
    except OSError:  # rather twice than never
        return True
    return not known


def watched(
    tracker: "Tracker", alert: Alert, run: "RunFacts", tell: Callable[[str, str], None] | None = None
) -> "Tracker":
    """``tracker``, watched for what ``alert`` bounds; the tracker itself if it bounds nothing.

    Args:
        tracker: gets all that comes, before it is looked at.
        alert: the bounds.
        run: what the line on stderr names.
        tell: raises the alert (title, text) where the run is tracked, too, once its moment is logged; called again in
            a run that goes on. None if nobody listens there.
    """
    return tracker if alert.forgetting is None else Watched(tracker, alert.forgetting, run, tell)


class Watched:
    """A tracker that says once per task when its forgetting reaches ``bound``."""

    def __init__(self, tracker: "Tracker", bound: float, run: "RunFacts", tell: Tell | None) -> None:
        self._tracker, self._bound, self._run, self._tell = tracker, bound, run, tell
        self._lost, self._told = Lost(), set[int]()

    def go_on(self, moments: Iterable[Sequence[Record]]) -> None:
        """Pass it on, and look: the run may have been stopped before an alert was raised."""
        self._tracker.go_on(self._looked_at(moments))

    def log(self, records: Sequence[Record]) -> None:
        """Pass the records on, then look at them."""
        self._tracker.log(records)
        self._look(records)

    def finish(self, summary: Mapping[str, float], matrix: "Matrix | None", status: str) -> None:
        """Pass it on."""
        self._tracker.finish(summary, matrix, status)

    def _looked_at(self, moments: Iterable[Sequence[Record]]) -> Iterator[Sequence[Record]]:
        """The moments, each looked at when the next one is asked for: the tracker has logged it then."""
        for records in moments:
            yield records
            self._look(records)

    def _look(self, records: Sequence[Record]) -> None:
        lost = self._lost(records)
        for task in sorted(passing(lost, self._bound) - self._told):
            self._told.add(task)
            self._say(task, lost[task], records[0].rows_seen)

    def _say(self, task: int, lost: float, rows_seen: int) -> None:
        title, run = f"Forgetting of task {task}", self._run
        text = f"task {task} has lost {lost:.3f} of its best accuracy after {rows_seen} rows (alert at {self._bound})"
        if first_time(run, "stderr", title):
            print(f"alert: {run.scenario} {run.name} seed {run.seed}: {text}", file=sys.stderr, flush=True)
        if self._tell is not None:
            self._tell(title, text)
