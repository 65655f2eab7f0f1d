"""Bare loops of the strategies whose memory is more than a reservoir for replay: AGEM, GEM, SCR, iCaRL."""

from copy import deepcopy
from typing import Any

import torch
from bare import Bare, Setup
from bare_replay import BareER
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, one_hot

from continual.seeding import derive, generator


class BareAGEM(Bare):
    """A ring of each class, filled when a task ends; a gradient that points against theirs is projected."""

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:
        return {"n_replay": setup.batch, "memory.capacity": setup.capacity}

    def start(self) -> None:
        n_classes = self.spec.n_classes
        self.share = self.setup.capacity // n_classes
        self.x = torch.zeros(self.share * n_classes, *self.spec.in_shape, dtype=self.spec.dtype)
        self.y = torch.zeros(self.share * n_classes, dtype=torch.int64)
        self.slots: list[list[int]] = [[] for _ in range(n_classes)]
        self.counts, self.held = [0] * n_classes, 0
        self.draws = generator(derive(0, "AGEM", "memory"))

    def project(self) -> None:
        if not self.held:
            return
        slots = torch.randperm(self.held, generator=self.draws)[: self.options["n_replay"]]
        loss = cross_entropy(self.logits(self.x.index_select(0, slots)), self.y.index_select(0, slots))
        params = list(self.network.parameters())
        reference = torch.autograd.grad(loss, params)
        along = torch.stack([torch.dot(p.grad.flatten(), r.flatten()) for p, r in zip(params, reference, strict=True)])
        if (dot := along.sum().item()) < 0:
            length = torch.stack([r.square().sum() for r in reference]).sum().item()
            torch._foreach_sub_([p.grad for p in params], reference, alpha=dot / length)

    def end(self, ids: Tensor) -> None:
        ids = ids[torch.randperm(len(ids), generator=self.draws)]
        for row, label in zip(ids.tolist(), self.labels[ids].tolist(), strict=True):
            slots, count = self.slots[label], self.counts[label]
            if count < self.share:
                slots.append(self.held)
                self.held += 1
            slot = slots[count % self.share]
            self.x[slot], self.y[slot] = self.images[row], label
            self.counts[label] += 1


class BareGEM(Bare):
    """The last rows of each task; a gradient that points against that of any earlier task is projected."""

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:
        return {"memory.capacity": setup.capacity}

    def start(self) -> None:
        parts = len(self.ids)
        self.share = self.setup.capacity // parts
        self.x = torch.zeros(parts, self.share, *self.spec.in_shape, dtype=self.spec.dtype)
        self.y = torch.zeros(parts, self.share, dtype=torch.int64)
        self.counts = [0] * parts

    def project(self) -> None:
        if not self.task:
            return
        params = list(self.network.parameters())
        g = torch.cat([p.grad.flatten() for p in params])
        constraints = torch.stack([self.gradient(params, task) for task in range(self.task)])
        against = constraints @ g
        if bool((against >= 0).all()):
            return
        g = g + constraints.T @ self.solve(constraints, against).to(g)
        for p, piece in zip(params, g.split([p.numel() for p in params]), strict=True):
            p.grad = piece.view_as(p)

    def gradient(self, params: list[nn.Parameter], task: int) -> Tensor:
        n = min(self.share, self.counts[task])
        loss = cross_entropy(self.logits(self.x[task, :n]), self.y[task, :n])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])

    def solve(self, constraints: Tensor, against: Tensor) -> Tensor:
        """(T,) weights of the constraints: min |G^T v + g|^2 with v >= margin, from G G^T and G g alone."""
        from scipy.optimize import nnls

        margin, constraints = self.options["margin"], constraints.double()
        gram = constraints @ constraints.T
        lower = torch.linalg.cholesky(gram)
        right = torch.linalg.solve_triangular(lower, (against.double() + margin * gram.sum(1))[:, None], upper=False)
        u, _ = nnls(lower.T.numpy(), -right[:, 0].numpy())
        return torch.from_numpy(u) + margin

    def remember(self, x: Tensor, y: Tensor) -> None:
        slots = torch.arange(self.counts[self.task], self.counts[self.task] + len(y))[-self.share :]
        self.counts[self.task] += len(y)
        self.x[self.task, slots % self.share], self.y[self.task, slots % self.share] = (
            x[-self.share :],
            y[-self.share :],
        )


class BareSCR(BareER):
    """The contrastive loss of arrived and replayed rows, each twice, behind a projection of the features."""

    NAME = "SCR"

    def start(self) -> None:
        super().start()
        width = self.network[-1].in_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(0, "extra", "scr"))
            self.projection = nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.options["n_projected"])
            )

    def parameters(self) -> list[nn.Parameter]:
        return [*self.network.parameters(), *self.projection.parameters()]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if len(self.memory):
            slots = self.memory.draw(self.n_replay)
            x, y = torch.cat([x, self.memory.take("x", slots)]), torch.cat([y, self.memory.take("y", slots)])
        x, y = torch.cat([x, x]), torch.cat([y, y])
        unit = normalize(self.projection(self.network[:-1](x.float().mul_(1 / 255))), dim=1)
        itself = torch.eye(len(y), dtype=torch.bool)
        similar = (unit @ unit.T / self.options["temperature"]).masked_fill(itself, -1e9)
        logs = similar.log_softmax(1)
        positive = ((y[:, None] == y) & ~itself).float()
        return -((positive * logs).sum(1) / positive.sum(1)).mean()  # a row is never alone: its copy is there


class BareICaRL(Bare):
    """Binary cross-entropy, taught by the network of before; exemplars by herding when a task ends."""

    KIND = "class"

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:
        return {"n_replay": setup.batch, "capacity": setup.capacity}

    def start(self) -> None:
        self.x, self.y = self.images[:0], self.labels[:0]
        self.seen = torch.zeros(self.spec.n_classes, dtype=torch.bool)
        self.old, self.teacher = self.seen, None
        self.draws = generator(derive(0, "ICaRL", "memory"))

    def begin(self, ids: Tensor) -> None:
        if self.task:
            self.old, self.teacher = self.seen.clone(), deepcopy(self.network).eval()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen.index_fill_(0, y, True)
        if len(self.y):
            slots = torch.randperm(len(self.y), generator=self.draws)[: self.options["n_replay"]]
            x, y = torch.cat([x, self.x.index_select(0, slots)]), torch.cat([y, self.y.index_select(0, slots)])
        x = x.float().mul_(1 / 255)
        target = one_hot(y, self.spec.n_classes).float()
        if self.teacher is not None:
            with torch.no_grad():
                target = torch.where(self.old, (self.teacher(x) / self.options["temperature"]).sigmoid(), target)
        return binary_cross_entropy_with_logits(self.network(x), target, self.seen.float(), reduction="sum") / len(y)

    def end(self, ids: Tensor) -> None:
        arrived, chosen = self.labels[ids], []
        classes = self.seen.nonzero()[:, 0].tolist()
        quota = self.setup.capacity // len(classes)
        for label in classes:
            x = self.x[self.y == label]
            new = ids[arrived == label]
            if len(new):
                x = self.herd(torch.cat([x, self.images[new]]), quota)
            chosen.append(x[:quota])
        self.x = torch.cat(chosen)
        self.y = torch.cat([self.labels.new_full((len(x),), label) for x, label in zip(chosen, classes, strict=True)])

    @torch.no_grad()
    def herd(self, x: Tensor, n: int) -> Tensor:
        """The ``n`` of the rows ``x`` whose mean of features stays nearest to that of all."""
        self.network.eval()
        features = normalize(torch.cat([self.network[:-1](part.float().mul_(1 / 255)) for part in x.split(512)]), dim=1)
        self.network.train()
        chosen, left, total, mean = [], list(range(len(x))), torch.zeros_like(features[0]), features.mean(0)
        while left and len(chosen) < n:
            away = (mean - (total + features[left]) / (len(chosen) + 1)).norm(dim=1)
            chosen.append(left.pop(int(away.argmin())))
            total += features[chosen[-1]]
        return x[chosen]


BARE: dict[str, type[Bare]] = {"agem": BareAGEM, "gem": BareGEM, "scr": BareSCR, "icarl": BareICaRL}
