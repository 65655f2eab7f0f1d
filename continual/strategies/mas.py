"""Memory aware synapses: hold the weights to which the network's answers are sensitive.

    importance += mean over the experience's rows of | d ||f(x)||^2 / dw |,     f the logits of the classes seen so far
    L = L_task + strength / max importance * sum_i importance_i (w_i - w_end_i)^2

Labels are not used, and each row counts by itself, whatever the batch. Logits of classes that never arrived are left
out: no one taught them. Aljundi et al. 2018, "Memory Aware Synapses: Learning what (not) to forget",
https://arxiv.org/abs/1711.09601

The paper does not divide by the largest importance. But the importance is no curvature of the loss and has no natural
size: it grows with the logits, that is with training, and with every experience. Undivided, strength 1 soon pulls half
of the weights by more than a whole way to the anchor in a step, which either diverges or, cut at one whole way
(``continual.importance``), lets little more be learned. The running sum is kept, and divided as one: weights and
experiences have the paper's shares of it, only the strength is another. What counts is in [0, 1], 1 for the weight of
the largest importance and 0 for one without influence, however long the training, whatever the batch size, after any
number of experiences. strength 1 is then a curvature of at most 2, below one whole way up to a learning rate of 1/2,
and has no other derivation. ``normalize=False`` is the paper's formula, whose strength has to be found for each stream.
"""

from typing import ClassVar

from torch import Tensor

from continual.importance import Anchored, Tensors, copies, gradients_of, mean_over_rows
from continual.refusals import require
from continual.strategy import View
from continual.types import Batch, Experience


class MAS(Anchored):
    """Pull each weight towards its value after the last experience, by the sensitivity of the answers to it.

    Args:
        strength: weight of the penalty, >= 0; 0 switches it off.
        max_pull: whole ways to the anchor that a weight may be pulled in a step, > 0; None sets no bound.
        chunk: rows whose gradients are held at once, >= 1.
        normalize: whether importances count as shares of the largest; False as they are, as published.
    """

    needs_boundaries: ClassVar[bool] = True

    def __init__(
        self, strength: float = 1.0, max_pull: float | None = 1.0, chunk: int = 64, normalize: bool = True
    ) -> None:
        super().__init__(strength, max_pull)
        require(self, "chunk", chunk, chunk >= 1, "at least 1")
        self.chunk, self.normalize = chunk, normalize

    def end(self, view: View, experience: Experience) -> None:
        new = mean_over_rows(view, experience, self.chunk, lambda batch: sensitivities(view, batch))
        self.hold({name: self.importance.get(name, 0) + s for name, s in new.items()}, copies(view))

    def hold(self, importance: Tensors, anchor: Tensors) -> None:
        super().hold(importance, anchor)
        self.unit = self.peak if self.normalize and self.peak > 0 else 1.0


def sensitivities(view: View, batch: Batch) -> Tensors:
    """|d ||f(x_b)||^2 / dw| of each row, (B, *shape) by name, in eval mode; a forward and a backward a row."""

    def size(params: Tensors, x: Tensor) -> Tensor:
        return (view.forward(params, x[None]).logits * view.classes).square().sum()

    gradients = gradients_of(view, size, batch.x.to(view.classes.device))
    return {name: gradient.abs_() for name, gradient in gradients.items()}
