"""Domain-incremental streams whose tasks see the same rows each through a transform: permuted, rotated, corrupted.

Nothing is stored per task but its number: a row's id is ``task * rows + row``, and the transform
is applied when the row is fetched. 1,000 tasks cost what 10 cost, beyond their indices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import cos, prod, radians, sin

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from continual.errors import UserError, nearest
from continual.seeding import generator
from continual.types import Spec
from scenarios.sources.base import Source, smallest
from scenarios.split import check_counts
from scenarios.stream import IndexRows, IndexStream

Transform = Callable[[Tensor, Tensor, int], Tensor]
"""(x (B, *in_shape), row ids (B,), task) -> x (B, *in_shape) in the same dtype; it may write to x."""


@dataclass(frozen=True, eq=False)
class Transformed:
    """The rows of ``source`` as each task sees them, by id ``task * n_rows + row``; ``name`` tells the transform."""

    source: Source
    transform: Transform
    name: str

    def fetch(self, ids: Tensor) -> Tensor:
        n_rows = len(self.source.y)
        rows, tasks = ids % n_rows, ids // n_rows
        x = self.source.fetch(rows)
        present = sorted(set(tasks.tolist()))
        if len(present) == 1:  # a batch of one task, the usual case
            return self.transform(x, rows, present[0])
        for task in present:
            chosen = (tasks == task).nonzero()[:, 0]
            x[chosen] = self.transform(x[chosen], rows[chosen], task)
        return x

    @property
    def expect(self) -> Callable[[Tensor], None] | None:
        expect: Callable[[Tensor], None] | None = getattr(self.source, "expect", None)
        return None if expect is None else lambda ids: expect(ids % len(self.source.y))

    def digest(self) -> str:
        return f"{self.source.digest()} {self.name}"


def permuted(
    source: Source,
    n_tasks: int = 10,
    permute_first: bool = False,
    task_aware: bool = False,
    rows_per_task: int | None = None,
    same_rows: bool = False,
    probes: bool = True,
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
        same_rows: whether these are drawn once, and only their order is new in each task.
        probes: whether each task has test rows; hundreds of tasks are rather predicted before they are learned.
        arrival_rows: rows per arrival; None for whole tasks.
        seed: of the run.

    Raises:
        UserError: a bad argument; a source without test rows, unless there are to be no ``probes``.
    """

    @lru_cache(maxsize=16)
    def order(task: int) -> Tensor:
        return torch.randperm(prod(source.in_shape), generator=generator(seed, "permutation", task))

    def transform(x: Tensor, _: Tensor, task: int) -> Tensor:
        if task == 0 and not permute_first:
            return x
        return rearranged(x, order(task))

    name = f"permuted {seed} {permute_first}"
    arguments = (n_tasks, task_aware, rows_per_task, arrival_rows, seed)
    return _tasks(source, transform, name, *arguments, same_rows=same_rows, probes=probes)


def rearranged(x: Tensor, order: Tensor) -> Tensor:
    """Rows (B, *in_shape) with their components (D of each) in another ``order`` (D,), in fresh memory."""
    rows = x.view(torch.int16) if x.dtype == torch.bfloat16 else x  # which numpy does not know
    columns = rows.flatten(1).numpy().take(order.numpy(), axis=1)  # index_select took three times as long
    return torch.from_numpy(columns).view(x.dtype).view_as(x)


def rotated(
    source: Source,
    n_tasks: int = 5,
    max_degrees: float = 180.0,
    task_aware: bool = False,
    rows_per_task: int | None = None,
    arrival_rows: int | None = None,
    seed: int = 0,
) -> IndexStream:
    """Task t sees images turned by t * max_degrees / n_tasks, see ``rotate``.

    The other arguments and errors are those of ``permuted``; ``max_degrees`` in (0, 360].
    """
    low, _ = _image_range(source, "rotated")
    if not 0 < max_degrees <= 360:
        raise UserError(f"scenario.max_degrees={max_degrees} must be in (0, 360]")

    def transform(x: Tensor, _: Tensor, task: int) -> Tensor:
        return _like(rotate(x.float(), task * max_degrees / n_tasks, low), x) if task else x

    name = f"rotated {max_degrees} {n_tasks}"
    return _tasks(source, transform, name, n_tasks, task_aware, rows_per_task, arrival_rows, seed)


def rotate(x: Tensor, degrees: float, outside: float = 0.0) -> Tensor:
    """Images (B, C, H, W) turned counter-clockwise about their centre, bilinear; ``outside`` what comes in from there.

    Pixels are squares: an image that is not square is cut off, not squeezed.
    """
    height, width = x.shape[2:]
    c, s = cos(radians(degrees)), sin(radians(degrees))
    turn = torch.tensor([[c, -s * height / width, 0.0], [s * width / height, c, 0.0]])  # in units of half the sides
    grid = affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return grid_sample(x - outside, grid, align_corners=False) + outside


CORRUPTIONS = ("none", "noise", "blur", "contrast", "invert", "occlude")
NOISES = 65521  # windows into one long noise vector: prime, so that rows do not meet in the same one


def corrupted(
    source: Source,
    corruptions: Sequence[str] = CORRUPTIONS,
    strength: float = 0.5,
    task_aware: bool = False,
    rows_per_task: int | None = None,
    arrival_rows: int | None = None,
    seed: int = 0,
) -> IndexStream:
    """One task per entry of ``corruptions``, each of one ``strength`` in [0, 1]; at 0 images stay as they are.

    ``none``: as they are. ``noise``: Gaussian noise of ``strength`` times the inputs' range, fixed for each row.
    ``blur``: drawn towards the mean of 3x3 pixels. ``contrast``: drawn towards the image's mean, which is
    all that is left at 1. ``invert``: the negative, at any strength above 0. ``occlude``: a square of that share of
    each side, at a place fixed for each row, is blanked. uint8 images stay in 0..255; floating ones are taken
    to lie in the source's ``input_range``, which noise may leave.

    The other arguments and errors are those of ``permuted``.
    """
    low, high = _image_range(source, "corrupted")
    if not corruptions:
        raise UserError("scenario.corruptions=[] must name at least one corruption; each is a task")
    for kind in corruptions:
        if kind not in CORRUPTIONS:
            raise UserError(f"scenario.corruptions has '{kind}', which is unknown{nearest(kind, CORRUPTIONS)}")
    if not 0 <= strength <= 1:
        raise UserError(f"scenario.strength={strength} must be in [0, 1]")
    size = prod(source.in_shape)
    noises = torch.randn(NOISES + size, generator=generator(seed, "corruption")).unfold(0, size, 1)  # (NOISES + 1, D)

    def transform(x: Tensor, rows: Tensor, task: int) -> Tensor:
        kind = corruptions[task]
        return _like(corrupt(kind, x.float(), rows, strength, (low, high), noises), x) if strength else x

    name = f"corrupted {seed} {list(corruptions)} {strength}"
    return _tasks(source, transform, name, len(corruptions), task_aware, rows_per_task, arrival_rows, seed)


def corrupt(kind: str, x: Tensor, rows: Tensor, strength: float, bounds: tuple[float, float], noises: Tensor) -> Tensor:
    """Images (B, C, H, W), whose ids are ``rows`` (B,), under one of the CORRUPTIONS, see ``corrupted``.

    ``noises`` (M, C * H * W) are standard normal; a row always takes the same one of them.
    """
    low, high = bounds
    match kind:
        case "noise":
            return x + strength * (high - low) * noises[rows * 7919 % NOISES].view_as(x)
        case "blur":
            return x.lerp(avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False), strength)
        case "contrast":
            return x.lerp(x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x), strength)
        case "invert":
            return low + high - x
        case "occlude":
            return x.masked_fill(_squares(x, rows, strength), low)
        case _:
            return x


def _squares(x: Tensor, rows: Tensor, share: float) -> Tensor:
    """(B, 1, H, W) bool: a square of ``share`` of each side, its corner fixed by the row's id."""
    height, width = x.shape[2:]
    tall, wide = round(share * height), round(share * width)
    top = (rows * 7919 % (height - tall + 1))[:, None, None]  # (B, 1, 1)
    left = (rows * 104729 % (width - wide + 1))[:, None, None]
    down, across = torch.arange(height)[:, None], torch.arange(width)[None]
    return ((down >= top) & (down < top + tall) & (across >= left) & (across < left + wide))[:, None]


def _drawn(n: int, size: int | None, n_tasks: int, same: bool, draws: torch.Generator) -> Tensor:
    """(n_tasks * size,) for each task ``size`` of ``n`` rows or all: the ``same`` in another order, or new ones."""
    rows = torch.randperm(n, generator=draws)[:size] if same else torch.arange(n)
    return torch.cat([rows[torch.randperm(len(rows), generator=draws)[:size]] for _ in range(n_tasks)])


def _tasks(
    source: Source,
    transform: Transform,
    name: str,
    n_tasks: int,
    task_aware: bool,
    rows_per_task: int | None,
    arrival_rows: int | None,
    seed: int,
    same_rows: bool = False,
    probes: bool = True,
) -> IndexStream:
    check_counts(n_tasks, rows_per_task)
    inputs, n_rows = Transformed(source, transform, name), len(source.y)
    tests = torch.arange(source.n_train, n_rows)
    if probes and not len(tests):
        raise UserError("the source has no test rows; give it a test_fraction above 0 and below 1")
    y_tests = source.y[tests]
    rows = _drawn(source.n_train, rows_per_task, n_tasks, same_rows, generator(seed, "rows"))
    ids = rows.view(n_tasks, -1) + torch.arange(n_tasks)[:, None] * n_rows  # (n_tasks, rows of each)
    task = torch.arange(n_tasks, dtype=getattr(torch, smallest(n_tasks))).repeat_interleave(ids.shape[1])
    return IndexStream(
        base=Spec(source.in_shape, source.n_classes, source.dtype, source.input_range, task_aware),
        inputs=inputs,
        ids=ids.view(-1),
        y=source.y.to(getattr(torch, smallest(source.n_classes)))[rows],
        task=task,
        segment=task,
        probes=tuple(IndexRows(inputs, t * n_rows + tests, y_tests) for t in range(n_tasks if probes else 0)),
        arrival_rows=arrival_rows,
    )


def _image_range(source: Source, scenario: str) -> tuple[float, float]:
    """The lowest and the highest value of a source's images in its own dtype."""
    if len(source.in_shape) != 3 or source.dtype == torch.int64:
        raise UserError(
            f"scenario={scenario} needs images of shape (channels, height, width), uint8 or floating, and this "
            f"source has {source.dtype} rows of shape {source.in_shape}; use scenario=permuted"
        )
    return (0.0, 255.0) if source.dtype == torch.uint8 else source.input_range


def _like(x: Tensor, original: Tensor) -> Tensor:
    if original.dtype == torch.uint8:
        return x.round().clamp(0, 255).to(torch.uint8)
    return x.to(original.dtype)
