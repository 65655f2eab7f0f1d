"""Cutting rows into batches, putting rows behind a batch, and rows that are a part of others or lie in tensors."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from continual.seeding import generator
from continual.types import Batch, Rows


class TensorRows:
    """Rows that lie in two tensors: ``x`` (N, *in_shape), ``y`` (N,); a row's id is its position."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor) -> Batch:
        n = len(indices)
        return Batch(self.x[indices], self.y[indices], torch.full((n,), 1 / max(n, 1)), n, {"id": indices})

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

    def fetch(self, ids: Tensor) -> Tensor:
        return self.rows.fetch(ids)


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


def schedule(
    rows: int, batch_size: int, epochs: int, iterations: int | None, seed: int, lap: int, least: int = 1
) -> Iterator[Tensor]:
    """Positions (B,) of each update's rows: whole shuffled passes, the last batch of a pass as short as it is.

    A last batch of fewer than ``least`` rows (batch normalisation needs 2) joins the one before it.
    ``iterations`` (updates per experience) replaces ``epochs`` and passes again until it is reached.
    The order depends on nothing but ``seed``, ``lap`` (how many experiences came before) and the pass,
    so a run continues at update k by skipping k. Rows that fit one batch keep their order.
    """
    if not rows:  # all labels of this experience come later, or never
        return
    per_pass = max(1, (rows + batch_size - least) // batch_size)
    n_updates = iterations if iterations is not None else epochs * per_pass
    for update in range(n_updates):
        position = update % per_pass
        if position == 0:
            order = torch.arange(rows)
            if rows > batch_size:
                order = order[torch.randperm(rows, generator=generator(seed, "order", lap, update // per_pass))]
        yield order[position * batch_size : rows if position == per_pass - 1 else (position + 1) * batch_size]
