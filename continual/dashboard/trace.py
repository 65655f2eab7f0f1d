"""What the page needs of one run, read from its records once: pure functions, tens of kilobytes for 50 tasks.

NaN means *not measured*, as in :mod:`continual.timeline`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from continual.metrics import Matrix, accuracy_matrix, summary
from continual.record import Record
from continual.timeline import Floats, Integers, Timeline, read_timeline, seen_accuracy, switches

PREQUENTIAL = ("prequential_accuracy", "last_label_accuracy", "blind_accuracy")


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One run over time.

    Attributes:
        metrics: by name, see :func:`continual.metrics.summary`.
        rows_seen: rows of the stream that had been learned at the newest record.
        begun: tasks whose training has left a record, a task that returned counted again.
        rows: (1 + M,) rows seen at the evaluation moments, moment 0 before training.
        ends: (S,) moments at which a task ended.
        matrix: (1 + S, T) accuracy on each task before training and after each end.
        trained: (S,) the task that ended.
        anytime: (1 + M,) mean accuracy on the tasks seen so far, see :func:`anytime`.
        newest: (1 + M,) accuracy on the task in training.
        gap: (2, G) rows since a switch, and accuracy on old tasks minus that just before it, see :func:`gap`.
        windows: (5, W) of the arrivals, see :func:`windows`.
        classes: (S, C) accuracy on each class after each end.
    """

    metrics: Mapping[str, float]
    rows_seen: int
    begun: int
    rows: Integers
    ends: Integers
    matrix: Floats
    trained: Integers
    anytime: Floats
    newest: Floats
    gap: Floats
    windows: Floats
    classes: Floats

    @property
    def accuracies(self) -> Matrix:
        """The accuracy matrix R."""
        return Matrix(self.matrix, tuple(self.trained.tolist()))

    @property
    def n_tasks(self) -> int:
        """Tasks up to the last that was measured."""
        return 1 + max(self.accuracies.measured, default=-1)

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Trace":
        """The trace of one run's ``records``, which may be none."""
        records = list(records)
        timeline = read_timeline(records)
        return cls(
            metrics=summary(records),
            rows_seen=max((r.rows_seen for r in records), default=0),
            begun=sum(1 for _ in groupby(r.task for r in records if r.task is not None)),
            rows=timeline.rows,
            ends=timeline.ends,
            matrix=timeline.values[[0, *timeline.ends]],
            trained=timeline.tasks[timeline.ends],
            anytime=anytime(timeline),
            newest=newest(timeline),
            gap=gap(timeline),
            windows=windows(records),
            classes=classes(records),
        )


def anytime(timeline: Timeline) -> Floats:
    """(1 + M,) mean accuracy on the tasks seen so far, the current one included; NaN before the first of them."""
    seen = seen_accuracy(timeline.values[1:], timeline.tasks[1:])
    return np.array([np.nan] * (len(timeline.rows) - len(seen)) + seen)


def newest(timeline: Timeline) -> Floats:
    """(1 + M,) accuracy on the task in training; NaN at moment 0."""
    found = np.full(len(timeline.rows), np.nan)
    at = np.flatnonzero(timeline.tasks >= 0)
    found[at] = timeline.values[at, timeline.tasks[at]]
    return found


def gap(timeline: Timeline) -> Floats:
    """(2, G) rows since the switch, and accuracy on old tasks minus that just before it: means over switches.

    Switches and old tasks are those of :func:`continual.timeline.stability_gap`. Moments of two switches are aligned
    by their place after the switch, and the ends of the next tasks with each other; a place that not every switch has
    is left out. Empty if nothing was measured between two ends: a gap cannot be seen there.
    """
    found = []
    for before, after, old in switches(timeline):
        rows, values = (column[before : after + 1] for column in (timeline.rows, timeline.values))
        accuracy = values[:, old].mean(axis=1)
        found.append(np.stack([rows - rows[0], accuracy - accuracy[0]]))
    places = min((curve.shape[1] for curve in found), default=0)
    if places <= 2:
        return np.empty((2, 0))
    mean: Floats = np.mean([curve[:, [*range(places - 1), -1]] for curve in found], axis=0)
    return mean


def windows(records: Iterable[Record]) -> Floats:
    """(5, W): rows seen at each window of arrivals, rows scored in it, and the three accuracies ``PREQUENTIAL``.

    Rows seen are those that had been learned when the window was written down. Windows in which no row was scored are
    left out.
    """
    found: dict[tuple[int, int, int | None], dict[str, float]] = {}
    for r in records:
        if r.at == "arrival":
            found.setdefault((r.rows_seen, r.step, r.task), {"rows_seen": r.rows_seen})[r.metric] = r.value
    scored = [window for window in found.values() if window.get("prequential_rows") != 0]
    names = ("rows_seen", "prequential_rows", *PREQUENTIAL)
    return np.array([[window.get(name, np.nan) for window in scored] for name in names])


def classes(records: Iterable[Record]) -> Floats:
    """(S, C) accuracy on each class after each end of a task, C up to the last class that was measured."""
    values = accuracy_matrix(records, "class_accuracy").values[1:]
    measured = np.flatnonzero(~np.isnan(values).all(axis=0))
    return values[:, : measured[-1] + 1 if len(measured) else 0]
