"""Sinks for records: what a tracker is, and what several of them share.

A tracker sees what the ledger sees and may lose it: the ledger is the truth, so nothing that a tracker does can end a
run. One run of ours is one run there::

    tracker = open_tracker(facts)           # NoTracker() or e.g. trackers.wandb.Wandb(...), built from conf/track
    for records in moments:
        tracker.log(records)
    tracker.finish(summary, matrix, "finished")
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from continual.alerts import NO_ALERT, Alert, Lost, watched
from continual.record import Record

Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a tracker may know about a run before its first record.

    Attributes:
        name: what is compared, e.g. ``er``; runs that differ only by seed share it.
        scenario: name of the stream.
        strategy: name of the learner or of its strategies, e.g. ``er+ewc``.
        seed: the run's seed.
        run_id: stable hash; a run that is resumed continues under the same id. No ``:;,#?/'``.
        directory: the run's directory.
        config: the config as written: interpolations unresolved and secrets redacted, as it is stored in clear.
        n_tasks: number of tasks, which decides how many digits a probe's name has.
        n_classes: number of classes, which decides how many digits a class's name has.
    """

    name: str
    scenario: str
    strategy: str
    seed: int
    run_id: str
    directory: Path
    config: Mapping[str, Any]
    n_tasks: int
    n_classes: int = 1


class Tracker(Protocol):
    """A sink for the records of one run."""

    def go_on(self, moments: Iterable[Sequence[Record]]) -> None:
        """The run was stopped and goes on: what it had measured before, to be shown once whatever was shown then.

        Called at most once, before ``log``. What was measured after these moments comes again, with equal values.
        """
        ...

    def log(self, records: Sequence[Record]) -> None:
        """Take all records of one moment; moments come in order of their step."""
        ...

    def finish(self, summary: Mapping[str, float], matrix: Matrix | None, status: str) -> None:
        """End the run; its ledger has ended before.

        Args:
            summary: final metrics by name.
            matrix: accuracy (rows, probes): row 0 before any training, row i after the i-th task; None or NaN where
                nothing was measured.
            status: ``finished``; anything else marks the run as failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class NoTracker:
    """Keeps nothing; its own factory.

    Attributes:
        alert: when to say a line on stderr.
    """

    alert: Alert = NO_ALERT

    def __call__(self, run: RunFacts) -> Tracker:
        return watched(self, self.alert, run)

    def go_on(self, moments: Iterable[Sequence[Record]]) -> None:
        pass

    def log(self, records: Sequence[Record]) -> None:
        pass

    def finish(self, summary: Mapping[str, float], matrix: Matrix | None, status: str) -> None:
        pass


def moments_of(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in their order, those that were measured at one moment together."""
    for _, moment in groupby(records, key=lambda r: (r.rows_seen, r.step, r.at)):
        yield list(moment)


def run_id(name: str, seed: int, digest: str, directory: Path) -> str:
    """The id of the run in ``directory``: readable, stable, and another one each time the run is started over there."""
    before = len(list(directory.glob("manifest.*.json")))  # a ledger that is started over keeps the old manifests
    again = f"-{before + 1}" if before else ""
    return re.sub(r"[^\w.+-]", "-", f"{name}-seed{seed}-{digest}{again}")


def row(records: Sequence[Record], n_tasks: int, n_classes: int = 1) -> dict[str, float]:
    """The records of one moment as the values of one ``run.log``.

    ``rows_seen`` is the axis of ``<metric>``, or ``<metric>/<probe>`` if it was measured on a probe
    (``class_accuracy/<class>``: on a class); ``task`` is the axis of ``R/<probe>``, the accuracy before training (task
    -1) and at the end of each task. Values of an arrival or after the stream have that before their name:
    ``arrival/...``, ``final/...``. Tasks, probes and classes count from 0.
    """
    values: dict[str, float] = {"rows_seen": records[0].rows_seen}
    for record in records:
        prefix = f"{record.at}/" if record.at in ("arrival", "final") else ""
        total = n_classes if record.metric == "class_accuracy" else n_tasks
        probe = "" if record.probe is None else f"/{padded(record.probe, total)}"
        values[f"{prefix}{record.metric}{probe}"] = record.value
        if probe and record.metric == "accuracy" and record.at in ("start", "end"):
            values[f"R{probe}"] = record.value
            values["task"] = -1 if record.task is None else record.task
    return values


class Curves:
    """What a chart over time shows and no record says, because it follows from the records of a run so far."""

    def __init__(self, n_tasks: int) -> None:
        self._n_tasks = n_tasks
        self._lost = Lost()
        self._seen, self._probed = set[int](), set[int]()  # tasks whose training has begun, that were ever measured

    def __call__(self, records: Sequence[Record]) -> dict[str, float]:
        """Values by name, of the records of one moment.

        ``forgetting/<task>``, at ends of tasks: see :class:`continual.alerts.Lost`. ``seen_accuracy``, within tasks
        and at their ends: mean accuracy on the tasks whose training has begun, where all of them were measured; its
        mean over all moments is ``anytime_accuracy``. In [0, 1].
        """
        at, lost = records[0].at, self._lost(records)
        values = {f"forgetting/{padded(task, self._n_tasks)}": fall for task, fall in lost.items() if at == "end"}
        self._probed |= {r.probe for r in records if r.metric == "accuracy" and r.probe is not None}
        if at in ("step", "end"):
            self._seen |= {r.task for r in records if r.task is not None}
            known = [r.value for r in records if r.metric == "accuracy" and r.probe in self._seen]
            if known and len(known) == len(self._seen & self._probed) and not any(map(math.isnan, known)):
                values["seen_accuracy"] = sum(known) / len(known)
        return values


def padded(number: int, total: int) -> str:
    """``number`` with as many digits as the largest of ``total`` numbers that count from 0, so that names sort."""
    return f"{number:0{len(str(total - 1))}}"


def cells(matrix: Matrix) -> list[list[float]]:
    """[tasks trained, probe, accuracy] of every measured cell of an accuracy matrix."""
    return [
        [trained, probe, float(value)]
        for trained, line in enumerate(matrix)
        for probe, value in enumerate(line)
        if value is not None and not math.isnan(value)
    ]
