"""Elastic weight consolidation: hold the weights that mattered for earlier experiences.

    L = L_task + strength / 2 * sum_i A_i (w_i - m_i)^2,      A <- decay * A + F after each experience

F_t is the Fisher information's diagonal after experience t: the mean over its rows of the *squared per-row* gradient of
log p(label), not the square of a batch's gradient, whose size depends on the batch. Two choices of the labels:

- ``rows``: those that came with the rows. The empirical Fisher, near 0 for rows that have been learned.
- ``model``: all of them, as probable as the network finds them: sum_c p_c (d log p_c / dw)^2. The Fisher information
  itself, Kunstner et al. 2019, https://arxiv.org/abs/1905.12558

Two anchors m:

- ``online``: m = w*_t, the weights after the last experience. Schwarz et al. 2018, https://arxiv.org/abs/1805.06370
- ``separate``: one penalty per experience, sum_t F_t (w - w*_t)^2. Kirkpatrick et al. 2017,
  https://arxiv.org/abs/1612.00796. The sum is A w^2 - 2 B w + const with A = sum F_t and B = sum F_t w*_t, that is
  A (w - B / A)^2 + const: held as A and m = B / A, it takes no more memory after a thousand experiences than after one.
  The loss leaves out the constant, which moves nothing.

strength 1 makes this the Laplace approximation of the loss of all that came before, each experience weighing as much as
the current one. The published 100s and 1000s count on Fishers near 0 after training to convergence: after one pass the
largest F_i is about 0.5, and a step on 100 * F_i at a learning rate of 0.1 is a step of five whole ways to the anchor.
Whatever the strength, a weight's pull is cut at one whole way, 1 / lr (``continual.importance``).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from continual.importance import Anchored, Tensors, copies, gradients_of, mean_over_rows
from continual.refusals import require
from continual.seeding import generator
from continual.step import MASKED
from continual.strategy import View
from continual.types import Batch, Experience

MODES, LABELS = ("online", "separate"), ("rows", "model")


class EWC(Anchored):
    """Pull each weight towards its earlier values, by its Fisher information.

    Args:
        strength: weight of the penalty, >= 0; 0 switches it off.
        max_pull: whole ways to the anchor that a weight may be pulled in a step, > 0; None sets no bound.
        mode: ``online``, towards the last weights; ``separate``, towards those after each experience by its own F.
        decay: of the Fisher information per experience, in [0, 1]; 1 keeps a plain sum, 0 only the last one.
        chunk: rows whose gradients are held at once, >= 1.
        labels: of the Fisher information: ``rows``, those of the rows; ``model``, the network's own answers.
        seed: of the run.
    """

    needs_boundaries: ClassVar[bool] = True
    curvature: ClassVar[float] = 1.0

    def __init__(
        self,
        strength: float = 1.0,
        max_pull: float | None = 1.0,
        mode: str = "online",
        decay: float = 1.0,
        chunk: int = 64,
        labels: str = "rows",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, max_pull)
        require(self, "mode", mode, mode in MODES, f"one of {', '.join(MODES)}")
        require(self, "decay", decay, 0 <= decay <= 1, "in [0, 1]")
        require(self, "chunk", chunk, chunk >= 1, "at least 1")
        require(self, "labels", labels, labels in LABELS, f"one of {', '.join(LABELS)}")
        self.mode, self.decay, self.chunk, self.labels, self.seed = mode, decay, chunk, labels, seed

    def start(self, view: View) -> None:
        super().start(view)
        self.generator = generator(self.seed, "EWC")

    def end(self, view: View, experience: Experience) -> None:
        weights, old = copies(view), self.importance
        new = (
            empirical_fisher(view, experience, self.chunk)
            if self.labels == "rows"
            else fisher(view, experience, self.chunk, self.generator)
        )
        total = {name: f + self.decay * old[name] if name in old else f for name, f in new.items()}
        if self.mode == "separate":
            for name in old:
                weights[name] = weighted_anchor(self.anchor[name], weights[name], new[name], total[name])
        self.hold(total, weights)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])


def weighted_anchor(before: Tensor, now: Tensor, new: Tensor, total: Tensor) -> Tensor:
    """B / A after ``now`` has come with the share ``new`` of the ``total`` A; ``now`` where nothing matters yet."""
    share = torch.where(total > 0, new / total, torch.ones_like(total))
    return torch.lerp(before, now, share)


def empirical_fisher(view: View, experience: Experience, chunk: int) -> Tensors:
    """Mean over the experience's rows of the squared gradient of each row's own loss."""

    def squares(batch: Batch) -> Tensors:
        return {name: gradient.square_() for name, gradient in view.row_gradients(batch).items()}

    return mean_over_rows(view, experience, chunk, squares)


def fisher(view: View, experience: Experience, chunk: int, signs: torch.Generator) -> Tensors:
    """Mean over the experience's rows of sum_c p_c (d log p_c / dw)^2, p the network's answer under the head's mask.

    An unbiased estimate by one backward pass of a row, however many classes there are: the square of
    sum_c s_c sqrt(p_c) d log p_c / dw with random signs s_c, whose mixed terms are 0 in the mean. Labels drawn from p
    would be unbiased too, but where the network is sure, the rare ones that make up the sum are hardly ever drawn.
    """

    def signed(params: Tensors, x: Tensor, competes: Tensor, s: Tensor) -> Tensor:
        logits = view.forward(params, x[None]).logits[0]  # (C,)
        logs = log_softmax(logits.masked_fill(~competes, MASKED), dim=0)
        return torch.dot(s * logs.detach().exp().sqrt(), logs)

    def squares(batch: Batch) -> Tensors:
        batch = replace(batch, x=batch.x.to(view.classes.device), y=batch.y.to(view.classes.device))
        shape = len(batch), view.spec.n_classes
        competes = view.competing(batch)
        if competes is None:
            competes = view.classes.new_ones(shape)
        s = (2 * torch.randint(2, shape, generator=signs) - 1).to(view.classes.device)
        return {name: g.square_() for name, g in gradients_of(view, signed, batch.x, competes, s).items()}

    return mean_over_rows(view, experience, chunk, squares)
