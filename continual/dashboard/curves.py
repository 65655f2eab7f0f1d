"""From the traces of runs that differ by seed only to the curves of the page: means with intervals over seeds.

A curve is ``{"x": [...], "mean": [...], "low": [...], "high": [...], "n": [...]}``, lists of equal length: the 95%
interval of Student's t over the ``n`` seeds that measured this point, None where n = 1. A point that no seed has
measured is left out; a curve without a point is None.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from continual.dashboard.trace import PREQUENTIAL, Trace
from continual.metrics import Matrix, forgetting_per_task
from continual.timeline import Floats, Integers

Curve = dict[str, list[Any]]
Place = tuple[int, float]
"""Training segment, and the place in it of a moment; the end of a task is at infinity."""

DECIMALS = 4
POINTS = 200
"""More moments than these are thinned, more windows merged: a page holds many curves."""


def of_row(traces: Mapping[int, Trace], n_tasks: int) -> dict[str, Any]:
    """What a row of the page shows of its {seed: trace} over time, in a scenario of ``n_tasks``."""
    own = list(traces.values())
    places = [moments(trace) for trace in own]
    at, ends = positions(places)
    rows = x_of(pick([trace.rows for trace in own], at))
    shown = {name: thinned(rows, pick([getattr(t, name) for t in own], at), ends) for name in ("anytime", "newest")}
    return {
        **matrices(traces, n_tasks),
        "forgetting": by_key([forgetting_per_task(trace.accuracies) for trace in own]),
        "damage": by_key([damage(trace.accuracies) for trace in own]),
        **shown,
        "switches": whole(rows[ends]),
        "gap": gap(own),
        **prequential(own),
        **classes(own),
    }


def curve(x: Floats, y: Floats) -> Curve | None:
    """The curve of ``y`` (n seeds, P) at ``x`` (P,)."""
    n = (~np.isnan(y)).sum(axis=0)  # (P,)
    x, y, n = x[n > 0], y[:, n > 0], n[n > 0]
    if not n.size:
        return None
    mean = np.nanmean(y, axis=0)
    half = np.array([t_factor(k) for k in n.tolist()]) * np.sqrt(np.nansum((y - mean) ** 2, axis=0))
    low, high = numbers(mean - half), numbers(mean + half)
    return {"x": whole(x), "mean": numbers(mean), "low": low, "high": high, "n": n.tolist()}


@lru_cache(maxsize=256)
def t_factor(n: int) -> float:
    """t_{n-1}(0.975) / sqrt(n (n - 1)): the 95% half-width of n values whose squared deviations sum to 1; NaN at n = 1.

    As :func:`continual.statistics.interval` below 20 seeds. From there on that bootstraps, which for all points of a
    page would take minutes; curves keep to t.
    """
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975)) / math.sqrt(n * (n - 1)) if n > 1 else math.nan


def by_key(found: Sequence[Mapping[int, float]]) -> Curve | None:
    """The curve over the keys, in their order, of one {key: value} per seed."""
    keys = sorted({key for one in found for key in one})
    return curve(np.array(keys, float), np.array([[one.get(key, np.nan) for key in keys] for one in found], float))


def damage(matrix: Matrix) -> dict[int, float]:
    """{k: mean over j of R[k, j] - R[k-1, j]} for k = 2..S: what training up to the k-th end of a task did to others.

    j runs over the measured tasks learned before, without the one that was trained. In [-1, 1], negative if it hurt.
    """
    done, measured = {}, matrix.measured
    for k in range(2, len(matrix.trained) + 1):
        old = sorted((set(matrix.trained[: k - 1]) & measured) - {matrix.trained[k - 1]})
        if old:
            done[k] = float((matrix.values[k, old] - matrix.values[k - 1, old]).mean())
    return done


def moments(trace: Trace) -> dict[Place, int]:
    """{place: moment} of the moments from 1 on."""
    ends = set(trace.ends.tolist())
    segment = np.searchsorted(trace.ends, np.arange(len(trace.rows)))  # ends before the moment
    begins = np.array([0, *trace.ends])
    return {
        (int(k), math.inf if m in ends else float(m - begins[k])): m for m, k in enumerate(segment.tolist()) if m > 0
    }


def positions(places: Sequence[Mapping[Place, int]]) -> tuple[Integers, Integers]:
    """Moments of several seeds beside each other: (n seeds, P) moments, -1 where a seed has none, and the ends (S,).

    Places that not every seed has are left out, but for ends of tasks.
    """
    every = set[Place]().union(*places)
    kept = sorted(place for place in every if math.isinf(place[1]) or all(place in own for own in places))
    at = np.array([[own.get(place, -1) for place in kept] for own in places], dtype=np.int64).reshape(
        len(places), len(kept)
    )
    return at, np.flatnonzero([math.isinf(place[1]) for place in kept])


def pick(values: Sequence[Floats | Integers], at: Integers) -> Floats:
    """``values`` (M,) of each seed at the moments ``at`` (n seeds, P), NaN where it has none."""
    found = [np.append(own.astype(float), np.nan)[where] for own, where in zip(values, at, strict=True)]
    return np.array(found).reshape(at.shape)


def x_of(rows: Floats) -> Floats:
    """(P,) the mean over the seeds that have the moment."""
    return np.nanmean(rows, axis=0) if rows.size else np.empty(rows.shape[1])


def thinned(x: Floats, y: Floats, ends: Integers) -> Curve | None:
    """The curve of ``y``; of more than ``POINTS`` moments the lowest and highest of each few, and all ends of tasks."""
    seen = np.flatnonzero((~np.isnan(y)).any(axis=0))
    if len(seen) <= POINTS:
        return curve(x, y)
    mean = np.nanmean(y[:, seen], axis=0)
    groups = np.array_split(np.arange(len(seen)), POINTS // 2)
    kept = {int(extreme(mean[group]) + group[0]) for group in groups for extreme in (np.argmin, np.argmax)}
    chosen = np.union1d(seen[sorted(kept)], ends)
    return curve(x[chosen], y[:, chosen])


def gap(traces: Sequence[Trace]) -> Curve | None:
    """Accuracy on old tasks minus that just before the switch, over the seeds in which it was seen."""
    found = [trace.gap for trace in traces if trace.gap.size]
    if not found:
        return None
    places = min(own.shape[1] for own in found)
    aligned = np.array([own[:, [*range(places - 1), -1]] for own in found])  # (n, 2, P)
    return thinned(aligned[:, 0].mean(axis=0), aligned[:, 1], np.array([0, places - 1]))


def prequential(traces: Sequence[Trace]) -> dict[str, Curve | None]:
    """The curves of the learner and of the two that see labels only, over windows of arrivals.

    Windows of seeds are aligned by training segment and place. Of more than ``POINTS`` windows neighbours are merged,
    each weighted by its rows.
    """
    at, _ = positions([window_places(trace) for trace in traces])
    rows, scored, *values = (pick([trace.windows[i] for trace in traces], at) for i in range(2 + len(PREQUENTIAL)))
    starts = np.arange(0, at.shape[1], max(1, math.ceil(at.shape[1] / POINTS)))
    curves: dict[str, Curve | None] = {}
    for name, own in zip(("prequential", "last_label", "blind"), values, strict=True):
        curves[name] = None
        if starts.size:
            weights = np.where(np.isnan(scored), 1.0, scored)
            merged = np.add.reduceat(own * weights, starts, axis=1) / np.add.reduceat(weights, starts, axis=1)
            curves[name] = curve(x_of(rows)[[*(starts[1:] - 1), -1]], merged)
    return curves


def window_places(trace: Trace) -> dict[Place, int]:
    """{place: window}."""
    segment = np.searchsorted(trace.rows[trace.ends], trace.windows[0])
    first = np.searchsorted(segment, segment)  # windows are in stream order, so segments do not fall
    return {(int(k), float(i - begin)): i for i, (k, begin) in enumerate(zip(segment, first, strict=True))}


def classes(traces: Sequence[Trace]) -> dict[str, Any]:
    """Accuracy per class at the last end as a curve over classes, and its mean over seeds after each end (S, C).

    The matrix has 2 decimals: with 100 classes it is the largest thing on a page, and a class has few probe rows.
    """
    measured = [trace.classes for trace in traces if trace.classes.size]
    if not measured:
        return {"classes": None, "class_matrix": None}
    at_the_end = [{c: value for c, value in enumerate(own[-1].tolist()) if not math.isnan(value)} for own in measured]
    shape = tuple(max(own.shape[axis] for own in measured) for axis in (0, 1))
    stacked = np.array([padded(own, shape) for own in measured])  # (n, S, C)
    n = (~np.isnan(stacked)).sum(axis=0)
    mean = np.divide(np.nansum(stacked, axis=0), n, out=np.full(shape, np.nan), where=n > 0)
    return {"classes": by_key(at_the_end), "class_matrix": table(mean, 2)}


def matrices(traces: Mapping[int, Trace], n_tasks: int) -> dict[str, Any]:
    """The accuracy matrices (1 + S, n_tasks) of the seeds that trained the tasks in the order of the longest run."""
    trained: list[int] = max((trace.trained.tolist() for trace in traces.values()), key=len, default=[])
    same = {seed: t for seed, t in traces.items() if t.trained.tolist() == trained[: len(t.trained)] and t.matrix.size}
    shown = [table(padded(trace.matrix, (1 + len(trained), n_tasks))) for trace in same.values()]
    return {"seeds": list(same), "trained": trained, "matrices": shown}


def padded(values: Floats, shape: tuple[int, ...]) -> Floats:
    """``values`` (m, n) in the upper left of an array of ``shape``, cut or filled with NaN."""
    whole = np.full(shape, np.nan)
    rows, columns = min(shape[0], values.shape[0]), min(shape[1], values.shape[1])
    whole[:rows, :columns] = values[:rows, :columns]
    return whole


def table(values: Floats, decimals: int = DECIMALS) -> list[list[float | None]]:
    """Rounded numbers, None for NaN."""
    return [numbers(row, decimals) for row in values]


def numbers(values: Floats, decimals: int = DECIMALS) -> list[float | None]:
    """Rounded numbers, None for NaN; 0 and 1 are written as whole numbers, which saves bytes."""
    rounded = np.round(values, decimals).tolist()
    return [None if value != value else int(value) if value in (0.0, 1.0) else value for value in rounded]


def whole(values: Iterable[float]) -> list[int]:
    """Numbers of rows, tasks or classes."""
    return [round(value) for value in values]
