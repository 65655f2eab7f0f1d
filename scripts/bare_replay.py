"""Bare loops of the strategies that replay."""

from typing import Any, ClassVar

import torch
from bare import Bare, Sample, Setup
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss


class BareER(Bare):
    """One forward pass over arrived and replayed rows."""

    NAME: ClassVar[str] = "ER"  # class of our strategy

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:
        return {"n_replay": setup.batch, "memory.capacity": setup.capacity}

    def start(self) -> None:
        self.n_replay = self.options["n_replay"]
        self.memory = Sample(self.NAME, self.setup.capacity, self.spec, **self.columns())

    def columns(self) -> dict[str, Tensor]:
        return {}

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if len(self.memory):
            slots = self.memory.draw(self.n_replay)
            x, y = torch.cat([x, self.memory.take("x", slots)]), torch.cat([y, self.memory.take("y", slots)])
        return cross_entropy(self.logits(x), y)

    def remember(self, x: Tensor, y: Tensor) -> None:
        self.memory.add(x=x, y=y)


class BareDERPP(BareER):
    """A draw for the logits and one for the labels, one forward pass over all three parts."""

    NAME = "DERPP"

    def columns(self) -> dict[str, Tensor]:
        return {"logits": torch.zeros(self.setup.capacity, self.spec.n_classes)}

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        memory = self.memory
        if not len(memory):
            self.out = self.logits(x)
            return cross_entropy(self.out, y)
        n, first, second = len(y), memory.draw(self.n_replay), memory.draw(self.n_replay)
        self.out = self.logits(torch.cat([x, memory.take("x", first), memory.take("x", second)]))
        arrived, told, labelled = torch.split(self.out, [n, len(first), len(second)])
        distance = mse_loss(told, memory.take("logits", first))
        replayed = cross_entropy(labelled, memory.take("y", second))
        strength, label_strength = self.options["strength"], self.options["label_strength"]
        return cross_entropy(arrived, y) + strength * distance + label_strength * replayed

    def remember(self, x: Tensor, y: Tensor) -> None:
        self.memory.add(x=x, y=y, logits=self.out[: len(y)])


BARE: dict[str, type[Bare]] = {"none": Bare, "er": BareER, "derpp": BareDERPP}
