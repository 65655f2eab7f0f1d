"""Streams that deal the rows of one source out over tasks: class-, task-, domain- and data-incremental."""

import torch
from torch import Tensor

from continual.errors import UserError, nearest
from continual.seeding import generator
from continual.types import Spec
from scenarios.sources.base import Source
from scenarios.stream import IndexRows, IndexStream

KINDS = ("class", "task", "domain", "data")


def split(
    source: Source,
    n_tasks: int = 5,
    kind: str = "class",
    shuffle_classes: bool = True,
    rows_per_task: int | None = None,
    arrival_rows: int | None = None,
    seed: int = 0,
) -> IndexStream:
    """Deal the rows of ``source`` out over ``n_tasks`` tasks.

    ``class``: each task brings new classes, and the learner never sees a task label. ``task``: the same with the
    label told. ``domain``: the same rows with labels 0..C/T-1 within each task, so that the input shifts and
    the label set stays. ``data``: every class in every task, rows dealt out at random.

    Args:
        source: labelled rows.
        n_tasks: T >= 1; divides the number of classes, unless ``kind`` is ``data``.
        kind: ``class``, ``task``, ``domain`` or ``data``.
        shuffle_classes: whether the seed decides which classes come when; else in order of their numbers.
        rows_per_task: at most so many training rows of each task; None for all.
        arrival_rows: rows per arrival (an online stream hides its boundaries); None for whole tasks.
        seed: of the run.
    """
    if kind not in KINDS:
        raise UserError(f"scenario.kind='{kind}' is unknown{nearest(kind, KINDS)}")
    if n_tasks < 1:
        raise UserError(f"scenario.n_tasks={n_tasks} must be at least 1")
    order = torch.arange(source.n_classes)
    if shuffle_classes:
        order = order[torch.randperm(source.n_classes, generator=generator(seed, "classes"))]
    per_task = source.n_classes if kind == "data" else _divide(source.n_classes, n_tasks)
    rank = order.argsort()[source.y]  # (N,) place of each row's class in the order
    task = _dealt(len(source.y), n_tasks, seed) if kind == "data" else rank // per_task
    labels = rank % per_task if kind == "domain" else source.y
    ids = in_tasks(task[: source.n_train], n_tasks, rows_per_task, seed)
    tests = [rows + source.n_train for rows in by_task(task[source.n_train :], n_tasks)]
    return IndexStream(
        base=Spec(
            in_shape=source.in_shape,
            n_classes=per_task if kind == "domain" else source.n_classes,
            dtype=source.dtype,
            input_range=source.input_range,
            task_aware=kind == "task",
        ),
        inputs=source,
        ids=ids,
        y=labels[ids],
        task=task[ids],
        segment=task[ids],
        probes=tuple(IndexRows(source, rows, labels[rows]) for rows in tests),
        arrival_rows=arrival_rows,
    )


def by_task(task: Tensor, n_tasks: int) -> list[Tensor]:
    """Positions of the rows of each task; every task must have one."""
    rows = [(task == t).nonzero()[:, 0] for t in range(n_tasks)]
    empty = [t for t, found in enumerate(rows) if not len(found)]
    if empty:
        raise UserError(
            f"task {empty[0] + 1} of {n_tasks} has no rows to train or test on; use fewer tasks (scenario.n_tasks)"
        )
    return rows


def in_tasks(task: Tensor, n_tasks: int, rows_per_task: int | None, seed: int) -> Tensor:
    """(N,) positions task after task, shuffled within each by the seed, at most ``rows_per_task`` of each."""
    if rows_per_task is not None and rows_per_task < 1:
        raise UserError(f"scenario.rows_per_task={rows_per_task} must be at least 1, or null for all")
    draws = generator(seed, "rows")
    shuffled = [rows[torch.randperm(len(rows), generator=draws)] for rows in by_task(task, n_tasks)]
    return torch.cat([rows[:rows_per_task] for rows in shuffled])


def _dealt(rows: int, n_tasks: int, seed: int) -> Tensor:
    """(rows,) a task for each row, all of equal size up to one row."""
    return torch.randperm(rows, generator=generator(seed, "deal")) % n_tasks


def _divide(n_classes: int, n_tasks: int) -> int:
    if n_classes % n_tasks:
        divisors = [str(n) for n in range(1, n_classes + 1) if n_classes % n == 0]
        raise UserError(
            f"scenario.n_tasks={n_tasks} does not divide the {n_classes} classes; use one of {', '.join(divisors)}"
        )
    return n_classes // n_tasks
