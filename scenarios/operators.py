"""Functions IndexStream -> IndexStream that make any stream harder; they compose in the order listed.

Probes keep their true labels (``drift`` apart, which changes what is true). Each draws from a generator of its own.
"""

from dataclasses import replace

import torch
from torch import Tensor

from continual.errors import UserError, nearest
from continual.seeding import generator
from scenarios.stream import IndexRows, IndexStream, entries


def noise(stream: IndexStream, rate: float = 0.2, seed: int = 0) -> IndexStream:
    """Label noise: with probability ``rate``, in [0, 1], a label is replaced by another class, uniformly.

    It is another class of the same task, so that noise tells nothing about other tasks; where a task has one class
    only, another class of the stream.
    """
    _fraction("noise", "rate", rate)
    draws = generator(seed, "operator", "noise")
    task, y = stream.task.long(), stream.y.long()
    present = torch.zeros(int(task.max()) + 1, stream.base.n_classes, dtype=torch.bool)
    present[task, y] = True  # (T, C): classes of each task
    present[present.sum(1) == 1] = present.any(0)
    n = present.sum(1)[task]  # (N,) classes of a row's task, at least 2
    if int(n.min()) < 2:
        raise UserError("operator=noise needs a stream of at least 2 classes; there is no other class to draw")
    place = (present.cumsum(1) - 1)[task, y]  # (N,) of the row's class among these
    step = 1 + (torch.rand(len(n), generator=draws, dtype=torch.float64) * (n - 1)).long()  # 1..n-1: never the same
    classes = (~present).long().argsort(dim=1, stable=True)  # (T, C): those of the task first
    other = classes[task, (place + step) % n]
    wrong = torch.rand(len(n), generator=draws) < rate
    return replace(stream, y=torch.where(wrong, other, y))


def delay(stream: IndexStream, rows: int = 100) -> IndexStream:
    """Label delay: a row is asked about when it arrives, and its label is told when ``rows`` more have arrived.

    ``rows`` >= 1. The labels still owed when the stream ends come in one last experience.
    """
    if rows < 1:
        raise UserError(f"operator.delay.rows={rows} must be at least 1")
    if stream.arrival_rows is None:
        raise UserError("operator=delay needs an online stream; set scenario.arrival_rows, e.g. to 10")
    _hides_tasks(stream, "delay", "mixes tasks within an arrival")
    return replace(stream, delay=stream.delay + rows)


def missing(stream: IndexStream, rate: float = 0.5, seed: int = 0) -> IndexStream:
    """Missing labels: with probability ``rate`` the label of a row is never told; the row is still asked about.

    ``rate`` in [0, 1]; each task must keep a label.
    """
    _fraction("missing", "rate", rate)
    kept = torch.rand(len(stream.ids), generator=generator(seed, "operator", "missing")) >= rate
    return replace(stream, labelled=kept if stream.labelled is None else kept & stream.labelled)


def imbalance(stream: IndexStream, ratio: float = 10.0, seed: int = 0) -> IndexStream:
    """Long-tailed classes: class of rank r keeps a share ratio^(-r / (C - 1)) of its rows, ranks drawn by the seed.

    The most common class keeps all, the rarest 1 / ``ratio`` of its rows and at least one. ``ratio`` >= 1.
    Cui et al. 2019, https://arxiv.org/abs/1901.05555
    """
    if not ratio >= 1:
        raise UserError(f"operator.imbalance.ratio={ratio} must be at least 1")
    draws = generator(seed, "operator", "imbalance")
    classes = torch.bincount(stream.y).nonzero()[:, 0]  # that arrive
    rank = torch.randperm(len(classes), generator=draws).double()
    share = torch.zeros(stream.base.n_classes, dtype=torch.float64)
    share[classes] = ratio ** (-rank / max(len(classes) - 1, 1))
    kept = _some(stream.y.long(), share, draws).sort().values
    if not torch.bincount(stream.position[kept], minlength=len(stream.sizes)).all():
        raise UserError(f"operator.imbalance.ratio={ratio} leaves a task without rows; lower it, or use fewer tasks")
    return _only(stream, kept, stream.segment[kept])


def repeat(stream: IndexStream, laps: int = 2, share: float = 1.0, seed: int = 0) -> IndexStream:
    """Repetition: the whole sequence of tasks comes ``laps`` times, after the first lap with a ``share`` of its rows.

    ``laps`` >= 1, ``share`` in (0, 1]. Each further lap draws its rows anew, at least one of each task, and shuffles
    them within the task.
    """
    if laps < 1:
        raise UserError(f"operator.repeat.laps={laps} must be at least 1")
    if not 0 < share <= 1:
        raise UserError(f"operator.repeat.share={share} must be in (0, 1]")
    draws = generator(seed, "operator", "repeat")
    shares = torch.full((len(stream.sizes),), share, dtype=torch.float64)
    lap_rows = [torch.arange(len(stream.ids)), *(_some(stream.position, shares, draws) for _ in range(1, laps))]
    segments = [stream.position[rows] + lap * len(shares) for lap, rows in enumerate(lap_rows)]
    return _only(stream, torch.cat(lap_rows), torch.cat(segments))


def blur(stream: IndexStream, width: float = 0.2, seed: int = 0) -> IndexStream:
    """Blurry boundaries: within ``width`` (a share of a task's rows) of a boundary, rows of both tasks mix.

    Each row's place is moved by a triangular random offset of at most d = ``width`` times the size of the smaller
    of the two tasks at the boundary it moves towards; t d away from it, (1 - t)^2 / 2 of the rows are then the
    other task's. Boundaries are hidden from then on. ``width`` in [0, 1]. On a stream of whole tasks, tasks still
    arrive as pieces of their old sizes; every row keeps the task it came from.
    """
    _fraction("blur", "width", width)
    _hides_tasks(stream, "blur", "mixes tasks within an arrival")
    if len(stream.sizes) < 2:
        raise UserError("operator=blur needs a boundary; the stream has one task only")
    draws, n = generator(seed, "operator", "blur"), len(stream.ids)
    smaller = torch.minimum(stream.sizes[1:], stream.sizes[:-1])  # (S - 1,) at each boundary
    before = torch.cat([smaller[:1], smaller])[stream.position]  # (N,); the ends of the stream mix with nothing
    after = torch.cat([smaller, smaller[-1:]])[stream.position]
    offset = torch.rand(n, generator=draws) - torch.rand(n, generator=draws)  # triangular on (-1, 1)
    reach = width * torch.where(offset < 0, before, after)
    order = (torch.arange(n) + (offset * reach).double()).argsort(stable=True)
    return replace(_only(stream, order, stream.segment), base=replace(stream.base, boundaries=False))


DRIFTS = ("abrupt", "gradual", "recurring")


def drift(
    stream: IndexStream, kind: str = "abrupt", concepts: int = 2, width: float = 0.2, cycles: int = 2, seed: int = 0
) -> IndexStream:
    """Concept drift: what a label means changes, while the inputs stay.

    Concept c moves each class c places on in a random cycle of all classes: the first one leaves them, and no two
    agree on a label. ``abrupt``: the stream is cut into ``concepts`` equal stretches of one concept each.
    ``gradual``: around each cut, over a ``width`` share of a stretch, the probability of the new concept rises
    linearly from 0 to 1, and boundaries are hidden. ``recurring``: the concepts come ``cycles`` times in turn.
    Concepts become the tasks: there is one set of probes for each, with the labels that are true in it.

    Args:
        stream: best one whose classes come all the time (``scenario.kind=data``, ``scenario=prequential``).
        kind: ``abrupt``, ``gradual`` or ``recurring``.
        concepts: in [2, n_classes].
        width: of a gradual change, in [0, 1].
        cycles: of recurring concepts, >= 1.
        seed: of the run.
    """
    if kind not in DRIFTS:
        raise UserError(f"operator.drift.kind='{kind}' is unknown{nearest(kind, DRIFTS)}")
    if not 2 <= concepts <= stream.base.n_classes:
        bounds = f"at least 2 and at most the {stream.base.n_classes} classes"
        raise UserError(f"operator.drift.concepts={concepts} must be {bounds}")
    if cycles < 1:
        raise UserError(f"operator.drift.cycles={cycles} must be at least 1")
    _fraction("drift", "width", width)
    _hides_tasks(stream, "drift", "replaces tasks by concepts")
    n, stretches = len(stream.ids), concepts * (cycles if kind == "recurring" else 1)
    if n < stretches:
        raise UserError(f"operator.drift.concepts={concepts} needs at least {stretches} rows, got {n}")
    draws = generator(seed, "operator", "drift")
    meaning = _meanings(stream.base.n_classes, concepts, draws)  # (concepts, C)
    segment = stretch = torch.arange(n) * stretches // n
    if kind == "gradual":
        moved = torch.arange(n) * (stretches / n) + (torch.rand(n, generator=draws, dtype=torch.float64) - 0.5) * width
        stretch = moved.long().clamp(0, stretches - 1)
    concept = stretch % concepts
    return replace(
        stream,
        base=replace(stream.base, boundaries=stream.base.boundaries and kind != "gradual"),
        y=meaning[concept, stream.y.long()],
        task=concept,
        segment=segment,
        probes=_relabelled(stream, meaning),
    )


def _meanings(classes: int, concepts: int, draws: torch.Generator) -> Tensor:
    """(concepts, C) the label of each class in each concept: rows of a Latin square, the first in order."""
    cycle = torch.randperm(classes, generator=draws)
    return cycle[(cycle.argsort() + torch.arange(concepts)[:, None]) % classes]


def _relabelled(stream: IndexStream, meaning: Tensor) -> tuple[IndexRows, ...]:
    """All test rows once for each concept, with the labels that are true in it."""
    if not stream.probes:
        return ()
    ids, y = torch.cat([p.ids for p in stream.probes]), torch.cat([p.y for p in stream.probes])
    return tuple(IndexRows(stream.inputs, ids, labels[y.long()]) for labels in meaning)


def _some(group: Tensor, share: Tensor, draws: torch.Generator) -> Tensor:
    """Random positions, group after group: of group g's n rows round(share[g] * n), at least one."""
    order = torch.randperm(len(group), generator=draws)
    order = order[group[order].argsort(stable=True)]  # each group's rows together, shuffled
    sizes = torch.bincount(group, minlength=len(share))
    place = torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group[order]]  # of each row within its group
    wanted = (sizes * share).round().clamp_min(1)
    return order[place < wanted[group[order]]]


def _only(stream: IndexStream, rows: Tensor, segment: Tensor) -> IndexStream:
    """The stream with the rows at positions ``rows`` (n,), in that order, in the segments ``segment`` (n,)."""
    labelled = None if stream.labelled is None else stream.labelled[rows]
    return replace(
        stream,
        ids=entries(stream.ids, rows),
        y=stream.y[rows],
        task=stream.task[rows],
        segment=segment,
        labelled=labelled,
    )


def _fraction(operator: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"operator.{operator}.{name}={value} must be in [0, 1]")


def _hides_tasks(stream: IndexStream, operator: str, why: str) -> None:
    if stream.base.task_aware:
        raise UserError(f"operator={operator} {why}; use it on a stream that hides task labels")
