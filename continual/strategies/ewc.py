"""Online elastic weight consolidation: hold the weights that mattered for earlier experiences.

    L = L_task + strength / 2 * sum_i F_i (w_i - w*_i)^2,      F <- decay * F + F_new after each experience

F_new is the empirical Fisher's diagonal, the mean over rows of the *squared per-row* gradient (not the
square of the batch gradient, whose size depends on the batch). Kirkpatrick et al. 2017,
https://arxiv.org/abs/1612.00796; running sum and decay: Schwarz et al. 2018, https://arxiv.org/abs/1805.06370
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from continual.errors import UserError
from continual.strategy import Strategy, View, Weights
from continual.types import Batch, Experience, Output


class EWC(Strategy):
    """Pull each weight towards its value after the last experience, by its Fisher information.

    Args:
        strength: weight of the penalty, >= 0; 0 switches it off.
        decay: of the Fisher information per experience, in [0, 1]; 1 keeps a plain sum.
        chunk: rows whose gradients are held at once, >= 1.
    """

    needs_boundaries: ClassVar[bool] = True

    def __init__(self, strength: float = 100.0, decay: float = 1.0, chunk: int = 64) -> None:
        if strength < 0:
            raise UserError(f"strategy.ewc.strength={strength} must be at least 0")
        if not 0 <= decay <= 1:
            raise UserError(f"strategy.ewc.decay={decay} must be in [0, 1]")
        if chunk < 1:
            raise UserError(f"strategy.ewc.chunk={chunk} must be at least 1")
        self.strength, self.decay, self.chunk = strength, decay, chunk
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        if not self.fisher or not self.strength:
            return 0.0
        return 0.5 * self.strength * quadratic(params, self.anchor, self.fisher)

    def end(self, view: View, experience: Experience) -> None:
        new = empirical_fisher(view, experience, self.chunk)
        self.fisher = {name: self.decay * self.fisher[name] + f for name, f in new.items()} if self.fisher else new
        self.anchor = {name: p.detach().clone() for name, p in view.params.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": self.fisher, "anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.fisher, self.anchor = dict(state["fisher"]), dict(state["anchor"])


def quadratic(params: Weights, anchor: Weights, importance: Weights) -> Tensor:
    """sum_i importance_i (params_i - anchor_i)^2, to be differentiated once."""
    total = torch.zeros(())
    for name, f in importance.items():
        away = params[name] - anchor[name]
        pull = (f * away).detach()  # half of the gradient, known already: backward need not form it again
        part = torch.dot(pull.view(-1), away.view(-1))
        total = total + 2 * part - part.detach()
    return total


def empirical_fisher(view: View, experience: Experience, chunk: int) -> dict[str, Tensor]:
    """Mean over the experience's rows of the squared gradient of each row's own loss."""
    rows = experience.rows
    total = {name: torch.zeros_like(p) for name, p in view.params.items()}
    for indices in torch.split(torch.arange(len(rows)), chunk):
        for name, gradient in view.row_gradients(rows.take(indices)).items():
            total[name] += gradient.square_().sum(0)
    return {name: t / len(rows) for name, t in total.items()}
