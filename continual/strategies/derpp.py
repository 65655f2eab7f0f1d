"""Dark experience replay++: replay labels, and the logits the network had when the rows arrived.

    L = mean_arrived CE + strength * mean (z - z_stored)^2 over one draw + label_strength * mean CE over another

The squared error is a mean over rows and classes, as in the authors' code.

Buzzega et al. 2020, "Dark Experience for General Continual Learning", https://arxiv.org/abs/2004.07211
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from continual.batches import extend
from continual.memory import Column, Memory
from continual.refusals import at_least_0
from continual.strategies.replay import Replay
from continual.strategy import View, Weights
from continual.types import Batch, Output


class DERPP(Replay):
    """Two draws of ``n_replay`` rows per update: one holds the logits, one the labels.

    Args:
        memory: partial of a ``continual.memory.Memory``; a row's logits are stored beside it.
        n_replay: rows of each draw, >= 0.
        strength: weight of the logits' squared error, >= 0; 0 leaves its draw out.
        label_strength: weight of the replayed rows' cross-entropy, >= 0; 0 leaves its draw out (DER).
        remember: ``step`` keeps the logits with which a row was trained on, as in the paper; ``end`` offers all rows
            once, when their experience ends, with the logits of then, at a forward pass a row.
        seed: of the run.
    """

    steady: ClassVar[tuple[str, ...] | None] = ("stored",)

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 10,
        strength: float = 0.5,
        label_strength: float = 0.5,
        remember: str = "step",
        seed: int = 0,
    ) -> None:
        super().__init__(memory, n_replay, remember=remember, seed=seed)
        at_least_0(self, strength=strength, label_strength=label_strength)
        self.strength, self.label_strength = strength, label_strength

    def columns(self, view: View) -> dict[str, Column]:
        return {"logits": ((view.spec.n_classes,), torch.float32)}

    def beside(self, view: View, batch: Batch, out: Output) -> dict[str, Tensor]:
        return {"logits": out.logits[: batch.arrived].float()}

    def mix(self, view: View, batch: Batch) -> Batch:
        self.first, self.stored = len(batch), None  # handed to penalty, which acts on the same batch
        if self.strength and len(slots := self.memory.draw(self.n_replay)):
            self.stored = self.memory.column("logits", slots)
            batch = self._replay(view, batch, slots, weight=0.0)
        if self.label_strength and len(slots := self.memory.draw(self.n_replay)):
            batch = self._replay(view, batch, slots, weight=self.label_strength / len(slots))
        return batch

    def _replay(self, view: View, batch: Batch, slots: Tensor, weight: float) -> Batch:
        return extend(batch, self.memory.inputs(slots, view.fetch), self.memory.column("y", slots), weight)

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        if self.stored is None:
            return 0.0
        return self.strength * mse_loss(out.logits[self.first : self.first + len(self.stored)], self.stored)

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.stored = None  # it has served; what is kept is what state_dict says
        super().after_step(view, batch, out)
