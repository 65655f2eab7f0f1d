"""Maximally interfered retrieval: replay the rows that the next update would hurt most.

    w' = w - lr * gradient of the arrived rows' loss            a virtual step, which is not made
    score = CE(w'; x, y) - CE(w; x, y)                          of each of n_candidates rows drawn from the memory
    the n_replay rows of the highest score are replayed

Aljundi et al. 2019, "Online Continual Learning with Maximally Interfered Retrieval", https://arxiv.org/abs/1908.04742
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from continual.memory import Memory
from continual.refusals import at_least_0
from continual.strategies.er import ER
from continual.strategy import View, Weights
from continual.types import Batch


class MIR(ER):
    """Experience replay of the candidates whose loss a plain step on the arrived rows would raise most.

    Scores are of the network in eval mode; the virtual step has the learning rate of now and no momentum. While there
    are no more candidates than ``n_replay``, all are replayed and none is scored. Costs a forward and a backward pass
    for each arrived row and two forward passes for each candidate beside those of ``ER``.

    Args:
        memory: partial of a ``continual.memory.Memory``.
        n_replay: rows replayed per update, >= 0; 0 only remembers.
        n_candidates: rows that are scored, >= 0; at most ``n_replay`` of them are replayed.
        exclude_current: replay no row of the current experience (uses task boundaries), as the paper does.
        strength: weight of the replayed rows' own mean, >= 0; 1 as in the authors' code, None for one mean of all rows.
        seed: of the run.
    """

    def __init__(
        self,
        memory: Callable[..., Memory],
        n_replay: int = 10,
        n_candidates: int = 50,
        exclude_current: bool = False,
        strength: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(memory, n_replay, exclude_current, strength=strength, seed=seed)
        at_least_0(self, n_candidates=n_candidates)
        self.n_candidates = n_candidates

    def draw(self, view: View, batch: Batch) -> Tensor:
        slots = self.memory.draw(self.n_candidates, self.among(view))
        if not self.n_replay or len(slots) <= self.n_replay:
            return slots[: self.n_replay]
        x, y = self.memory.inputs(slots, view.fetch), self.memory.column("y", slots)
        stepped = virtual_step(view, batch)
        candidates = Batch(x, y, batch.weight.new_ones(len(y)), arrived=0)
        growth = row_losses(view, stepped, candidates) - row_losses(view, view.params, candidates)  # (n_candidates,)
        return slots[growth.topk(self.n_replay).indices]


def virtual_step(view: View, batch: Batch) -> dict[str, Tensor]:
    """The parameters after a plain gradient step on the mean loss of the arrived rows of ``batch``."""
    n = batch.arrived
    arrived = replace(batch, x=batch.x[:n], y=batch.y[:n], weight=batch.weight.new_full((n,), 1 / n))
    gradient = view.gradient(arrived)
    return {name: p.detach() - view.lr() * gradient[name] for name, p in view.params.items()}


def row_losses(view: View, weights: Weights, batch: Batch) -> Tensor:
    """(B,) plain loss of each row under the head's mask, in eval mode; costs a forward pass for each.

    The loss is sum_b weight_b rows_b: its derivative by the weight of a row is the loss of that row.
    """
    share = batch.weight.detach().requires_grad_()
    with view.still():
        total = view.plain_loss({name: p.detach() for name, p in weights.items()}, replace(batch, weight=share))
    (rows,) = torch.autograd.grad(total, share)
    return rows
