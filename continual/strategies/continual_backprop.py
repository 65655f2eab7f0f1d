"""Continual backpropagation: all the time, make the least useful of the mature hidden units anew.

    utility_u <- decay utility_u + (1 - decay) mean_b |h_u(x_b)| sum_k |w_uk|

over the weights w_uk that go out of unit u. In each layer rate x (units older than maturity) units are due per update;
once that adds up to a whole unit, the mature one of least utility gets fresh incoming weights and a fresh bias,
outgoing weights 0, empty optimizer slots, utility 0 and age 0. Dohare et al. 2024, "Loss of plasticity in deep
continual learning", Nature 632, and "Maintaining Plasticity in Deep Continual Learning",
https://arxiv.org/abs/2306.13812
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from continual.errors import UserError
from continual.models.units import outgoing_size, renewed, strength
from continual.refusals import at_least_0
from continual.seeding import generator
from continual.strategy import Strategy, View
from continual.types import Batch, Output


class ContinualBackprop(Strategy):
    """Generate and test; activations are those of the updated network, and cost a forward pass of each batch.

    Args:
        rate: share of the mature units that is replaced per update, in [0, 1]; 0 replaces none.
        maturity: updates for which a new unit is safe, >= 0.
        decay: of the utility per update, in [0, 1); 0 looks at the last batch alone.
        seed: of the run.
    """

    def __init__(self, rate: float = 1e-4, maturity: int = 100, decay: float = 0.99, seed: int = 0) -> None:
        if not 0 <= rate <= 1:
            raise UserError(f"strategy.continual_backprop.rate={rate} must be in [0, 1]")
        at_least_0(self, maturity=maturity)
        if not 0 <= decay < 1:
            raise UserError(f"strategy.continual_backprop.decay={decay} must be at least 0 and below 1")
        self.rate, self.maturity, self.decay = rate, maturity, decay
        self.generator = generator(seed, "ContinualBackprop")

    def start(self, view: View) -> None:
        layers = view.units()
        self.utility = [view.params[layer.weight].detach().new_zeros(layer.n_units) for layer in layers]
        self.age = [torch.zeros(layer.n_units, dtype=torch.int64) for layer in layers]  # on the CPU: counted there
        self.due = [0.0] * len(layers)

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        for number, (layer, activation) in enumerate(zip(view.units(), view.activations(batch.x), strict=True)):
            contribution = strength(activation) * outgoing_size(view.params, layer)
            self.utility[number].mul_(self.decay).add_(contribution, alpha=1 - self.decay)
            age = self.age[number].numpy()  # the same memory, counted without an operator
            age += 1
            mature = age > self.maturity
            self.due[number] += self.rate * int(np.count_nonzero(mature))
            if self.due[number] >= 1:
                chosen = least_useful(self.utility[number], torch.from_numpy(mature), int(self.due[number]))
                self.due[number] %= 1
                view.replace(*renewed(view.params, layer, chosen, self.generator))
                self.utility[number].index_fill_(0, chosen, 0)
                self.age[number].index_fill_(0, chosen.cpu(), 0)

    def state_dict(self) -> dict[str, Any]:
        own = {"utility": self.utility, "age": self.age, "due": list(self.due)}
        return own | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for mine, theirs in zip([*self.utility, *self.age], [*state["utility"], *state["age"]], strict=True):
            mine.copy_(theirs)
        self.due = list(state["due"])
        self.generator.set_state(state["generator"])


def least_useful(utility: Tensor, mature: Tensor, n: int) -> Tensor:
    """(n,) indices of the units of least ``utility`` (U,) among those ``mature`` (U,), the least useful first."""
    return utility.masked_fill(~mature.to(utility.device), torch.inf).topk(n, largest=False).indices
