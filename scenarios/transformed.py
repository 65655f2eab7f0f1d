"""Domain-incremental streams whose tasks see the same rows through another transform each: permuted, rotated, corrupted.

Nothing is stored per task but its number: a row's id is ``task * rows + row``, and the transform
is applied when the row is fetched. 1,000 tasks cost what 10 cost, beyond their indices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from continual.errors import UserError, nearest
from continual.seeding import derive, generator
from continual.types import Spec
from scenarios.sources.base import Source
from scenarios.split import in_tasks
from scenarios.stream import IndexRows, IndexStream

Transform = Callable[[Tensor, Tensor, int], Tensor]
"""(x (B, *in_shape), row ids (B,), task) -> x (B, *in_shape) in the same dtype."""


@dataclass(frozen=True)
class Transformed:
    """The rows of ``source`` as each task sees them, by id ``task * n_rows + row``."""

    source: Source
    transform: Transform
    name: str

    def fetch(self, ids: Tensor) -> Tensor:
        n_rows = len(self.source.y)
        rows, tasks = ids % n_rows, ids // n_rows
        x = self.source.fetch(rows)
        for task in tasks.unique().tolist():
            chosen = (tasks == task).nonzero()[:, 0]
            if len(chosen) == len(ids):
                return self.transform(x, rows, task)
            x[chosen] = self.transform(x[chosen], rows[chosen], task)
        return x

    def digest(self) -> str:
        return f"{self.source.digest()} {self.name}"


def permuted(
    source: Source,
    n_tasks: int = 10,
    permute_first: bool = False,
    task_aware: bool = False,
    rows_per_task: int | None = None,
    arrival_rows: int | None = None,
    seed: int = 0,
) -> IndexStream:
    """Each task sees the inputs' components in another order, drawn by the seed.

    Args:
        source: labelled rows.
        n_tasks: >= 1.
        permute_first: whether the first task is permuted too.
        task_aware: whether the learner is told the task.
        rows_per_task: at most so many training rows of each task, drawn anew for each; None for all.
        arrival_rows: rows per arrival; None for whole tasks.
        seed: of the run.
    """

    @lru_cache(maxsize=16)
    def order(task: int) -> Tensor:
        return torch.randperm(prod(source.in_shape), generator=generator(seed, "permutation", task))

    def transform(x: Tensor, rows: Tensor, task: int) -> Tensor:
        if task == 0 and not permute_first:
            return x
        return x.flatten(1).index_select(1, order(task)).view_as(x)

    name = f"permuted {seed} {permute_first}"
    return _tasks(source, transform, name, n_tasks, task_aware, rows_per_task, arrival_rows, seed)


def rotated(
    source: Source,
    n_tasks: int = 5,
    max_degrees: float = 180.0,
    task_aware: bool = False,
    rows_per_task: int | None = None,
    arrival_rows: int | None = None,
    seed: int = 0,
) -> IndexStream:
    """Task t sees images turned by t * max_degrees / n_tasks, counter-clockwise, bilinear, zeros outside.

    The other arguments are those of ``permuted``; ``max_degrees`` in (0, 360].
    """
    _need_images(source, "rotated")
    if not 0 < max_degrees <= 360:
        raise UserError(f"scenario.max_degrees={max_degrees} must be in (0, 360]")

    def transform(x: Tensor, rows: Tensor, task: int) -> Tensor:
        angle = torch.deg2rad(torch.tensor(task * max_degrees / n_tasks))
        if task == 0:
            return x
        cos, sin = torch.cos(angle), torch.sin(angle)
        turn = torch.stack([torch.stack([cos, -sin, cos * 0]), torch.stack([sin, cos, cos * 0])])
        grid = affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return _like(grid_sample(x.float(), grid, align_corners=False), x)

    name = f"rotated {max_degrees / n_tasks}"
    return _tasks(source, transform, name, n_tasks, task_aware, rows_per_task, arrival_rows, seed)


CORRUPTIONS = ("none", "noise", "blur", "contrast", "invert", "occlude")


def corrupted(
    source: Source,
    corruptions: tuple[str, ...] = CORRUPTIONS,
    strength: float = 0.5,
    task_aware: bool = False,
    rows_per_task: int | None = None,
    arrival_rows: int | None = None,
    seed: int = 0,
) -> IndexStream:
    """One task per entry of ``corruptions``, each of one ``strength`` in [0, 1] of the inputs' range.

    ``noise``: Gaussian noise of that standard deviation, fixed for each row. ``blur``: mixed with its 3x3 mean.
    ``contrast``: drawn towards the image's mean. ``invert``: mixed with its negative (0.5 leaves plain grey).
    ``occlude``: a square of that share of each side at a place fixed for each row is blanked.
    The other arguments are those of ``permuted``.
    """
    _need_images(source, "corrupted")
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise UserError(f"scenario.corruptions has '{name}', which is unknown{nearest(name, CORRUPTIONS)}")
    if not 0 <= strength <= 1:
        raise UserError(f"scenario.strength={strength} must be in [0, 1]")
    low, high = (0.0, 255.0) if source.dtype == torch.uint8 else source.input_range
    bank = torch.randn(64, *source.in_shape, generator=generator(seed, "noise"))  # row r takes noise r mod 64

    def transform(x: Tensor, rows: Tensor, task: int) -> Tensor:
        changed = _corrupt(corruptions[task], x.float(), rows, strength, (low, high), bank)
        return _like(changed.clamp(low, high), x)

    name = f"corrupted {seed} {corruptions} {strength}"
    return _tasks(source, transform, name, len(corruptions), task_aware, rows_per_task, arrival_rows, seed)


def _corrupt(
    kind: str, x: Tensor, rows: Tensor, strength: float, bounds: tuple[float, float], bank: Tensor
) -> Tensor:
    low, high = bounds
    match kind:
        case "noise":
            return x + strength * (high - low) * bank[rows % len(bank)]
        case "blur":
            return x.lerp(avg_pool2d(x, 3, stride=1, padding=1), strength)
        case "contrast":
            return x.lerp(x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x), strength)
        case "invert":
            return x.lerp(low + high - x, strength)
        case "occlude":
            return x.masked_fill(_squares(x, rows, strength), low)
        case _:
            return x


def _squares(x: Tensor, rows: Tensor, share: float) -> Tensor:
    """(B, 1, H, W) bool: a square of ``share`` of each side, its corner fixed by the row's id."""
    height, width = x.shape[2:]
    tall, wide = round(share * height), round(share * width)
    top = (rows * 7919) % (height - tall + 1)
    left = (rows * 104729) % (width - wide + 1)
    down, across = torch.arange(height)[:, None], torch.arange(width)[None]
    inside_down = (down >= top[:, None, None]) & (down < top[:, None, None] + tall)
    inside_across = (across >= left[:, None, None]) & (across < left[:, None, None] + wide)
    return (inside_down & inside_across)[:, None]


def _tasks(
    source: Source,
    transform: Transform,
    name: str,
    n_tasks: int,
    task_aware: bool,
    rows_per_task: int | None,
    arrival_rows: int | None,
    seed: int,
) -> IndexStream:
    if n_tasks < 1:
        raise UserError(f"scenario.n_tasks={n_tasks} must be at least 1")
    inputs = Transformed(source, transform, name)
    n_rows, every = len(source.y), torch.zeros(source.n_train, dtype=torch.int64)
    rows = [in_tasks(every, 1, rows_per_task, derive(seed, "task", t)) for t in range(n_tasks)]
    tests = torch.arange(source.n_train, n_rows)
    if not len(tests):
        raise UserError("the source has no test rows to probe with; give it a test_fraction above 0")
    task = torch.cat([torch.full((len(r),), t) for t, r in enumerate(rows)])
    row = torch.cat(rows)
    return IndexStream(
        base=Spec(source.in_shape, source.n_classes, source.dtype, source.input_range, task_aware),
        inputs=inputs,
        ids=task * n_rows + row,
        y=source.y[row],
        task=task,
        segment=task,
        probes=tuple(IndexRows(inputs, t * n_rows + tests, source.y[tests]) for t in range(n_tasks)),
        arrival_rows=arrival_rows,
    )


def _need_images(source: Source, scenario: str) -> None:
    if len(source.in_shape) != 3:
        raise UserError(
            f"scenario={scenario} needs images of shape (channels, height, width), "
            f"and this source has rows of shape {source.in_shape}; use scenario=permuted"
        )


def _like(x: Tensor, original: Tensor) -> Tensor:
    return x.round().to(torch.uint8) if original.dtype == torch.uint8 else x.to(original.dtype)
