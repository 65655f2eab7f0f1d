"""Cutting rows into batches, putting rows behind a batch, and rows that are a part of others or lie in tensors."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from continual.seeding import generator
from continual.types import Batch, Rows

AHEAD = 4  # updates whose rows are read before they are needed, by sources that can


class TensorRows:
    """Rows that lie in two tensors: ``x`` (N, *in_shape), ``y`` (N,); a row's id is its position."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor) -> Batch:
        n = len(indices)
        weight = torch.full((n,), 1 / max(n, 1), dtype=torch.promote_types(self.x.dtype, torch.float32))
        return Batch(self.x[indices], self.y[indices], weight, n, {"id": indices})

    def fetch(self, ids: Tensor) -> Tensor:
        return self.x[ids]


class Part:
    """The rows of ``rows`` at ``positions`` (n,), in their order."""

    def __init__(self, rows: Rows, positions: Tensor) -> None:
        self.rows, self.positions = rows, positions

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, indices: Tensor) -> Batch:
        return self.rows.take(self.positions[indices])

    @property
    def expect(self) -> Callable[[Tensor], None] | None:
        expect: Callable[[Tensor], None] | None = getattr(self.rows, "expect", None)
        return None if expect is None else lambda indices: expect(self.positions[indices])

    def fetch(self, ids: Tensor) -> Tensor:
        return self.rows.fetch(ids)


class Joined:
    """The rows of several ``parts`` of one stream, one part after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self.borders = torch.tensor([0, *map(len, parts)]).cumsum(0)  # (P + 1,)

    def __len__(self) -> int:
        return int(self.borders[-1])

    def take(self, indices: Tensor) -> Batch:
        pieces = [part.take(own) for part, own in self._cut(indices)]
        extra = {name: torch.cat([piece.extra[name] for piece in pieces]) for name in pieces[0].extra}
        x, y, n = torch.cat([piece.x for piece in pieces]), torch.cat([piece.y for piece in pieces]), len(indices)
        return Batch(x, y, torch.full((n,), 1 / n), n, extra)

    @property
    def expect(self) -> Callable[[Tensor], None] | None:
        return self._expect if any(getattr(part, "expect", None) for part in self.parts) else None

    def fetch(self, ids: Tensor) -> Tensor:
        return self.parts[0].fetch(ids)

    def _cut(self, indices: Tensor) -> Iterator[tuple[Rows, Tensor]]:
        """(part, positions in it) of ``indices`` (n,), in their order."""
        places = torch.searchsorted(self.borders, indices, right=True) - 1
        owners, counts = torch.unique_consecutive(places, return_counts=True)
        for owner, own in zip(owners.tolist(), torch.split(indices, counts.tolist()), strict=True):
            yield self.parts[owner], own - self.borders[owner]

    def _expect(self, indices: Tensor) -> None:
        for part, own in self._cut(indices):
            expect = getattr(part, "expect", None)
            if expect is not None:
                expect(own)


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of ``parts`` of one stream, one part after another; rows that can be joined have ``join(others)``."""
    if len(parts) == 1:
        return parts[0]
    join: Callable[[Sequence[Rows]], Rows | None] | None = getattr(parts[0], "join", None)
    whole = join(parts[1:]) if join else None
    return Joined(parts) if whole is None else whole


def extend(batch: Batch, x: Tensor, y: Tensor, weight: float, keep: float = 1.0) -> Batch:
    """``batch`` with replayed rows behind it, each of share ``weight``; its own shares are scaled by ``keep``.

    ``x`` (n, *in_shape) in the stream's dtype, ``y`` (n,). Replay as plain rows of one bigger mean:
    ``extend(batch, x, y, weight=1 / (B + n), keep=B / (B + n))``.
    """
    kept = batch.weight * keep if keep != 1.0 else batch.weight
    return replace(
        batch,
        x=torch.cat([batch.x, x]),
        y=torch.cat([batch.y, y]),
        weight=torch.cat([kept, kept.new_full((len(y),), weight)]),
    )


@dataclass(frozen=True)
class Schedule:
    """Positions (B,) of each update's rows: whole shuffled passes, the last batch of a pass as short as it is.

    A last batch of fewer than ``least`` rows (batch normalisation needs 2) joins the one before it.
    ``iterations`` (updates per experience) replaces ``epochs`` and passes again until it is reached.
    The order depends on nothing but ``seed``, ``lap`` (how many experiences came before) and the pass,
    so a run continues at update k with ``since(k)``. Rows that fit one batch keep their order.
    """

    rows: int
    batch_size: int
    epochs: int
    iterations: int | None
    seed: int
    lap: int
    least: int = 1

    @cached_property
    def per_pass(self) -> int:
        """Updates of one pass."""
        return max(1, (self.rows + self.batch_size - self.least) // self.batch_size)

    def __len__(self) -> int:
        if not self.rows:  # all labels of this experience come later, or never
            return 0
        return self.epochs * self.per_pass if self.iterations is None else self.iterations

    def __iter__(self) -> Iterator[Tensor]:
        return self.since(0)

    def since(self, start: int) -> Iterator[Tensor]:
        """The updates from ``start`` on; those before it cost nothing."""
        last = self.per_pass - 1
        for update in range(start, len(self)):
            lap, position = divmod(update, self.per_pass)
            if position == 0 or update == start:
                order = self._order(lap)
            begin = position * self.batch_size
            yield order[begin : self.rows if position == last else begin + self.batch_size]

    def passed(self, updates: int) -> int:
        """Rows, each counted as often as it was passed over, of the first ``updates`` updates."""
        laps, rest = divmod(updates, self.per_pass)
        return laps * self.rows + rest * self.batch_size

    def consumed(self, updates: int, arrived: int) -> int:
        """Of ``arrived`` rows, those that the first ``updates`` updates account for: a share in proportion."""
        return self.passed(updates) * arrived // max(1, self.passed(len(self)))

    def _order(self, lap: int) -> Tensor:
        if self.rows <= self.batch_size:
            return torch.arange(self.rows)
        return torch.randperm(self.rows, generator=generator(self.seed, "order", self.lap, lap))


def batches(rows: Rows, updates: Iterable[Tensor]) -> Iterator[Batch]:
    """The batch of each update's positions (B,), in order.

    Rows that can be read ahead have ``expect(indices)``, which is told the next ``AHEAD`` updates while one is used.
    """
    expect = getattr(rows, "expect", None)
    if expect is None:
        yield from map(rows.take, updates)
        return
    coming: deque[Tensor] = deque()
    for indices in updates:
        expect(indices)
        coming.append(indices)
        if len(coming) > AHEAD:
            yield rows.take(coming.popleft())
    yield from map(rows.take, coming)


def parts(rows: Rows, size: int, since: int = 0) -> Iterator[Tensor]:
    """Positions of all rows in their order, ``size`` at a time, from the part with the number ``since`` on."""
    n = len(rows)
    return (torch.arange(first, min(first + size, n)) for first in range(since * size, n, size))
