"""Small-loss selection: of each batch the rows with the largest losses, likely those with wrong labels, do not count.

    rows_b <- rows_b * k_b,     k_b = 0 for the floor(R n) largest of n losses, the others take over their weight
    R = forget_rate * min(1, updates made / n_warmup):      networks fit right labels before they fit wrong ones

The arrived rows are chosen among themselves and the replayed rows among themselves, so that the rows of a new class,
whose losses are large, do not all make room for those of old ones. A part of fewer than 1 / R rows loses none.

Han et al. 2018, "Co-teaching", https://arxiv.org/abs/1804.06872: of it only the selection. There two networks choose
for each other, which keeps each from choosing by its own mistakes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from continual.errors import UserError
from continual.refusals import at_least_0
from continual.strategy import Strategy, View
from continual.types import Batch, Output


class SmallLoss(Strategy):
    """Train on the rows of small loss only. It stands behind what changes the loss of a row (``[gce,small_loss]``).

    Args:
        forget_rate: share of the rows left out, in [0, 1), the share of wrong labels if it is known; 0 switches it off.
        n_warmup: updates until the share is reached, >= 0, counted over the whole run.
    """

    def __init__(self, forget_rate: float = 0.2, n_warmup: int = 100) -> None:
        if not 0 <= forget_rate < 1:
            raise UserError(f"strategy.small_loss.forget_rate={forget_rate} must be in [0, 1)")
        at_least_0(self, n_warmup=n_warmup)
        self.forget_rate, self.n_warmup = forget_rate, n_warmup
        self.updates = 0

    def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
        rate = self.forget_rate * min(1.0, self.updates / self.n_warmup if self.n_warmup else 1.0)
        if not rate:
            return rows
        apart = zip(parts(rows.detach(), batch), parts(batch.weight, batch), strict=True)
        return rows * reshare([smallest(losses, weight, rate).to(rows.dtype) for losses, weight in apart], batch)

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["updates"])


def smallest(losses: Tensor, weight: Tensor, rate: float) -> Tensor:
    """(n,) bool: all but the floor(rate n) largest ``losses`` (n,), rows of ``weight`` 0 not counted; one at least."""
    counted = weight > 0
    rank = losses.masked_fill(~counted, torch.inf).argsort(stable=True).argsort(stable=True)
    n_kept = ((1 - rate) * counted.sum() - 1e-4).clamp(min=0.5)  # up to a whole row; 0.6 * 25 may be 15.000001
    return counted & (rank < n_kept)


def reshare(shares: Sequence[Tensor], batch: Batch) -> Tensor:
    """(B,) factors in proportion to the ``shares`` within each of the ``parts``, which keep their total weight."""
    factors = []
    for share, weight in zip(shares, parts(batch.weight, batch), strict=True):
        total = torch.dot(weight, share).clamp(min=torch.finfo(share.dtype).tiny)  # 0 where no row has weight
        factors.append(share * (weight.sum() / total))
    return torch.cat(factors) if len(factors) > 1 else factors[0]


def parts(column: Tensor, batch: Batch) -> list[Tensor]:
    """What a ``column`` (B,) holds of the arrived rows of a batch, and of the replayed ones, if there are any."""
    n = batch.arrived
    return [column[:n], column[n:]] if len(batch) > n else [column]
