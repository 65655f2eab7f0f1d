"""Functions IndexStream -> IndexStream that make any stream harder; they compose in the order listed.

Probes keep their true labels (``drift`` apart, which changes what is true). Each draws from a generator of its own.
"""

from dataclasses import replace

import torch
from torch import Tensor

from continual.errors import UserError, nearest
from continual.seeding import generator
from scenarios.stream import IndexRows, IndexStream


def noise(stream: IndexStream, rate: float = 0.2, seed: int = 0) -> IndexStream:
    """Label noise: with probability ``rate`` a label is replaced by another class, uniformly.

    Another class of the same task where tasks divide the classes, so that noise tells nothing about other tasks.
    """
    _fraction("noise", "rate", rate)
    draws = generator(seed, "noise")
    y = stream.y.clone()
    wrong = torch.rand(len(y), generator=draws) < rate
    pick = torch.rand(len(y), generator=draws)
    for task in stream.task.unique().tolist():
        rows = (stream.task == task).nonzero()[:, 0]
        classes = stream.y[rows].unique()
        if len(classes) < 2:
            continue
        place = torch.searchsorted(classes, stream.y[rows])
        step = 1 + (pick[rows] * (len(classes) - 1)).long().clamp_max(len(classes) - 2)  # 1..n-1: never the same
        y[rows] = torch.where(wrong[rows], classes[(place + step) % len(classes)], stream.y[rows])
    return replace(stream, y=y)


def delay(stream: IndexStream, rows: int = 100) -> IndexStream:
    """Label delay: a row is asked about when it arrives, and its label is told ``rows`` arrivals later."""
    if rows < 1:
        raise UserError(f"operator.delay.rows={rows} must be at least 1")
    if stream.arrival_rows is None:
        raise UserError("operator=delay needs an online stream; set scenario.arrival_rows, e.g. to 10")
    if rows >= len(stream.ids):
        raise UserError(f"operator.delay.rows={rows} must be below the stream's {len(stream.ids)} rows")
    if stream.base.task_aware:
        raise UserError("operator=delay mixes tasks within an arrival; use it on a stream that hides task labels")
    return replace(stream, delay=stream.delay + rows)


def missing(stream: IndexStream, rate: float = 0.5, seed: int = 0) -> IndexStream:
    """Missing labels: with probability ``rate`` the label of a row is never told; the row is still asked about."""
    _fraction("missing", "rate", rate)
    kept = torch.rand(len(stream.ids), generator=generator(seed, "missing")) >= rate
    labelled = kept if stream.labelled is None else kept & stream.labelled
    for segment in stream.segment.unique().tolist():
        if not labelled[stream.segment == segment].any():
            raise UserError(f"operator.missing.rate={rate} leaves task {segment + 1} without a labelled row; lower it")
    return replace(stream, labelled=labelled)


def imbalance(stream: IndexStream, ratio: float = 10.0, seed: int = 0) -> IndexStream:
    """Long-tailed classes: class of rank r keeps a share ratio^(-r / (C - 1)) of its rows, ranks drawn by the seed.

    The most common class keeps all, the rarest 1 / ``ratio`` of its rows and at least one. ``ratio`` >= 1.
    Cui et al. 2019, https://arxiv.org/abs/1901.05555
    """
    if ratio < 1:
        raise UserError(f"operator.imbalance.ratio={ratio} must be at least 1")
    draws = generator(seed, "imbalance")
    classes = stream.y.unique()
    rank = torch.randperm(len(classes), generator=draws)
    keep = torch.zeros(len(stream.y), dtype=torch.bool)
    for r, label in zip(rank.tolist(), classes.tolist(), strict=True):
        rows = (stream.y == label).nonzero()[:, 0]
        n = max(1, round(len(rows) * ratio ** (-r / max(len(classes) - 1, 1))))
        keep[rows[torch.randperm(len(rows), generator=draws)[:n]]] = True
    return _only(stream, keep.nonzero()[:, 0])


def repeat(stream: IndexStream, laps: int = 2, share: float = 1.0, seed: int = 0) -> IndexStream:
    """Repetition: the whole sequence of tasks comes ``laps`` times, after the first lap with a ``share`` of its rows."""
    if laps < 1:
        raise UserError(f"operator.repeat.laps={laps} must be at least 1")
    if not 0 < share <= 1:
        raise UserError(f"operator.repeat.share={share} must be in (0, 1]")
    draws = generator(seed, "repeat")
    rows, segments, last = [torch.arange(len(stream.ids))], [stream.segment], int(stream.segment.max())
    for lap in range(1, laps):
        for segment in stream.segment.unique().tolist():
            own = (stream.segment == segment).nonzero()[:, 0]
            n = max(1, round(share * len(own)))
            rows.append(own[torch.randperm(len(own), generator=draws)[:n]])
            segments.append(torch.full((n,), segment + lap * (last + 1)))
    return replace(_only(stream, torch.cat(rows)), segment=torch.cat(segments))


def blur(stream: IndexStream, width: float = 0.2, seed: int = 0) -> IndexStream:
    """Blurry boundaries: within ``width`` (a share of a task's rows) of a boundary, rows of both tasks mix.

    Each row's position is moved by a triangular random offset of at most ``width`` times its task's size;
    boundaries are hidden from then on. ``width`` in [0, 1]. On a stream of whole tasks, tasks still
    arrive as pieces of their old sizes; every row keeps the task that it came from.
    """
    _fraction("blur", "width", width)
    if stream.base.task_aware:
        raise UserError("operator=blur mixes tasks within an arrival; use it on a stream that hides task labels")
    draws = generator(seed, "blur")
    sizes = torch.bincount(stream.segment)[stream.segment]
    offset = (torch.rand(len(sizes), generator=draws) - torch.rand(len(sizes), generator=draws)) * width * sizes
    order = (torch.arange(len(sizes)) + offset).argsort(stable=True)
    return replace(_only(stream, order), segment=stream.segment, base=replace(stream.base, boundaries=False))


DRIFTS = ("abrupt", "gradual", "recurring")


def drift(
    stream: IndexStream, kind: str = "abrupt", concepts: int = 2, width: float = 0.2, seed: int = 0
) -> IndexStream:
    """Concept drift: what a label means changes. Each concept permutes the classes, the first one leaves them.

    ``abrupt``: the stream is cut into ``concepts`` equal stretches of one concept each. ``gradual``: around each
    cut, over a ``width`` share of a stretch, the probability of the new concept rises linearly from 0 to 1.
    ``recurring``: 2 * ``concepts`` stretches cycle through the concepts.
    Concepts become the tasks: there is one set of probes for each, with the labels that are true in it.
    """
    if kind not in DRIFTS:
        raise UserError(f"operator.drift.kind='{kind}' is unknown{nearest(kind, DRIFTS)}")
    if concepts < 2:
        raise UserError(f"operator.drift.concepts={concepts} must be at least 2")
    _fraction("drift", "width", width)
    draws = generator(seed, "drift")
    n, classes = len(stream.ids), stream.base.n_classes
    stretches = 2 * concepts if kind == "recurring" else concepts
    if n < stretches:
        raise UserError(f"operator.drift.concepts={concepts} needs at least {stretches} rows, got {n}")
    position = torch.arange(n) * stretches / n
    if kind == "gradual":
        position = (position + (torch.rand(n, generator=draws) - 0.5) * width).clamp(0, stretches - 1e-6)
    stretch = position.long()
    concept = stretch % concepts
    meaning = torch.stack([_meaning(classes, c, draws) for c in range(concepts)])  # (concepts, C)
    every = [torch.cat(column) for column in zip(*((p.ids, p.y) for p in stream.probes), strict=True)]
    probes = tuple(IndexRows(stream.inputs, every[0], meaning[c][every[1]]) for c in range(concepts)) if every else ()
    segment = torch.arange(n) * stretches // n
    hidden = replace(stream.base, boundaries=stream.base.boundaries and kind != "gradual")
    return replace(
        stream, base=hidden, y=meaning[concept, stream.y], task=concept, segment=segment, probes=probes
    )


def _meaning(classes: int, concept: int, draws: torch.Generator) -> Tensor:
    """(C,) the label that each class has in a concept: a cyclic shift of a random order, so that every label moves."""
    order = torch.randperm(classes, generator=draws)
    if concept == 0:
        return torch.arange(classes)
    moved = torch.empty(classes, dtype=torch.int64)
    moved[order] = order.roll(1)
    return moved


def _only(stream: IndexStream, rows: Tensor) -> IndexStream:
    """The stream with the rows at positions ``rows``, in that order."""
    labelled = None if stream.labelled is None else stream.labelled[rows]
    return replace(
        stream,
        ids=stream.ids[rows],
        y=stream.y[rows],
        task=stream.task[rows],
        segment=stream.segment[rows],
        labelled=labelled,
    )


def _fraction(operator: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"operator.{operator}.{name}={value} must be in [0, 1]")
