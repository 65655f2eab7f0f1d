"""Dark experience replay++: replay labels, and the logits the network had when the rows arrived.

    L = mean_arrived CE + strength * mean (z - z_stored)^2 over one draw + label_strength * mean CE over another

Buzzega et al. 2020, "Dark Experience for General Continual Learning", https://arxiv.org/abs/2004.07211
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from continual.batches import extend
from continual.errors import UserError
from continual.memory import Memory
from continual.seeding import derive
from continual.strategy import Strategy, View, Weights
from continual.types import Batch, Output


class DERPP(Strategy):
    """Two draws of ``n_replay`` rows per update: one holds the logits, one the labels.

    Args:
        memory: partial of a ``continual.memory.Memory``; a row's logits are stored beside it.
        n_replay: rows of each draw, >= 0.
        strength: weight of the logits' squared error, >= 0; 0 leaves its draw out.
        label_strength: weight of the replayed rows' cross-entropy, >= 0; 0 leaves its draw out (DER).
        seed: of the run.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 10,
        strength: float = 0.5,
        label_strength: float = 0.5,
        seed: int = 0,
    ) -> None:
        for name, value in (("n_replay", n_replay), ("strength", strength), ("label_strength", label_strength)):
            if value < 0:
                raise UserError(f"{type(self).__name__}: {name}={value} must be at least 0")
        self.make_memory, self.n_replay, self.seed = memory, n_replay, seed
        self.strength, self.label_strength = strength, label_strength

    def start(self, view: View) -> None:
        columns = {"logits": ((view.spec.n_classes,), torch.float32)}
        seed = derive(self.seed, "DERPP", "memory")
        self.memory = self.make_memory(spec=view.spec, columns=columns, seed=seed, device=view.classes.device)

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
        self.memory.add(batch, logits=out.logits[: batch.arrived].float())

    def state_dict(self) -> dict[str, Any]:
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state)
