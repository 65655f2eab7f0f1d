"""Bare loops of the strategies that hold weights near those of before.

The gradient of a quadratic penalty is known: it is added to that of the loss, and autograd has no part in it. No weight
matters so much here that ours would cut its pull (``max_pull``), or the weights would differ.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from bare import Bare, Setup
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy


class Held(Bare):
    """Adds ``pull`` * importance * (w - anchor) to the gradient; a subclass says what matters."""

    def start(self) -> None:
        self.params = list(self.network.parameters())
        self.anchor: list[Tensor] = []
        self.importance: list[Tensor] = []
        self.pull = 2 * self.options["strength"]

    @torch.no_grad()
    def project(self) -> None:
        for p, k, a in zip(self.params, self.importance, self.anchor, strict=False):  # no importance in the first task
            p.grad.addcmul_(k, p - a, value=self.pull)  # type: ignore[union-attr]

    def hold(self, importance: list[Tensor]) -> None:
        self.importance, self.anchor = importance, self.copies()

    def copies(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params]

    def zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p, requires_grad=False) for p in self.params]

    def mean_over_rows(self, ids: Tensor, measure: Callable[..., Tensor], sign: Callable[[Tensor], Tensor]) -> Any:
        """Mean over rows of ``sign`` of each row's own gradient, a chunk of rows at a time, in eval mode."""
        names, total = [name for name, _ in self.network.named_parameters()], self.zeros()
        weights = dict(zip(names, self.copies(), strict=True))
        gradients = vmap(grad(measure), in_dims=(None, 0, 0))
        self.network.eval()
        for rows in ids.split(self.options["chunk"]):
            x = self.images.index_select(0, rows).float().mul_(1 / 255)
            found = gradients(weights, x, self.labels.index_select(0, rows))
            for t, name in zip(total, names, strict=True):
                t += sign(found[name]).sum(0)
        self.network.train()
        return [t.div_(len(ids)) for t in total]

    def answer(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        """Logits (1, C) of one row (*in_shape)."""
        return functional_call(self.network, weights, (x[None],))


def added(sums: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """``sums`` and ``new``, before there are any sums ``new`` alone."""
    return [s + n for s, n in zip(sums, new, strict=True)] if sums else list(new)


class BareEWC(Held):
    """At the end of a task the Fisher diagonal: the square of each row's own gradient."""

    def start(self) -> None:
        super().start()
        self.pull = self.options["strength"]

    def end(self, ids: Tensor) -> None:
        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(self.answer(weights, x), y[None])

        self.hold(added(self.importance, self.mean_over_rows(ids, loss, Tensor.square_)))


class BareMAS(Held):
    """At the end of a task the size of the gradient of each row's squared answers, of the classes seen so far.

    The sum of all tasks counts in shares of its largest entry, which is a matter of the strength.
    """

    def start(self) -> None:
        super().start()
        self.seen = torch.zeros(self.spec.n_classes)

    def end(self, ids: Tensor) -> None:
        def size(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
            return (self.answer(weights, x) * self.seen).square().sum()

        self.seen[self.labels[ids]] = 1
        self.hold(added(self.importance, self.mean_over_rows(ids, size, Tensor.abs_)))
        self.pull = 2 * self.options["strength"] / max(float(k.max()) for k in self.importance)


class BareSI(Held):
    """The gradient of the task's loss times the way that each weight went, summed over the steps."""

    def begin(self, ids: Tensor) -> None:
        self.anchor = self.anchor or self.copies()
        self.path = self.zeros()

    @torch.no_grad()
    def project(self) -> None:
        self.gradient: list[Tensor] = [p.grad for p in self.params]  # type: ignore[misc]
        self.before = self.copies()
        for p, g, k, a in zip(self.params, self.gradient, self.importance, self.anchor, strict=False):
            p.grad = torch.addcmul(g, k, p - a, value=self.pull)

    @torch.no_grad()
    def remember(self, x: Tensor, y: Tensor) -> None:
        for path, g, before, p in zip(self.path, self.gradient, self.before, self.params, strict=True):
            path.addcmul_(g, before.sub_(p))

    def end(self, ids: Tensor) -> None:
        damping, gained = self.options["damping"], []
        for path, p, a in zip(self.path, self.params, self.anchor, strict=True):
            gained.append(path / ((p.detach() - a).square_() + damping))
        self.hold([total.clamp_(min=0) for total in added(self.importance, gained)])


class BareRWalk(BareSI):
    """The way of SI, a Fisher diagonal that follows the squared gradient, and a score of each window of steps."""

    def start(self) -> None:
        super().start()
        self.fisher: list[Tensor] = []
        self.score: list[Tensor] = []

    def begin(self, ids: Tensor) -> None:
        super().begin(ids)
        self.total, self.origin, self.steps = self.zeros(), self.copies(), 0

    @torch.no_grad()
    def remember(self, x: Tensor, y: Tensor) -> None:
        super().remember(x, y)
        decay = self.options["decay"]
        if self.fisher:
            for f, g in zip(self.fisher, self.gradient, strict=True):
                f.mul_(decay).addcmul_(g, g, value=1 - decay)
        else:
            self.fisher = [g.square() for g in self.gradient]
        self.steps += 1
        if self.steps == self.options["window"]:
            self.close()

    @torch.no_grad()
    def close(self) -> None:
        """End a window of steps."""
        for total, path, f, p, o in zip(self.total, self.path, self.fisher, self.params, self.origin, strict=True):
            distance = (p - o).square_().mul_(f).mul_(0.5)
            total += path.div_(distance.add_(self.options["damping"])).clamp_(min=0)
            path.zero_()
            o.copy_(p)
        self.steps = 0

    def end(self, ids: Tensor) -> None:
        self.close()
        self.score = [(s + t) / 2 for s, t in zip(self.score or self.total, self.total, strict=True)]
        most_fisher, most_score = (max(float(t.max()) for t in values) for values in (self.fisher, self.score))
        self.hold([f / most_fisher + s / most_score for f, s in zip(self.fisher, self.score, strict=True)])


class BareL2(Held):
    """All weights alike."""

    @torch.no_grad()
    def project(self) -> None:
        if self.anchor:
            gradients = [p.grad for p in self.params]
            torch._foreach_add_(gradients, torch._foreach_sub(self.params, self.anchor), alpha=self.pull)


class BareL2Anchor(BareL2):
    """Towards the weights after the last task."""

    def start(self) -> None:
        super().start()
        self.pull = self.options["strength"]

    def end(self, ids: Tensor) -> None:
        self.anchor = self.copies()


class BareL2Init(BareL2):
    """Towards the initial weights."""

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:  # noqa: ARG004
        return {"strength": 0.1}

    def start(self) -> None:
        super().start()
        self.anchor = self.copies()


BARE: dict[str, type[Bare]] = {
    "ewc": BareEWC,
    "mas": BareMAS,
    "si": BareSI,
    "rwalk": BareRWalk,
    "l2_anchor": BareL2Anchor,
    "l2_init": BareL2Init,
}
