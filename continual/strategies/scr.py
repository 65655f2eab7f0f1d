"""Supervised contrastive replay: pull rows of one class together, answer with the nearest class mean of the memory.

    rows_i = -1/|P(i)| sum_{p in P(i)} log( exp(v_i v_p / T) / sum_{a != i} exp(v_i v_a / T) )

v = projection(features), of length 1; P(i) are the other rows of the class of i. The batch holds arrived and replayed
rows twice: as two views. With ``augment`` each view is augmented by itself (its ``stream`` and ``memory`` say which
rows; the copy of an arrived row counts as replayed); without, the second view is the same row again. The projection is
trained beside the model, and only for this loss; the model's own output layer is not trained.

Mai et al. 2021, "Supervised Contrastive Replay", https://arxiv.org/abs/2103.13885; the loss (L_out):
Khosla et al. 2020, "Supervised Contrastive Learning", https://arxiv.org/abs/2004.11362
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from continual.class_means import NearestMean
from continual.errors import UserError
from continual.memory import Memory
from continual.refusals import check_each_class
from continual.step import MASKED
from continual.strategies.er import ER
from continual.strategy import View
from continual.types import Batch, Experience, Output, Spec


class SCR(ER):
    """Experience replay with the contrastive loss.

    Args:
        memory: partial of a ``continual.memory.Memory`` that stores rows: answers need them.
        n_replay: rows replayed per update, >= 0; 0 contrasts arrived rows alone.
        temperature: T > 0; lower looks more at the nearest rows.
        n_projected: width of the projection, >= 1.
        seed: of the run.
    """

    steady: ClassVar[tuple[str, ...] | None] = ()

    needs_features: ClassVar[bool] = True
    replaces_loss: ClassVar[bool] = True
    replaces_answers: ClassVar[bool] = True

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 100,
        temperature: float = 0.07,
        n_projected: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(memory, n_replay, seed=seed)
        if temperature <= 0:
            raise UserError(f"strategy.scr.temperature={temperature} must be above 0")
        if n_projected < 1:
            raise UserError(f"strategy.scr.n_projected={n_projected} must be at least 1")
        self.temperature, self.n_projected, self.means = temperature, n_projected, NearestMean()

    def extra(self, spec: Spec, n_features: int | None) -> nn.Module | None:
        assert n_features is not None  # needs_features
        hidden, last = nn.Linear(n_features, n_features), nn.Linear(n_features, self.n_projected)
        self.projection = nn.Sequential(hidden, nn.ReLU(), last)
        return self.projection

    def start(self, view: View) -> None:
        super().start(view)
        if "x" not in self.memory.columns:
            raise UserError("strategy.scr.memory.store=indices cannot answer without the stream; use store=rows")
        check_each_class("strategy.scr.memory", self.memory, view.spec)

    def begin(self, view: View, experience: Experience) -> None:
        self.means.drop()

    def mix(self, view: View, batch: Batch) -> Batch:
        one = super().mix(view, batch)
        share = one.weight / 2
        return replace(one, x=torch.cat([one.x, one.x]), y=torch.cat([one.y, one.y]), weight=torch.cat([share, share]))

    def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
        return contrastive_losses(self.projection(out.features), batch.y, self.temperature)

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        super().after_step(view, batch, out)
        self.means.drop()

    def end(self, view: View, experience: Experience) -> None:
        self.means.drop()

    def predict(self, view: View, x: Tensor, out: Output, task: int | None) -> Tensor:
        return self.means.answer(view, out, self.memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.means.drop()


def contrastive_losses(projected: Tensor, y: Tensor, temperature: float) -> Tensor:
    """(B,) supervised contrastive loss of each row of ``projected`` (B, D); 0 for a row that is alone in its class."""
    unit = normalize(projected, dim=1)
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    similar = (unit @ unit.T / temperature).masked_fill(itself, MASKED)  # (B, B)
    logs = similar - similar.logsumexp(1, keepdim=True)
    positive = (y[:, None] == y[None]) & ~itself
    return -torch.where(positive, logs, 0.0).sum(1) / positive.sum(1).clamp(min=1)
