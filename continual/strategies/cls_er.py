"""Complementary learning systems: replay, held near the surer of two slow averages of the weights.

    L = mean CE of arrived and replayed rows + strength * mean_replayed (z - z*)^2
    z* = the logits of the stable or of the plastic average, whichever gives the row's label more probability
    after each update, with its own frequency, each average follows the weights (``continual.averages``)

The stable one, updated less often, answers. Arani et al. 2022, "Learning Fast, Learning Slow",
https://arxiv.org/abs/2201.12604. Unlike in the authors' code, both are in eval mode with batch statistics of their own,
and the warm-up of a decay counts the updates of its average, not those of the network. The paper's decays of 0.999 are
for thousands of updates a task; those given here are for some hundreds (``ema_teacher`` says why, and how they were
chosen). The strength is the paper's.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, softmax

from continual.averages import Average
from continual.errors import UserError
from continual.memory import Memory
from continual.refusals import at_least_0
from continual.seeding import generator
from continual.strategies.er import ER
from continual.strategy import View, Weights
from continual.types import Batch, Output


class CLSER(ER):
    """Experience replay with a plastic and a stable average. Memory, replay and seed: see ``ER``.

    Args:
        strength: weight of the consistency of its own replayed rows, >= 0; 0 leaves replay and the averages.
        plastic_frequency: probability that an update is followed by the plastic average, in (0, 1].
        stable_frequency: the same for the stable average, as a rule lower.
        plastic_decay: of the plastic average, in [0, 1], see ``continual.averages``.
        stable_decay: of the stable average, as a rule not lower.
    """

    steady: ClassVar[tuple[str, ...] | None] = ()

    replaces_answers: ClassVar[bool] = True

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 10,
        exclude_current: bool = False,
        strength: float = 0.1,
        plastic_frequency: float = 0.9,
        stable_frequency: float = 0.7,
        plastic_decay: float = 0.9,
        stable_decay: float = 0.95,
        seed: int = 0,
    ) -> None:
        for name, value in (("plastic_frequency", plastic_frequency), ("stable_frequency", stable_frequency)):
            if not 0 < value <= 1:
                raise UserError(f"strategy.cls_er.{name}={value} must be in (0, 1]")
        for name, value in (("plastic_decay", plastic_decay), ("stable_decay", stable_decay)):
            if not 0 <= value <= 1:
                raise UserError(f"strategy.cls_er.{name}={value} must be in [0, 1]")
        super().__init__(memory, n_replay, exclude_current, seed=seed)
        at_least_0(self, strength=strength)
        self.consistency = strength  # ER's own strength weighs the replayed rows' cross-entropy
        self.plastic_frequency, self.plastic_decay = plastic_frequency, plastic_decay
        self.stable_frequency, self.stable_decay = stable_frequency, stable_decay

    def start(self, view: View) -> None:
        super().start(view)
        self.plastic, self.stable = Average(view), Average(view)
        self.generator = generator(self.seed, "CLSER", "updates")

    def mix(self, view: View, batch: Batch) -> Batch:
        mixed = super().mix(view, batch)
        self.replayed = slice(len(batch), len(mixed))  # handed to penalty, which acts on the same batch
        return mixed

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        x, y = batch.x[self.replayed], batch.y[self.replayed]
        if not self.consistency or not len(y):
            return 0.0
        plastic, stable = (view.answer(average.weights, x).logits for average in (self.plastic, self.stable))
        return self.consistency * mse_loss(out.logits[self.replayed], surer(plastic, stable, y))

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        super().after_step(view, batch, out)
        plastic, stable = torch.rand(2, generator=self.generator, dtype=torch.float64).tolist()
        if plastic < self.plastic_frequency:
            self.plastic.follow(view, self.plastic_decay)
        if stable < self.stable_frequency:
            self.stable.follow(view, self.stable_decay)

    def predict(self, view: View, x: Tensor, out: Output, task: int | None) -> Tensor:
        return view.answer(self.stable.weights, x).logits

    def state_dict(self) -> dict[str, Any]:
        averages = {"plastic": self.plastic.state_dict(), "stable": self.stable.state_dict()}
        return {"memory": super().state_dict(), **averages, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state["memory"])
        self.plastic.load_state_dict(state["plastic"])
        self.stable.load_state_dict(state["stable"])
        self.generator.set_state(state["generator"])


def surer(plastic: Tensor, stable: Tensor, y: Tensor) -> Tensor:
    """(B, C) of each row the logits that give its label ``y`` (B,) more probability; the plastic ones if equal."""
    p, s = (softmax(logits, dim=1).gather(1, y[:, None]) for logits in (plastic, stable))  # (B, 1)
    return torch.where(s > p, stable, plastic)
