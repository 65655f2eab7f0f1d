"""Gradient episodic memory: no step against the gradient of any earlier experience's remembered rows.

    g' = argmin |g' - g|^2  with  G g' >= 0,    a row of G is the gradient of the mean loss of one experience's rows
    g' = g + G^T v,    v = argmin 1/2 |G^T v + g|^2  with  v >= margin;    g' = g where G g >= 0 already

A margin above 0 pushes towards lower losses of earlier experiences (in the authors' code, as here, it is the bound of
v). Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory for Continual Learning", https://arxiv.org/abs/1706.08840
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from continual.errors import UserError
from continual.memory import Column, Memory
from continual.refusals import at_least_0
from continual.strategies.replay import Replay
from continual.strategy import View
from continual.types import Batch, Output, Spec


class GEM(Replay):
    """Project the gradient of each step, all terms of the loss included. The small program is solved on the CPU.

    Costs a gradient of all remembered rows of earlier experiences in each step.

    Args:
        memory: partial of a ``continual.memory.Memory`` whose classes here are the experiences of the stream: a ring
            holds the last rows of each, in equal parts. Where there are more experiences than were announced, a new one
            takes the part of the oldest.
        margin: least weight of every constraint once one is broken, >= 0; 0 is the nearest gradient that breaks none.
        seed: of the run.
    """

    needs_boundaries: ClassVar[bool] = True

    def __init__(self, memory: Callable[..., Memory], margin: float = 0.5, seed: int = 0) -> None:
        super().__init__(memory, n_replay=0, seed=seed)
        at_least_0(self, margin=margin)
        self.margin = margin

    def start(self, view: View) -> None:
        if view.spec.n_experiences is None:
            raise UserError("strategy 'gem' shares its memory among the experiences, and this stream does not say how "
                            "many there will be; use strategy=agem")  # fmt: skip
        self.parts = view.spec.n_experiences
        try:
            super().start(view)
        except UserError as error:
            raise UserError(f"{error}; a class is one of {self.parts} experiences for strategy 'gem'") from error

    def layout(self, view: View) -> Spec:
        return replace(view.spec, n_classes=self.parts)

    def columns(self, view: View) -> dict[str, Column]:
        return {"label": ((), torch.int64)}

    def beside(self, view: View, batch: Batch, out: Output) -> dict[str, Tensor]:
        return {"label": batch.y[: batch.arrived]}

    def offer(self, view: View, batch: Batch, **columns: Tensor) -> None:
        part, extra = view.experience % self.parts, {name: c for name, c in batch.extra.items() if name != "y"}
        extra |= {"y": torch.full((batch.arrived,), part)}
        super().offer(view, replace(batch, y=torch.full_like(batch.y, part), extra=extra), **columns)

    def project(self, view: View, grads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        stored = self.memory.columns["y"][: len(self.memory)]
        earlier = [part for part in torch.unique(stored).tolist() if part != view.experience % self.parts]
        if not earlier:
            return grads
        constraints = flat(*(self._gradient(view, batch, stored == part, grads) for part in earlier))
        whole = feasible(flat(grads)[0], constraints, self.margin)
        pieces = torch.split(whole, [g.numel() for g in grads.values()])
        return {name: piece.view_as(g) for (name, g), piece in zip(grads.items(), pieces, strict=True)}

    def _gradient(self, view: View, batch: Batch, chosen: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        slots = chosen.nonzero()[:, 0]
        x, y = self.memory.inputs(slots, view.fetch), self.memory.column("label", slots)
        gradient = view.gradient(Batch(x, y, batch.weight.new_full((len(y),), 1 / len(y)), arrived=0))
        return {name: gradient[name] for name in names}


def flat(*gradients: dict[str, Tensor]) -> Tensor:
    """(n, P) each of the n gradients as one row, its tensors behind one another."""
    return torch.cat([g.flatten() for gradient in gradients for g in gradient.values()]).view(len(gradients), -1)


def feasible(g: Tensor, constraints: Tensor, margin: float) -> Tensor:
    """The gradient (P,) to follow in the place of ``g`` (P,), given the constraints G (T, P).

    The dual is a least-squares problem with v >= margin: with u = v - margin >= 0, min |G^T u + (g + margin G^T 1)|^2,
    for which G G^T and G g are enough.
    """
    against = constraints @ g
    if bool((against >= 0).all()):
        return g
    from scipy.optimize import nnls  # its import takes a while

    exact = constraints.double()
    gram = exact @ exact.T  # (T, T)
    sizes, turns = torch.linalg.eigh(gram)  # (T,), (T, T)
    roots = sizes.clamp(min=sizes[-1] * 1e-14).sqrt()  # of constraints that say the same one is 0
    aim = -((against.double() + margin * gram.sum(0)) @ turns) / roots
    u, _ = nnls((turns * roots).T.cpu().numpy(), aim.cpu().numpy())
    return g + constraints.T @ (torch.from_numpy(u) + margin).to(g)
