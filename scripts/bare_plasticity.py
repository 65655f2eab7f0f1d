"""Bare loops of the strategies that make weights or hidden units of a perceptron anew."""

from collections import deque
from typing import Any

import torch
from bare import Bare, Setup
from torch import Tensor, nn

from continual.seeding import generator


class BareShrinkPerturb(Bare):
    """At the beginning of each task but the first, small old weights and some noise."""

    def start(self) -> None:
        self.draws = generator(0, "ShrinkPerturb")
        params = [p.detach() for p in self.network.parameters()]
        self.initial = [(float(p.mean()), float(p.std(correction=0))) for p in params]

    @torch.no_grad()
    def begin(self, ids: Tensor) -> None:
        if self.task:
            for p, (mean, spread) in zip(self.network.parameters(), self.initial, strict=True):
                fresh = torch.randn(p.shape, generator=self.draws).mul_(spread).add_(mean)
                p.mul_(self.options["shrink"]).add_(fresh, alpha=self.options["noise"])


class Renewed(Bare):
    """Looks at the hidden units."""

    NAME: str

    def start(self) -> None:
        self.linear = [module for module in self.network if isinstance(module, nn.Linear)]
        self.draws, self.updates = generator(0, self.NAME), 0

    def activations(self, x: Tensor) -> list[Tensor]:
        """(U,) mean of each hidden layer's activations, which are at least 0."""
        h, found = x.float().mul_(1 / 255).flatten(1), []
        for layer in self.linear[:-1]:
            h = layer(h).relu_()
            found.append(h.mean(0))
        return found

    def renew(self, number: int, units: Tensor) -> None:
        """Make ``units`` (indices) of a hidden layer anew."""
        layer, after = self.linear[number], self.linear[number + 1]
        bound = layer.in_features**-0.5
        for p in (layer.weight, layer.bias):
            p[units] = torch.empty(len(units), *p.shape[1:]).uniform_(-bound, bound, generator=self.draws)
        after.weight[:, units] = 0


class BareReDo(Renewed):
    """Now and then, those that hardly answer."""

    NAME = "ReDo"

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:
        return {"every": max(setup.hidden) // 2, "threshold": 0.5}  # so that it acts in a short run

    @torch.no_grad()
    def remember(self, x: Tensor, y: Tensor) -> None:
        self.updates += 1
        if self.updates % self.options["every"] == 0:
            for number, active in enumerate(self.activations(x)):
                self.renew(number, (active <= self.options["threshold"] * active.mean()).nonzero()[:, 0])


class BareContinualBackprop(Renewed):
    """All the time, the least useful of those that are old enough."""

    NAME = "ContinualBackprop"

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:
        width = max(setup.hidden)
        return {"rate": 0.8 / width**1.5, "maturity": width // 4}  # the YAML's at 400; acts in a short run at 8

    def start(self) -> None:
        super().start()
        widths = [layer.out_features for layer in self.linear[:-1]]
        self.utility = [torch.zeros(n) for n in widths]
        self.born = [torch.zeros(n, dtype=torch.int64) for n in widths]
        self.young: list[deque[tuple[int, int]]] = [deque([(0, n)]) for n in widths]  # when, and how many were born
        self.mature, self.due = [0 for _ in widths], [0.0 for _ in widths]

    @torch.no_grad()
    def remember(self, x: Tensor, y: Tensor) -> None:
        self.updates += 1
        decay = self.options["decay"]
        for number, active in enumerate(self.activations(x)):
            contribution = active.mul_(self.linear[number + 1].weight.abs().sum(0))
            self.utility[number].mul_(decay).add_(contribution, alpha=1 - decay)
            last, young = self.updates - self.options["maturity"], self.young[number]
            while young and young[0][0] < last:
                self.mature[number] += young.popleft()[1]
            self.due[number] += self.options["rate"] * self.mature[number]
            if self.due[number] >= 1:
                self.replace(number, int(self.due[number]))

    def replace(self, number: int, n: int) -> None:
        self.due[number] %= 1
        fresh = self.born[number] >= self.updates - self.options["maturity"]
        units = self.utility[number].masked_fill(fresh, torch.inf).topk(n, largest=False).indices
        self.renew(number, units)
        self.utility[number][units] = 0
        self.born[number][units] = self.updates
        self.young[number].append((self.updates, n))
        self.mature[number] -= n


BARE: dict[str, type[Bare]] = {
    "shrink_perturb": BareShrinkPerturb,
    "redo": BareReDo,
    "continual_backprop": BareContinualBackprop,
}
