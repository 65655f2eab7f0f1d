"""Bare loops of the strategies that change the loss of a row and need no teacher for it."""

from math import floor
from typing import Any

from bare import Bare, Setup
from torch import Tensor
from torch.nn.functional import cross_entropy


class BareGCE(Bare):
    """Generalised cross-entropy."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        q = self.options["q"]
        rows = cross_entropy(self.logits(x), y, reduction="none")
        return -(rows * -q).expm1().mean() / q


class BareSmallLoss(Bare):
    """The mean of the smallest losses."""

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:  # noqa: ARG004
        return {"n_warmup": 10}

    def start(self) -> None:
        self.updates = 0

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        rows = cross_entropy(self.logits(x), y, reduction="none")
        rate = self.options["forget_rate"] * min(1.0, self.updates / self.options["n_warmup"])
        return rows.topk(len(y) - floor(rate * len(y) + 1e-4), largest=False, sorted=False).values.mean()

    def remember(self, x: Tensor, y: Tensor) -> None:
        self.updates += 1


BARE: dict[str, type[Bare]] = {"gce": BareGCE, "small_loss": BareSmallLoss}
