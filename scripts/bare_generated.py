"""Bare loop of deep generative replay."""

from copy import deepcopy
from math import prod
from typing import Any

import torch
from bare import Bare, Setup
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from continual.seeding import derive, generator


class BareDGR(Bare):
    """A variational autoencoder makes up rows, which the network as it was before the task labels."""

    KIND = "class"

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:
        return {"n_replay": setup.batch}

    def start(self) -> None:
        d, (h,), z = prod(self.spec.in_shape), self.options["hidden"], self.options["n_latent"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(0, "DGR", "generator"))
            self.encoder = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, 2 * z))
            self.decoder = nn.Sequential(nn.Linear(z, h), nn.ReLU(), nn.Linear(h, d))
        params = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.adam = torch.optim.Adam(params, lr=self.options["lr"], fused=True)
        self.noise, self.n = generator(0, "DGR"), self.options["n_replay"]
        self.seen = torch.zeros(self.spec.n_classes, dtype=torch.bool)
        self.solver: nn.Module | None = None

    def begin(self, ids: Tensor) -> None:
        if bool(self.seen.any()):
            self.solver = deepcopy(self.network).eval().requires_grad_(False)
            self.past = deepcopy(self.decoder).requires_grad_(False)
            self.old = self.seen.nonzero()[:, 0]
        self.share = 1 / (self.task + 1)

    def draw(self, n: int) -> Tensor:
        return torch.randn(n, self.options["n_latent"], generator=self.noise)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.x = x.float().div_(255)
        if self.solver is None:
            return cross_entropy(self.network(self.x), y)
        made = self.past(self.draw(self.n)).sigmoid_().mul_(255).round_().div_(255).view(-1, *self.spec.in_shape)
        labels = self.old[self.solver(made).index_select(1, self.old).argmax(1)]
        self.x = torch.cat([self.x, made])
        arrived, replayed = self.network(self.x).split([len(y), self.n])
        return self.share * cross_entropy(arrived, y) + (1 - self.share) * cross_entropy(replayed, labels)

    def remember(self, x: Tensor, y: Tensor) -> None:
        n, rows = len(y), self.x.flatten(1)
        mean, log_variance = self.encoder(rows).chunk(2, dim=1)
        decoded = self.decoder(mean + (log_variance / 2).exp() * self.draw(len(rows)))
        misfit = binary_cross_entropy_with_logits(decoded, rows, reduction="none").sum(1)
        losses = misfit + (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        loss = self.share * losses[:n].mean()
        if self.solver is not None:
            loss = loss + (1 - self.share) * losses[n:].mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def end(self, ids: Tensor) -> None:
        self.seen[self.labels[ids]] = True


BARE: dict[str, type[Bare]] = {"dgr": BareDGR}
