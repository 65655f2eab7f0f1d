"""Synaptic intelligence: hold the weights along whose path the loss fell.

    path_i     = sum over the updates of an experience of  -g_i (w_i after - w_i before),  g of the task loss alone
    importance = max(0, importance + path / ((w_end - w_start)^2 + damping))       after each experience
    L          = L_task + strength * sum_i importance_i (w_i - w_end_i)^2

Zenke et al. 2017, "Continual Learning Through Synaptic Intelligence", https://arxiv.org/abs/1703.04200; the sum cut at
0 as in the authors' code.

strength 1 gives the old experiences as much weight as the current one: without damping, going back all the way costs
exactly the loss that coming here had saved. Damping bounds the importance of weights that came back to where they
started; 0.1 is the authors' value for permuted MNIST (0.001 for split MNIST holds such weights harder). The batch's
size enters the path, as it must: the noise of small batches adds about lr * variance(g) an update. That makes large
importances, not unstable ones: a weight's pull is cut at 1 / lr (``continual.importance``).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from continual.importance import Anchored, Tensors, copies, zeros
from continual.refusals import require
from continual.strategy import View, Weights
from continual.types import Batch, Experience, Output


class SI(Anchored):
    """Pull each weight towards its value after the last experience, by the fall of the loss along its path.

    Whatever the optimizer does with the gradient (momentum, Adam, clipping), the path is the one that was walked.

    Args:
        strength: weight of the penalty, >= 0; 0 switches everything off, also the counting.
        max_pull: whole ways to the anchor that a weight may be pulled in a step, > 0; None sets no bound.
        damping: added to the squared way of each weight, > 0.
    """

    needs_boundaries: ClassVar[bool] = True

    def __init__(self, strength: float = 1.0, max_pull: float | None = 1.0, damping: float = 0.1) -> None:
        super().__init__(strength, max_pull)
        require(self, "damping", damping, damping > 0, "above 0")
        self.damping = damping
        self.needs_task_gradient = strength > 0
        self.path: Tensors = {}
        self.before: Tensors = {}

    def begin(self, view: View, experience: Experience) -> None:
        if self.strength:
            self.anchor = copies(view) | self.anchor  # new weights start here, the others where they ended
            self.path = zeros(view)

    def mix(self, view: View, batch: Batch) -> Batch:
        self.before = copies(view) if self.strength else {}  # only until the update is made
        return batch

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        if self.strength:
            walk(self.path, view.task_gradient, self.before, view.params)
            self.before = {}

    def end(self, view: View, experience: Experience) -> None:
        if self.strength:
            now, old = copies(view), self.importance
            moved = {name: (now[name] - self.anchor[name]).square() for name in now}
            gained = {name: path / (moved[name] + self.damping) for name, path in self.path.items()}
            self.hold({name: (old.get(name, 0) + gain).clamp(min=0) for name, gain in gained.items()}, now)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "path": self.path}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.path = self.placed(state["path"])


@torch.no_grad()
def walk(path: Tensors, gradient: Weights, before: Tensors, after: Weights) -> None:
    """path_i += gradient_i (before_i - after_i): how much of the loss each weight's way has saved.

    In place; ``before`` is the way back when it is done.
    """
    for name, g in gradient.items():
        path[name].addcmul_(g, before[name].sub_(after[name]))
