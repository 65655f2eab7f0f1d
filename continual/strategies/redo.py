"""ReDo: make hidden units anew that hardly answer to anything.

    score_u = mean_b |h_u(x_b)| / mean_v mean_b |h_v(x_b)|  over the units v of the same layer

Every so many updates, a unit whose score is at most the threshold (dormant) gets fresh incoming weights and a fresh
bias, outgoing weights 0, and empty optimizer slots for all of these. Sokar et al. 2023, "The Dormant Neuron Phenomenon
in Deep Reinforcement Learning", https://arxiv.org/abs/2302.12902
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from continual.errors import UserError
from continual.models.units import renewed, strength
from continual.seeding import generator
from continual.strategy import Strategy, View
from continual.types import Batch, Output


class ReDo(Strategy):
    """Look at the units' activations on the batch of every ``every``-th update; costs a forward pass of it.

    Args:
        every: updates between two looks, >= 1.
        threshold: a unit is dormant at or below this score, in [0, 1]; 0 takes only those that are always 0, 1 all
            that are no more active than the mean of their layer.
        seed: of the run.
    """

    def __init__(self, every: int = 1000, threshold: float = 0.025, seed: int = 0) -> None:
        if every < 1:
            raise UserError(f"strategy.redo.every={every} must be at least 1")
        if not 0 <= threshold <= 1:
            raise UserError(f"strategy.redo.threshold={threshold} must be in [0, 1]")
        self.every, self.threshold, self.updates = every, threshold, 0
        self.generator = generator(seed, "ReDo")

    def start(self, view: View) -> None:
        view.units()  # refuses a model whose units cannot be told apart

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.updates += 1
        if self.updates % self.every:
            return
        for layer, activation in zip(view.units(), view.activations(batch.x), strict=True):
            units = dormant(activation, self.threshold).nonzero()[:, 0]
            view.replace(*renewed(view.params, layer, units, self.generator))

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]
        self.generator.set_state(state["generator"])


def dormant(activation: Tensor, threshold: float) -> Tensor:
    """(U,) bool: units of activations (B, U, ...) whose score is at most ``threshold``; all of a silent layer."""
    active = strength(activation)
    return active <= threshold * active.mean()
