"""What one run measured over time, read from its records, and the metrics that need more than the ends of tasks.

Two rules hold for every metric here and in :mod:`continual.metrics`. NaN means *not measured*: a mean needs each of
its cells, so one missing cell makes it NaN, while an extreme over time takes the moments that were measured. A task
whose probe was never measured (it has no labels) is left out altogether. Accuracies are fractions in [0, 1].
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from continual.record import Record

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class PerTask:
    """What follows from ``values`` (M, T), one column per task, and from when each task was ``learned``."""

    __slots__ = ()
    values: Floats

    @property
    def learned(self) -> dict[int, int]:
        """{task: row of ``values`` at its first end}, in the order in which the tasks were learned."""
        raise NotImplementedError

    @property
    def measured(self) -> set[int]:
        """Tasks whose probe was measured at least once."""
        return measured_tasks(self.values)

    @property
    def old(self) -> list[int]:
        """Measured tasks that were learned before the newest one; a task's repetition makes nothing newer."""
        measured = self.measured
        return [task for task in list(self.learned)[:-1] if task in measured]


@dataclass(frozen=True, slots=True, eq=False)
class Timeline(PerTask):
    """One metric on every probe at every evaluation moment, in stream order; moment 0 is before training.

    A moment is a distinct (rows_seen, step). Tasks are origin tasks: consecutive ends of one task (it arrived in
    several pieces) count as one end, the last of them.

    Attributes:
        rows: (1 + M,) stream rows that had been learned.
        steps: (1 + M,) updates that had been made.
        tasks: (1 + M,) task that was being trained or had just ended, -1 for moment 0.
        ends: (S,) positions of the moments at which a task ended.
        values: (1 + M, T) the metric on each task's probe, NaN where it was not measured.
    """

    rows: Integers
    steps: Integers
    tasks: Integers
    ends: Integers
    values: Floats

    @property
    def learned(self) -> dict[int, int]:
        """{task: position of its first end}, in the order in which the tasks were learned."""
        return first_positions(self.tasks[self.ends], self.ends)


def measured_tasks(values: Floats) -> set[int]:
    """The columns of ``values`` (M, T) with at least one number."""
    return set(np.flatnonzero((~np.isnan(values)).any(axis=0)).tolist())


def first_positions(tasks: Iterable[int], positions: Iterable[int]) -> dict[int, int]:
    """{task: position of its first appearance}, in order of appearance."""
    first: dict[int, int] = {}
    for task, position in zip(tasks, positions, strict=True):
        first.setdefault(int(task), int(position))
    return first


def mean(values: Iterable[float]) -> float:
    """Mean in float64; NaN if one value is NaN or there is none."""
    array = np.fromiter(values, np.float64)
    return float(array.mean()) if array.size else float("nan")


def weighted_mean(values: Floats, weights: Floats) -> float:
    """sum(weights * values) / sum(weights); NaN if a number is missing or the weights sum to 0."""
    total = weights.sum()
    return float((weights * values).sum() / total) if total != 0 else float("nan")


def read_timeline(records: Iterable[Record], metric: str = "accuracy") -> Timeline:
    """Gather a run's ``metric`` per probe; the order of ``records`` does not matter.

    The moments are those at which ``accuracy`` or ``metric`` was recorded, so timelines of two metrics of one run
    have the same task ends. Where a task's last step and its end are one moment, the records of the end count.
    """
    wanted = {"accuracy", metric}
    facts = [r for r in records if r.metric in wanted]
    start, within, end = ([r for r in facts if r.at == at] for at in ("start", "step", "end"))
    later = within + end  # of two facts about one moment the end's count
    keys = [(0, 0), *sorted({(r.rows_seen, r.step) for r in later})]
    positions = {key: index for index, key in enumerate(keys[1:], start=1)}
    placed = [(0, r) for r in start] + [(positions[r.rows_seen, r.step], r) for r in later]
    trained = {position: r.task for position, r in placed if position and r.task is not None}
    cells = {(position, r.probe): r.value for position, r in placed if r.metric == metric and r.probe is not None}
    numbers = {r.task for _, r in placed} | {r.probe for _, r in placed}
    values = np.full((len(keys), 1 + max((n for n in numbers if n is not None), default=-1)), np.nan)
    tasks, ended = np.full(len(keys), -1), np.zeros(len(keys), dtype=bool)
    tasks[list(trained)] = list(trained.values())
    ended[[positions[r.rows_seen, r.step] for r in end if r.task is not None]] = True
    values[tuple(np.array(list(cells), dtype=int).reshape(-1, 2).T)] = list(cells.values())
    ends = np.flatnonzero(ended)
    last_of_its_task = np.append(np.diff(tasks[ends]) != 0, True)[: len(ends)]
    rows, steps = np.array(keys).T
    return Timeline(rows, steps, tasks, ends[last_of_its_task], values)


def seen_accuracy(values: Floats, tasks: Iterable[int]) -> list[float]:
    """Mean accuracy on the tasks seen so far, the current one included, at each row of ``values`` (M, T).

    ``tasks`` (M,) is the task of each row. Rows before the first task with a measured probe are left out.
    """
    measured = measured_tasks(values)
    seen: list[int] = []
    means = []
    for task, row in zip(tasks, values, strict=True):
        if task in measured and task not in seen:
            seen.append(int(task))
        if seen:
            means.append(float(row[seen].mean()))
    return means


def anytime_accuracy(timeline: Timeline) -> float:
    """Average anytime accuracy: mean_t of the mean accuracy at t on the tasks whose training has begun by t.

    t runs over all moments within and at the end of tasks, each with equal weight. In [0, 1], 1 if every seen task
    is always answered without a mistake. Source: Caccia et al. 2022, "New insights on reducing abrupt
    representation change in online continual learning".
    """
    return mean(seen_accuracy(timeline.values[1:], timeline.tasks[1:]))


def learning_curve_area(timeline: Timeline, batches: int = 10) -> float:
    """(1 / (b+1)) sum_{n=0..b} mean_k a[k,n,k], accuracy on task k after n updates within its first training.

    In [0, 1], 1 if every task is known before its first update. NaN unless each of these b+1 moments was measured for
    each task. Source: Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM".
    """
    areas, measured = [], timeline.measured
    begins = {end: begin for begin, end in pairwise([0, *timeline.ends.tolist()])}
    for task, end in timeline.learned.items():
        if task in measured:
            begin = begins[end]
            steps = timeline.steps[begin : end + 1] - timeline.steps[begin]
            curve = dict(zip(steps.tolist(), timeline.values[begin : end + 1, task], strict=True))
            areas.append(mean(curve.get(n, np.nan) for n in range(batches + 1)))
    return mean(areas)


def min_accuracy(timeline: Timeline) -> float:
    """Mean over old tasks of the lowest accuracy at any moment after the task was first learned, up to the last end.

    In [0, 1], 1 if no old task ever gave a wrong answer. The coarser the evaluation, the more dips it misses: read it
    with :func:`evaluation_period` and the probes' sizes. Source: De Lange et al. 2023, "Continual evaluation for
    lifelong learning: identifying the stability gap".
    """
    learned = timeline.learned
    return mean(np.fmin.reduce(timeline.values[learned[j] + 1 : timeline.ends[-1] + 1, j]) for j in timeline.old)


def worst_case_accuracy(timeline: Timeline) -> float:
    """(1/k) A_k + (1 - 1/k) min-ACC over k learned tasks, A_k the newest task's accuracy at the last end.

    In [0, 1]; NaN for a single task. Source: De Lange et al. 2023.
    """
    if not timeline.old:
        return float("nan")
    newest, share = list(timeline.learned)[-1], 1 / (len(timeline.old) + 1)
    return float(share * timeline.values[timeline.ends[-1], newest] + (1 - share) * min_accuracy(timeline))


def stability_gap(timeline: Timeline, window: int = 1000) -> float:
    """Mean over switches of (accuracy on old tasks just before - its minimum within the next ``window`` rows).

    A switch is the end of a task that another follows; old tasks are those learned by then, without the one that
    comes next. The window stops at the end of that next task, and a switch counts only if it was also evaluated
    before that end; otherwise the value is NaN. In [-1, 1]: 1 if all is lost and perhaps regained, 0 if nothing is
    lost, negative if every later evaluation is better. Source: De Lange et al. 2023.
    """
    gaps = []
    for before, after, old in switches(timeline):
        curve: Floats = timeline.values[before : after + 1, old].mean(axis=1)
        near = timeline.rows[before : after + 1] <= timeline.rows[before] + window
        within = curve[1:-1][near[1:-1]]
        lowest = np.fmin.reduce(curve[1:][near[1:]], initial=np.nan) if np.isfinite(within).any() else np.nan
        gaps.append(float(curve[0] - lowest))
    return mean(gaps)


def switches(timeline: Timeline) -> Iterator[tuple[int, int, list[int]]]:
    """(end of a task, end of the next, measured tasks learned by then without the next) where there is such a task."""
    learned, measured = timeline.learned, timeline.measured
    for before, after in pairwise(timeline.ends.tolist()):
        old = [task for task, end in learned.items() if end <= before and task in measured]
        others = [task for task in old if task != timeline.tasks[after]]
        if others:
            yield before, after, others


def largest_drop(rows: Integers, values: Floats, window: int) -> Floats:
    """Largest A_m - A_n over moments m < n whose ``rows`` (M,) differ by at most ``window``; (M, T) -> (T,).

    Every pair is looked at, so a valley before a peak is not lost. NaN where no such pair was measured.
    """
    drop = np.full(values.shape[1], np.nan)
    for lag in range(1, len(rows)):
        near = rows[lag:] - rows[:-lag] <= window
        if not near.any():
            break
        drop = np.fmax(drop, np.fmax.reduce((values[:-lag] - values[lag:])[near], axis=0))
    return drop


def windowed_forgetting(timeline: Timeline, window: int = 1000) -> float:
    """Mean over learned tasks of the largest fall of accuracy within ``window`` rows, the start included.

    In [-1, 1]: 1 if all knowledge goes at once, at most 0 if accuracy never falls. NaN if evaluations are more than
    ``window`` rows apart. Source: De Lange et al. 2023, who count the window in updates.
    """
    drop, measured = largest_drop(timeline.rows, timeline.values, window), timeline.measured
    return mean(drop[j] for j in timeline.learned if j in measured)


def windowed_plasticity(timeline: Timeline, window: int = 1000) -> float:
    """Mean over learned tasks of the largest rise of accuracy within ``window`` rows; see `windowed_forgetting`."""
    rise, measured = largest_drop(timeline.rows, -timeline.values, window), timeline.measured
    return mean(rise[j] for j in timeline.learned if j in measured)


def samples_to_threshold_per_task(timeline: Timeline, threshold: float) -> dict[int, float]:
    """{task: rows of that task consumed when its accuracy was first seen at ``threshold`` or above}.

    0 if it was there before its own training, inf if never. Its resolution is the evaluation period.
    """
    spent = np.diff(timeline.rows, prepend=0)  # (1 + M,)
    consumed, measured = {}, timeline.measured
    for task in first_positions(timeline.tasks[1:], range(len(timeline.tasks) - 1)):
        if task in measured:
            reached = np.flatnonzero(timeline.values[:, task] >= threshold)
            own = np.cumsum(np.where(timeline.tasks == task, spent, 0))
            consumed[task] = float(own[reached[0]]) if reached.size else float("inf")
    return consumed


def samples_to_threshold(timeline: Timeline, threshold: float) -> float:
    """Mean of :func:`samples_to_threshold_per_task` in rows, at least 0; inf if one task never gets there."""
    return mean(samples_to_threshold_per_task(timeline, threshold).values())


def evaluation_period(timeline: Timeline) -> float:
    """Largest number of rows between two consecutive evaluations of one task, from the start of its training on.

    A shorter dip may have been missed. Tasks that take turns are evaluated more seldom than something is.
    """
    largest, first = float("nan"), first_positions(timeline.tasks[1:], range(len(timeline.tasks) - 1))
    measured = timeline.measured
    for task, begin in first.items():  # ``begin``: the moment before the first one within the task
        if task in measured:
            rows = timeline.rows[begin:][~np.isnan(timeline.values[begin:, task])]
            rows = np.concatenate([timeline.rows[begin : begin + 1], rows])
            largest = np.fmax(largest, np.diff(rows).max(initial=0))
    return float(largest)


def prequential_windows(records: Iterable[Record], metric: str = "prequential_accuracy") -> tuple[Floats, Floats]:
    """``metric`` (W,) over each window of arrived rows and the rows scored in it (W,), in stream order.

    A window's rows are the record ``prequential_rows`` of the same moment, NaN where it is missing. Windows in which
    no row was scored (no labels) are left out.
    """
    facts = [r for r in records if r.at == "arrival"]
    # The task too: its last window may be written at the moment at which the next task's first one is.
    values = {(r.rows_seen, r.step, r.task): r.value for r in facts if r.metric == metric}
    rows = {(r.rows_seen, r.step, r.task): r.value for r in facts if r.metric == "prequential_rows"}
    scored = [key for key in sorted(values, key=lambda key: key[:2]) if rows.get(key) != 0]
    return np.array([values[k] for k in scored]), np.array([rows.get(k, np.nan) for k in scored])


def prequential_accuracy(values: Floats, rows: Floats) -> float:
    """mean_t 1[f_{t-1}(x_t) = y_t] over all scored rows: each was predicted before it was learned.

    ``values`` (W,) are means over windows of ``rows`` (W,) rows. In [0, 1], 1 if every row was foreseen. Given the
    windows of ``last_label_accuracy`` or ``blind_accuracy`` it is the same mean for those label-only learners.
    """
    return weighted_mean(values, rows)


def fading_accuracy(values: Floats, rows: Floats, factor: float = 0.999) -> float:
    """Prequential accuracy in which a row counts ``factor`` times as much as the row after it, at the stream's end.

    S / N with S = sum_i factor^(n-i) 1[row i right], N the same sum of ones; ``factor`` in (0, 1], 1 forgets nothing.
    Within a window each row counts as the window's mean, so windows of one row are exact. In [0, 1].
    Source: Gama, Sebastião, Rodrigues 2013, "On evaluating stream learning algorithms".
    """
    later = rows[::-1].cumsum()[::-1] - rows  # (W,) rows scored after each window
    return weighted_mean(values, rows if factor == 1 else factor**later * -np.expm1(rows * np.log(factor)))


def sliding_accuracy(values: Floats, rows: Floats, window: int = 1000) -> float:
    """Prequential accuracy of the last ``window`` scored rows; a window cut in two counts by its share. In [0, 1]."""
    later = rows[::-1].cumsum()[::-1] - rows
    return weighted_mean(values, np.clip(window - later, 0, rows))
