"""What penalties that hold weights near earlier ones share: an anchor and an importance of each weight.

    penalty = c / 2 * sum_i k_i (w_i - anchor_i)^2,      k_i = importance_i, but at most max_pull / (c * lr)

A gradient step on it moves w_i by lr * c * k_i of its way to the anchor. Beyond one whole way it overshoots, and beyond
two it moves away for ever, whatever the rest of the loss says. So a weight's pull is cut to one whole way (max_pull 1),
and no strength makes it diverge. A weight that is not cut has exactly the published penalty. At the default strengths
and a learning rate of 0.1 that is every weight for EWC (until the sum over very many experiences grows past 1 / lr),
MAS, the Riemannian walk and the uniform penalties; a few weights of SI reach the bound (single rows, long training).
The bound keeps a penalty stable, not useful: where most weights are at it, nothing is learned any more. So an
importance that has no size of its own (MAS, the Riemannian walk) is divided by its largest entry.
The bound is that of plain gradient steps; momentum (0.9, Nesterov too) bears it. An adaptive optimizer divides each
weight's pull by its own size and needs no bound: published strengths of 1e5 and more are for those, with max_pull null.
"""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad, vmap

from continual.batches import batches, parts
from continual.refusals import require
from continual.strategy import Strategy, View, Weights
from continual.types import Batch, Experience, Output

Tensors = dict[str, Tensor]


class Anchored(Strategy):
    """Pulls each weight towards its anchor; a subclass says when ``anchor`` and ``importance`` are taken.

    Weights without an importance (those of a head that grew later) are free. With ``strength`` 0 nothing is pulled.
    """

    steady: ClassVar[tuple[str, ...] | None] = ()

    curvature: ClassVar[float] = 2.0
    """c per strength: 2 where the source writes strength * sum, 1 where it writes strength / 2 * sum."""

    def __init__(self, strength: float, max_pull: float | None = 1.0) -> None:
        self.strength, self.max_pull = strength, max_pull
        require(self, "strength", strength, strength >= 0, "at least 0")
        require(self, "max_pull", max_pull, max_pull is None or max_pull > 0, "above 0, or null")
        self.importance: Tensors = {}
        self.anchor: Tensors = {}
        self.peak = 0.0  # the largest importance: nothing needs to be cut before it reaches the bound
        self.unit = 1.0  # the importance that counts 1

    def start(self, view: View) -> None:
        self.device = view.classes.device

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        if not self.importance or not self.strength:
            return 0.0
        c, most = self.bounds(view)
        return 0.5 * c * quadratic(params, self.anchor, self.importance, most)

    @torch.no_grad()
    def pull(self, view: View, grads: Tensors) -> None:
        if not self.strength:
            return
        c, most = self.bounds(view)
        for name, importance in self.importance.items():
            away = view.params[name] - self.anchor[name]
            k = importance if most == inf else importance.clamp(max=most)
            grad = grads.get(name)
            if grad is None:
                grads[name] = away.mul_(k).mul_(c)
            else:
                kept = grad is view.task_gradient.get(name)
                grads[name] = torch.addcmul(grad, k, away, value=c, out=None if kept else grad)

    def bounds(self, view: View) -> tuple[float, float]:
        """The factor c, and at most what an importance counts; inf where none reaches the bound."""
        c, lr = self.curvature * self.strength / self.unit, view.lr()
        most = inf if self.max_pull is None or lr <= 0 else self.max_pull / (c * lr)
        return c, most if most < self.peak else inf

    def hold(self, importance: Tensors, anchor: Tensors) -> None:
        """Pull by ``importance`` towards ``anchor`` from now on."""
        self.importance, self.anchor = importance, anchor
        self.peak = largest(importance)

    def state_dict(self) -> dict[str, Any]:
        return {"importance": self.importance, "anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.hold(self.placed(state["importance"]), self.placed(state["anchor"]))

    def placed(self, stored: Weights) -> Tensors:
        """Tensors of a snapshot, on the device of the weights."""
        return {name: tensor.to(self.device) for name, tensor in stored.items()}


def copies(view: View) -> Tensors:
    """The parameters as they are now, sharing no memory with the live ones."""
    return {name: p.detach().clone() for name, p in view.params.items()}


def largest(values: Weights) -> float:
    """The largest entry of all, 0 if there are none."""
    return max((float(v.max()) for v in values.values()), default=0.0)


def zeros(view: View) -> Tensors:
    """A zero for each weight."""
    return {name: torch.zeros_like(p, requires_grad=False) for name, p in view.params.items()}


def quadratic(params: Weights, anchor: Weights, importance: Weights, most: float = inf) -> Tensor:
    """sum_i min(importance_i, most) (params_i - anchor_i)^2, to be differentiated once."""
    total = torch.zeros(())
    for name, f in importance.items():
        away = params[name] - anchor[name]
        pull = ((f if most == inf else f.clamp(max=most)) * away).detach()  # half of the gradient, known already:
        part = torch.dot(pull.reshape(-1), away.reshape(-1))  # backward need not form it again
        total = total + 2 * part - part.detach()
    return total


def gradients_of(view: View, measure: Callable[..., Tensor], *columns: Tensor) -> Tensors:
    """For each row of ``columns`` (B, ...), d measure(params, *row) / dw: (B, *shape) by name.

    In eval mode; ``measure`` makes one forward pass of one row, and each row costs a forward and a backward.
    """
    params = {name: p.detach() for name, p in view.params.items()}
    with view.still():
        gradients: Tensors = vmap(grad(measure), in_dims=(None, *(0 for _ in columns)))(params, *columns)
    view.charge(3 * len(columns[0]) - 1)  # the one traced forward has charged its row
    return {name: g.contiguous() for name, g in gradients.items()}  # of a parameter without part: one row, expanded


def mean_over_rows(view: View, experience: Experience, chunk: int, measure: Callable[[Batch], Tensors]) -> Tensors:
    """Mean over the experience's rows of what ``measure`` says of each, (B, *shape) by name; ``chunk`` rows at once."""
    rows, total = experience.rows, zeros(view)
    for batch in batches(rows, parts(rows, chunk)):
        for name, values in measure(batch).items():
            total[name] += values.sum(0)
    return {name: t / max(len(rows), 1) for name, t in total.items()}
