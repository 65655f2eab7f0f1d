"""Loss-balanced replay: rows with a larger last known loss are replayed more often.

    P(row) ~ max(loss, 1e-6) ^ exponent

The loss of a row is the cross-entropy, among the classes that the head lets compete, that it had when it arrived or was
replayed last; it is kept beside the row, and takes no pass of its own. Proportional prioritization, here without
importance weights: Schaul et al. 2016, "Prioritized Experience Replay", https://arxiv.org/abs/1511.05952
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from continual.memory import Column, Memory
from continual.refusals import at_least_0
from continual.step import MASKED
from continual.strategies.er import ER
from continual.strategy import View
from continual.types import Batch, Output

LEAST = 1e-6  # a row of no loss keeps a chance


class LossBalancedER(ER):
    """Experience replay with unequal chances.

    Args:
        memory: partial of a ``continual.memory.Memory``; a row's loss is stored beside it.
        n_replay: rows replayed per update, >= 0; 0 only remembers.
        exponent: how much the loss matters, >= 0; 0 draws uniformly, 1 in proportion to the loss.
        exclude_current: replay no row of the current experience (uses task boundaries).
        strength: weight of the replayed rows' own mean, >= 0; None makes one mean of all rows.
        seed: of the run.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 10,
        exponent: float = 0.6,
        exclude_current: bool = False,
        strength: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(memory, n_replay, exclude_current, strength=strength, seed=seed)
        at_least_0(self, exponent=exponent)
        self.exponent = exponent

    def columns(self, view: View) -> dict[str, Column]:
        return {"loss": ((), torch.float32)}

    def mix(self, view: View, batch: Batch) -> Batch:
        self.slots, self.first = batch.y[:0], len(batch)  # what is replayed, and where it stands in the batch
        return super().mix(view, batch)

    def draw(self, view: View, batch: Batch) -> Tensor:
        slots = self.drawable(view)
        n = self.n_replay if self.memory.replacement else min(self.n_replay, len(slots))
        if n and len(slots):
            chances = self.memory.column("loss", slots).clamp(min=LEAST).pow(self.exponent).cpu()
            drawn = torch.multinomial(chances, n, self.memory.replacement, generator=self.memory.generator)
            self.slots = slots[drawn.to(slots.device)]
        return self.slots

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.losses = losses(out.logits.detach(), batch.y, view.competing(batch)).float()
        self.memory.write("loss", self.slots, self.losses[self.first : self.first + len(self.slots)])
        super().after_step(view, batch, out)
        del self.slots, self.losses

    def beside(self, view: View, batch: Batch, out: Output) -> dict[str, Tensor]:
        return {"loss": self.losses[: batch.arrived]}


def losses(logits: Tensor, y: Tensor, competing: Tensor | None) -> Tensor:
    """(B,) cross-entropy of each row among the classes ``competing`` (B, C) and its own; None for all."""
    if competing is not None:
        logits = logits.masked_fill(~competing.scatter(1, y[:, None], True), MASKED)
    return cross_entropy(logits, y, reduction="none")
