"""Averaged gradient episodic memory: never step against the mean gradient of remembered rows.

    g' = g                               if g . r >= 0
    g' = g - (g . r) / (r . r) * r       else,       r = gradient of the mean loss of n_replay remembered rows

Chaudhry et al. 2019, "Efficient Lifelong Learning with A-GEM", https://arxiv.org/abs/1812.00420
"""

from collections.abc import Callable

import torch
from torch import Tensor

from continual.memory import Memory
from continual.strategies.replay import Replay
from continual.strategy import View, Weights
from continual.types import Batch


class AGEM(Replay):
    """Project the gradient of each step, all terms of the loss included. Costs a gradient of ``n_replay`` rows more.

    Args:
        memory: partial of a ``continual.memory.Memory``.
        n_replay: rows of the reference gradient, >= 0; 0 projects nothing.
        exclude_current: refer to no row of the current experience (uses task boundaries).
        remember: ``end`` (all rows once, when their experience ends, as in the paper) or ``step`` (each batch after its
            update).
        seed: of the run.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 256,
        exclude_current: bool = False,
        remember: str = "end",
        seed: int = 0,
    ) -> None:
        super().__init__(memory, n_replay, exclude_current, remember, seed)

    def project(self, view: View, grads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        slots = self.memory.draw(self.n_replay, self.among(view))
        if not len(slots):
            return grads
        x, y = self.memory.inputs(slots, view.fetch), self.memory.column("y", slots)
        reference = view.gradient(Batch(x, y, batch.weight.new_full((len(y),), 1 / len(y)), arrived=0))
        return projected(grads, reference)


def projected(grads: dict[str, Tensor], reference: Weights) -> dict[str, Tensor]:
    """``grads``, changed in place, without their part against ``reference``: both by name, taken as one long vector."""
    reference = {name: reference[name] for name in grads}
    along = _dot(grads, reference)
    if along.device.type == "cpu" and along >= 0:  # elsewhere to look costs more than to go on
        return grads
    length = _dot(reference, reference)
    share = along.clamp(max=0) / length.clamp(min=torch.finfo(length.dtype).tiny)  # 0 where they agree
    for name, g in grads.items():
        g.addcmul_(share, reference[name], value=-1)
    return grads


def _dot(one: Weights, other: Weights) -> Tensor:
    return torch.stack([torch.dot(one[name].flatten(), w.flatten()) for name, w in other.items()]).sum()
