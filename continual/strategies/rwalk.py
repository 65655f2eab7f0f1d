"""Riemannian walk: online EWC, and a score for what each weight saved per distance in the space of answers.

    F        <- decay * F + (1 - decay) * g^2                         after each update, g of the task loss alone
    saved    =  sum over a window of updates of -g (w after - w before)
    path    +=  max(0, saved / (F (w_now - w_window_start)^2 / 2 + damping))     after each window
    score    <- (score + path) / 2                                    after each experience (the first one: path)
    L        =  L_task + strength * sum_i (F_i / max F + score_i / max score) (w_i - w_end_i)^2

F (dw)^2 / 2 is the change of the answers' distribution (its KL divergence) that a step made. Chaudhry et al. 2018,
"Riemannian Walk for Incremental Learning", https://arxiv.org/abs/1801.10112. The network trains as ever, in train mode.

Both terms are divided by their largest entry, as in the paper: the importance is in [0, 2] on any stream, at any batch
size (the square of a smaller batch's gradient is larger, but for all weights alike), so strength 1 is a curvature of at
most 4, stable up to a learning rate of 1/4; beyond it a weight's pull is cut at 1 / lr (``continual.importance``).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from continual.importance import Anchored, Tensors, copies, largest, zeros
from continual.refusals import require
from continual.strategies.si import walk
from continual.strategy import View
from continual.types import Batch, Experience, Output

KEPT = ("fisher", "saved", "origin", "path", "score")


class RWalk(Anchored):
    """Pull each weight towards its value after the last experience, by its Fisher information and its score.

    Args:
        strength: weight of the penalty, >= 0; 0 switches everything off, also the counting.
        max_pull: whole ways to the anchor that a weight may be pulled in a step, > 0; None sets no bound.
        decay: of the Fisher information per update, in [0, 1); 0 keeps only the last gradient.
        window: updates between two looks at the way, >= 1. A shorter rest at the end of an experience counts too.
        damping: added to the distance, > 0; in the authors' code 0.001.
    """

    needs_boundaries: ClassVar[bool] = True

    def __init__(
        self,
        strength: float = 1.0,
        max_pull: float | None = 1.0,
        decay: float = 0.9,
        window: int = 10,
        damping: float = 0.001,
    ) -> None:
        super().__init__(strength, max_pull)
        require(self, "decay", decay, 0 <= decay < 1, "in [0, 1)")
        require(self, "window", window, window >= 1, "at least 1")
        require(self, "damping", damping, damping > 0, "above 0")
        self.decay, self.window, self.damping = decay, window, damping
        self.needs_task_gradient = strength > 0
        self.fisher: Tensors = {}
        self.saved: Tensors = {}
        self.origin: Tensors = {}  # the weights at the start of the window
        self.path: Tensors = {}
        self.score: Tensors = {}
        self.before: Tensors = {}
        self.steps = 0  # made in this window

    def begin(self, view: View, experience: Experience) -> None:
        if self.strength:
            self.saved, self.origin, self.path, self.steps = zeros(view), copies(view), zeros(view), 0

    def mix(self, view: View, batch: Batch) -> Batch:
        self.before = copies(view) if self.strength else {}  # only until the update is made
        return batch

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        if not self.strength:
            return
        walk(self.saved, view.task_gradient, self.before, view.params)
        self.before = {}
        for name, g in view.task_gradient.items():
            square = g.square()
            fisher = self.fisher.setdefault(name, square)
            torch.lerp(square, fisher, self.decay, out=fisher)
        self.steps += 1
        if self.steps == self.window:
            self._close(view)

    def _close(self, view: View) -> None:
        """End a window: what it saved, per distance, goes to the path."""
        for name, fisher in self.fisher.items():
            distance = 0.5 * fisher * (view.params[name].detach() - self.origin[name]).square()
            self.path[name] += (self.saved[name] / (distance + self.damping)).clamp(min=0)
        self.saved, self.origin, self.steps = zeros(view), copies(view), 0

    def end(self, view: View, experience: Experience) -> None:
        if self.strength:
            self._close(view)
            self.score = {name: torch.lerp(self.score.get(name, path), path, 0.5) for name, path in self.path.items()}
            fisher, score = normalized(self.fisher), normalized(self.score)
            self.hold({name: fisher[name] + score[name] for name in fisher}, copies(view))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **{name: getattr(self, name) for name in KEPT}, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in KEPT:
            setattr(self, name, self.placed(state[name]))
        self.steps = state["steps"]


def normalized(values: Mapping[str, Tensor]) -> Tensors:
    """Divided by the largest entry of all, so that they are in [0, 1]; all 0 stays 0."""
    most = largest(values)
    return {name: v / most if most > 0 else torch.zeros_like(v) for name, v in values.items()}
