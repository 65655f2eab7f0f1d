"""What one run learned and forgot: pure functions of its records, one declared definition each.

``R[i, j]`` is the accuracy on task j's probe after the i-th end of a task (row 0: before any training). A *task* is
the origin task that each record carries, so that a task cut into many small arrivals is still one task. On a stream
that trains its tasks 1..T in order, once each, every formula reads as in its paper. With repetition, ``R[j, j]`` is the
row of task j's first end, ``R[j-1, j]`` the row just before that training, and *old* tasks are those learned before
the newest one. What NaN means is told in :mod:`continual.timeline`, where the metrics over time are.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from continual import timeline as over_time
from continual.errors import UserError
from continual.record import Record
from continual.timeline import (
    Floats,
    PerTask,
    first_positions,
    mean,
    read_timeline,
    seen_accuracy,
    weighted_mean,
)

FINAL = ("forward_equivalents_per_row", "peak_bytes", "seconds", "dormant_fraction", "effective_rank", "weight_norm")


@dataclass(frozen=True, slots=True, eq=False)
class Matrix(PerTask):
    """One metric on every probe at every end of a task.

    Attributes:
        values: (1 + S, T); row 0 before training, then one row per end of a task in stream order; NaN: not measured.
        trained: (S,) the origin task that ended at rows 1..S. A task that returns later ends again, so S may exceed T.
    """

    values: Floats
    trained: tuple[int, ...]

    @property
    def learned(self) -> dict[int, int]:
        """{task: row of its first end}, in the order in which the tasks were learned."""
        return first_positions(self.trained, range(1, len(self.trained) + 1))


def accuracy_matrix(records: Iterable[Record], metric: str = "accuracy") -> Matrix:
    """The matrix R of a run; of another ``metric`` that was recorded per probe at the ends of tasks if named."""
    timeline = read_timeline(records, metric)
    return Matrix(timeline.values[[0, *timeline.ends]], tuple(timeline.tasks[timeline.ends].tolist()))


def probe_rows(records: Iterable[Record]) -> dict[int, float]:
    """{probe: its number of rows}, as recorded before training."""
    return {r.probe: r.value for r in records if r.metric == "probe_rows" and r.at == "start" and r.probe is not None}


def average_accuracy(matrix: Matrix) -> float:
    """mean_j R[T, j] over all tasks with a probe, learned or not, each with equal weight. In [0, 1], 1 is flawless."""
    return mean(matrix.values[-1, sorted(matrix.measured)]) if matrix.trained else float("nan")


def stream_accuracy(matrix: Matrix, sizes: Mapping[int, float]) -> float:
    """sum_j n_j R[T, j] / sum_j n_j, with n_j = ``sizes[j]`` the rows of probe j. In [0, 1], 1 is flawless."""
    tasks = sorted(matrix.measured)
    accuracy = matrix.values[-1, tasks] if matrix.trained else np.full(len(tasks), np.nan)
    return weighted_mean(accuracy, np.array([sizes.get(task, np.nan) for task in tasks]))


def average_incremental_accuracy(matrix: Matrix) -> float:
    """mean_i mean_{j<=i} R[i, j]: at each end of a task, the mean over tasks learned so far. In [0, 1].

    Many papers print it as AAA; that name is kept for :func:`continual.timeline.anytime_accuracy`.
    """
    return mean(seen_accuracy(matrix.values[1:], matrix.trained))


def forgetting_per_task(matrix: Matrix) -> dict[int, float]:
    """{j: max_{1<=l<T} R[l, j] - R[T, j]} for each old task j, the best it ever was minus what is left.

    In [-1, 1]: 1 if all was lost, 0 if nothing, negative if the last end is its best. Rows before j was learned take
    part where they were measured. Where not all tasks were measured at every end, the best is that of the measured
    ends, so that the value is at most the one of all ends. Source: Chaudhry et al. 2018, "Riemannian walk for
    incremental learning".
    """
    lost, learned = {}, matrix.learned
    for task in matrix.old:
        column = matrix.values[1:, task]
        known = not np.isnan(column[learned[task] - 1])
        lost[task] = float(np.fmax.reduce(column[:-1]) - column[-1]) if known else float("nan")
    return lost


def forgetting(matrix: Matrix) -> float:
    """mean_{j<T} ( max_{1<=l<T} R[l, j] - R[T, j] ), see :func:`forgetting_per_task`. NaN for a single task."""
    return mean(forgetting_per_task(matrix).values())


def backward_transfer(matrix: Matrix) -> float:
    """mean_{j<T} ( R[T, j] - R[j, j] ): what later training did to old tasks. In [-1, 1], negative if it hurt.

    Source: Lopez-Paz and Ranzato 2017, "Gradient episodic memory for continual learning".
    """
    learned = matrix.learned
    return mean(matrix.values[-1, j] - matrix.values[learned[j], j] for j in matrix.old)


def forward_transfer(matrix: Matrix) -> float:
    """mean_{j>=2} ( R[j-1, j] - R[0, j] ): what earlier training did for a task not yet trained.

    The baseline is the same run's random initialisation. In [-1, 1], 0 if earlier tasks were of no use.
    Source: Lopez-Paz and Ranzato 2017.
    """
    measured = matrix.measured
    later = [(j, row) for j, row in list(matrix.learned.items())[1:] if j in measured]
    return mean(matrix.values[row - 1, j] - matrix.values[0, j] for j, row in later)


def intransigence(matrix: Matrix, reference: Mapping[int, float]) -> float:
    """mean_j ( A*[j] - R[j, j] ), with A*[j] = ``reference[j]`` of a learner trained jointly on the tasks up to j.

    In [-1, 1]: 1 if nothing new was learned, at most 0 if every task was learned as well as jointly. NaN if the
    reference lacks a learned task. Source: Chaudhry et al. 2018.
    """
    measured = matrix.measured
    learned = [(j, row) for j, row in matrix.learned.items() if j in measured]
    return mean(reference.get(j, math.nan) - matrix.values[row, j] for j, row in learned)


def negative_flips(flips: Matrix) -> float:
    """Mean over ends of tasks of P(right at the previous end, wrong now), over tasks learned by the previous end.

    ``flips`` is the matrix of the metric ``negative_flips``. In [0, 1], 0 if nothing was unlearned.
    Source: Yan et al. 2021, "Positive-congruent training".
    """
    return mean(mean(flips.values[i, old]) for i, old in _updates(flips))


def relative_negative_flips(flips: Matrix, accuracy: Matrix) -> float:
    """Mean over ends of tasks of P(right before, wrong now) / ((1 - err_before) err_now), on tasks learned before.

    At least 0; 1 if the two models' mistakes were independent. Ends with a denominator of 0 (nothing was right, or
    nothing is wrong) are left out. Source: Yan et al. 2021.
    """
    ratios = []
    for i, old in _updates(flips):
        expected = mean(accuracy.values[i - 1, old]) * (1 - mean(accuracy.values[i, old]))
        if expected != 0:
            ratios.append(mean(flips.values[i, old]) / expected)
    return mean(ratios)


def _updates(matrix: Matrix) -> Iterator[tuple[int, list[int]]]:
    """(row, measured tasks learned by the previous row) for each row from the second end of a task on."""
    measured, old = matrix.measured, set[int]()
    for row, task in enumerate(matrix.trained[:-1], start=2):
        old |= {task} & measured
        if old:
            yield row, sorted(old)


def summary(
    records: Iterable[Record],
    *,
    threshold: float = 0.8,
    window: int = 1000,
    fading: float = 0.999,
    batches: int = 10,
    reference: Mapping[int, float] | None = None,
) -> dict[str, float]:
    """Every scalar metric that a run's records support, by name; what was not measured is absent.

    Beside the metrics stand the grain at which they were measured: ``evaluation_period`` (rows, the largest distance
    between evaluations) and ``probe_rows`` (of the smallest probe).

    Args:
        records: of one run, in any order.
        threshold: accuracy for ``samples_to_threshold``, in [0, 1].
        window: rows for ``stability_gap``, ``windowed_*`` and ``prequential_accuracy_windowed``.
        fading: factor per row of ``prequential_accuracy_fading``, in (0, 1].
        batches: updates into each task for ``learning_curve_area``.
        reference: accuracy per task of jointly trained runs, for ``intransigence``.

    Raises:
        UserError: a parameter outside its range.
    """
    for name, value, holds, bound in (
        ("threshold", threshold, 0 <= threshold <= 1, "in [0, 1]"),
        ("window", window, window >= 1, "at least 1 row"),
        ("fading", fading, 0 < fading <= 1, "in (0, 1]"),
        ("batches", batches, batches >= 0, "at least 0"),
    ):
        if not holds:
            raise UserError(f"summary: {name}={value} must be {bound}")
    records = list(records)
    values = _at_ends(records, reference or {})
    values |= _within_tasks(records, threshold, window, batches)
    values |= _before_learning(records, window, fading)
    values |= {r.metric: r.value for r in records if r.at == "final" and r.probe is None and r.metric in FINAL}
    errors = [r.value for r in records if r.at == "final" and r.metric == "calibration_error" and r.probe is not None]
    values["calibration_error"] = mean(error for error in errors if not math.isnan(error))
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _at_ends(records: list[Record], reference: Mapping[int, float]) -> dict[str, float]:
    matrix, flips, sizes = accuracy_matrix(records), accuracy_matrix(records, "negative_flips"), probe_rows(records)
    return {
        "probe_rows": min(sizes.values(), default=math.nan),
        "average_accuracy": average_accuracy(matrix),
        "stream_accuracy": stream_accuracy(matrix, sizes),
        "average_incremental_accuracy": average_incremental_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix),
        "intransigence": intransigence(matrix, reference),
        "cumulative_forgetting": forgetting(accuracy_matrix(records, "accuracy_seen")),
        "negative_flips": negative_flips(flips),
        "relative_negative_flips": relative_negative_flips(flips, matrix),
    }


def _within_tasks(records: list[Record], threshold: float, window: int, batches: int) -> dict[str, float]:
    timeline = read_timeline(records)
    return {
        "anytime_accuracy": over_time.anytime_accuracy(timeline),
        "learning_curve_area": over_time.learning_curve_area(timeline, batches),
        "min_accuracy": over_time.min_accuracy(timeline),
        "worst_case_accuracy": over_time.worst_case_accuracy(timeline),
        "stability_gap": over_time.stability_gap(timeline, window),
        "windowed_forgetting": over_time.windowed_forgetting(timeline, window),
        "windowed_plasticity": over_time.windowed_plasticity(timeline, window),
        "samples_to_threshold": over_time.samples_to_threshold(timeline, threshold),
        "evaluation_period": over_time.evaluation_period(timeline),
    }


def _before_learning(records: list[Record], window: int, fading: float) -> dict[str, float]:
    foreseen = over_time.prequential_windows(records)
    values = {
        name: over_time.prequential_accuracy(*over_time.prequential_windows(records, name))
        for name in ("prequential_accuracy", "last_label_accuracy", "blind_accuracy")
    }
    values["prequential_accuracy_fading"] = over_time.fading_accuracy(*foreseen, fading)
    values["prequential_accuracy_windowed"] = over_time.sliding_accuracy(*foreseen, window)
    return values
