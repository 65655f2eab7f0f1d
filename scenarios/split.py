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

    ``class``: each task brings C/T new classes, and the learner never sees a task label. ``task``: the same with
    the label told. ``domain``: the same rows with labels 0..C/T-1 within each task, so that the input shifts and
    the label set stays. ``data``: the rows of every class are dealt out evenly over all tasks.

    Args:
        source: labelled rows of C classes.
        n_tasks: T >= 1; divides C, unless ``kind`` is ``data``; at most C / 2 if ``kind`` is ``domain``.
        kind: ``class``, ``task``, ``domain`` or ``data``.
        shuffle_classes: whether the seed decides which classes come when; else in order of their numbers.
        rows_per_task: at most so many training rows of each task, drawn by the seed; None for all.
        arrival_rows: rows per arrival (an online stream hides its boundaries); None for whole tasks.
        seed: of the run.

    Raises:
        UserError: a bad argument; a task without training rows or without test rows.
    """
    per_task = _classes_per_task(source.n_classes, n_tasks, kind)
    y = source.y.long()
    rank = _class_order(source.n_classes, shuffle_classes, seed).argsort()[y]  # (N,) place of a row's class
    task = _dealt(y, source.n_train, n_tasks, seed) if kind == "data" else rank // per_task
    labels = rank % per_task if kind == "domain" else y
    ids = _shuffled(by_task(task[: source.n_train], n_tasks, "training"), rows_per_task, seed)
    probes = by_task(task[source.n_train :], n_tasks, "test")
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
        probes=tuple(IndexRows(source, rows, labels[rows]) for rows in (p + source.n_train for p in probes)),
        arrival_rows=arrival_rows,
    )


def by_task(task: Tensor, n_tasks: int, part: str) -> tuple[Tensor, ...]:
    """Positions of the rows of each task, ascending; every task must have a row in this ``part`` of the data."""
    sizes = torch.bincount(task, minlength=n_tasks)
    empty = (sizes == 0).nonzero()[:, 0].tolist()
    if len(empty) == n_tasks:
        raise UserError(f"the source has no {part} rows; give it a test_fraction above 0 and below 1")
    if empty:
        raise UserError(f"task {empty[0] + 1} of {n_tasks} has no {part} rows; use fewer tasks (scenario.n_tasks)")
    return torch.split(task.argsort(stable=True), sizes.tolist())


def check_counts(n_tasks: int, rows_per_task: int | None) -> None:
    """Refuse a number of tasks or of rows per task below 1."""
    if n_tasks < 1:
        raise UserError(f"scenario.n_tasks={n_tasks} must be at least 1")
    if rows_per_task is not None and rows_per_task < 1:
        raise UserError(f"scenario.rows_per_task={rows_per_task} must be at least 1, or null for all")


def _shuffled(tasks: tuple[Tensor, ...], rows_per_task: int | None, seed: int) -> Tensor:
    """(N,) positions task after task, shuffled within each by the seed, at most ``rows_per_task`` of each."""
    check_counts(len(tasks), rows_per_task)
    draws = generator(seed, "rows")
    return torch.cat([rows[torch.randperm(len(rows), generator=draws)[:rows_per_task]] for rows in tasks])


def _class_order(n_classes: int, shuffle: bool, seed: int) -> Tensor:
    return torch.randperm(n_classes, generator=generator(seed, "classes")) if shuffle else torch.arange(n_classes)


def _dealt(labels: Tensor, n_train: int, n_tasks: int, seed: int) -> Tensor:
    """(N,) a task for each row: those of a class go round the tasks like cards, training and test rows apart."""
    draws = generator(seed, "deal")
    task = torch.empty_like(labels)
    for part in (slice(0, n_train), slice(n_train, len(labels))):
        y, own = labels[part], task[part]
        order = torch.randperm(len(y), generator=draws)
        order = order[y[order].argsort(stable=True)]  # class after class, each shuffled
        own[order] = torch.arange(len(y)) % n_tasks
    return task


def _classes_per_task(n_classes: int, n_tasks: int, kind: str) -> int:
    if kind not in KINDS:
        raise UserError(f"scenario.kind='{kind}' is unknown{nearest(kind, KINDS)}")
    check_counts(n_tasks, None)
    if kind == "data":
        return n_classes
    if n_classes % n_tasks:
        divisors = ", ".join(str(n) for n in range(1, n_classes + 1) if n_classes % n == 0)
        raise UserError(f"scenario.n_tasks={n_tasks} does not divide the {n_classes} classes; use one of {divisors}")
    if kind == "domain" and n_tasks == n_classes:
        raise UserError(f"scenario.n_tasks={n_tasks} leaves a domain-incremental task 1 class; use fewer tasks")
    return n_classes // n_tasks
