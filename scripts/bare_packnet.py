"""Bare loop of PackNet: each task has weights of its own, which later tasks may use but not change."""

from math import floor

import torch
from bare import Bare
from torch import Tensor
from torch.nn.functional import cross_entropy

from continual.batches import Schedule
from continual.seeding import derive


class BarePackNet(Bare):
    """What belongs to a task gets no gradient, and is put back where the optimizer has moved it all the same."""

    KIND = "task"

    def start(self) -> None:
        self.params = list(self.network.parameters())
        self.owned = [torch.zeros_like(p, dtype=torch.bool) for p in self.params]
        self.free: list[Tensor] = []  # 1 where a weight belongs to nobody; a product of floats is fast, of bools slow
        self.kept: list[Tensor] = []  # the weights after the last task, 0 where they are free

    @torch.no_grad()
    def project(self) -> None:
        for p, free in zip(self.params, self.free, strict=False):  # nothing in the first task
            p.grad.mul_(free)  # type: ignore[union-attr]

    @torch.no_grad()
    def remember(self, x: Tensor, y: Tensor) -> None:
        for p, free, kept in zip(self.params, self.free, self.kept, strict=False):
            torch.addcmul(kept, p, free, out=p)

    def end(self, ids: Tensor) -> None:
        mine = [self.prune(p, owned) for p, owned in zip(self.params, self.owned, strict=True)]
        shuffled = Schedule(
            len(ids),
            self.options["batch_size"],
            self.options["n_passes"],
            None,
            derive(0, "PackNet"),
            self.task + 1,
            least=2,
        )
        for positions in shuffled:
            rows = ids[positions]
            loss = cross_entropy(self.logits(self.images.index_select(0, rows)), self.labels.index_select(0, rows))
            gradients = torch.autograd.grad(loss, self.params)
            with torch.no_grad():
                for p, g, m in zip(self.params, gradients, mine, strict=True):
                    p.sub_(g.mul_(m), alpha=self.setup.lr)
        self.free = [(~owned).to(torch.float32) for owned in self.owned]
        self.kept = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def prune(self, p: Tensor, owned: Tensor) -> Tensor:
        """Bool like ``p``: the weights that are the task's from now on; other free ones of a layer become 0."""
        free = ~owned
        if p.dim() > 1:
            n = int(free.sum())
            size = p.abs().masked_fill_(owned, -1).view(-1)
            largest = size.topk(n - floor(self.options["share"] * n)).indices
            free = torch.zeros_like(free).view(-1).index_fill_(0, largest, True).view_as(free) & (p != 0)
        owned |= free
        p.masked_fill_(~owned, 0)
        return free


BARE: dict[str, type[Bare]] = {"packnet": BarePackNet}
