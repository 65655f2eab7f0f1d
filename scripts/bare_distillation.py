"""Bare loops of the strategies that ask a teacher: a frozen copy of the network, or a slow average of it."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from bare import Bare, Setup
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, log_softmax, mse_loss


class Taught(Bare):
    """The network as it was before the task is asked about each row."""

    def start(self) -> None:
        self.teacher: nn.Module | None = None
        self.seen = torch.zeros(self.spec.n_classes, dtype=torch.bool)

    def begin(self, ids: Tensor) -> None:
        if bool(self.seen.any()):
            self.teacher = frozen(self.network)
            self.old = self.seen.nonzero()[:, 0]

    def end(self, ids: Tensor) -> None:
        self.seen[self.labels[ids]] = True


def frozen(network: nn.Module) -> nn.Module:
    return deepcopy(network).eval().requires_grad_(False)


class BareLwF(Taught):
    """The divergence of the answers about the old classes, at a temperature."""

    KIND = "class"

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.float().mul_(1 / 255)
        logits = self.network(x)
        loss, t = cross_entropy(logits, y), self.options["temperature"]
        if self.teacher is None:
            return loss
        taught = log_softmax(self.teacher(x).index_select(1, self.old) / t, dim=1)
        student = log_softmax(logits.index_select(1, self.old) / t, dim=1)
        return loss + self.options["strength"] * t**2 * kl_div(student, taught, reduction="batchmean", log_target=True)


class BareFeatureDistillation(Taught):
    """One minus the cosine of the features; the teacher needs no head."""

    def start(self) -> None:
        super().start()
        self.body, self.head = self.network[:-1], self.network[-1]

    def begin(self, ids: Tensor) -> None:
        if bool(self.seen.any()):
            self.teacher = frozen(self.body)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.float().mul_(1 / 255)
        features = self.body(x)
        loss = cross_entropy(self.head(features), y)
        if self.teacher is None:
            return loss
        return loss + self.options["strength"] * (1 - cosine_similarity(features, self.teacher(x), dim=1)).mean()


class Averaged(Bare):
    """A moving average of the weights, which is asked about each row; a subclass says what its answers do."""

    def start(self) -> None:
        self.teacher, self.updates = frozen(self.network), 0
        self.pairs = [list(tensors(network)) for network in (self.teacher, self.network)]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.float().mul_(1 / 255)
        return self.combined(self.network(x), self.teacher(x), y)

    def combined(self, logits: Tensor, taught: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def remember(self, x: Tensor, y: Tensor) -> None:
        self.updates += 1
        decay = min(self.options["decay"], 1 - 1 / self.updates)
        torch._foreach_lerp_(*self.pairs, 1 - decay)


def tensors(network: nn.Module) -> Iterator[Tensor]:
    """Parameters and batch statistics; not how many batches were seen, which no answer depends on."""
    return (tensor for tensor in chain(network.parameters(), network.buffers()) if tensor.is_floating_point())


class BareEMATeacher(Averaged):
    """The squared distance of the logits."""

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:  # noqa: ARG004
        return {"strength": 1.0}  # of the YAML's 0 the teacher is asked nothing

    def combined(self, logits: Tensor, taught: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits, y) + self.options["strength"] * mse_loss(logits, taught)


class BareLabelRefurbishment(Averaged):
    """The teacher's probabilities are a part of the target."""

    def combined(self, logits: Tensor, taught: Tensor, y: Tensor) -> Tensor:
        strength = self.options["strength"]
        share = torch.full((len(y), 1), 1 - strength)
        return cross_entropy(logits, taught.softmax(1).mul_(strength).scatter_add_(1, y[:, None], share))


class BareTeacherWeight(Averaged):
    """A row counts by the teacher's probability of its label."""

    def combined(self, logits: Tensor, taught: Tensor, y: Tensor) -> Tensor:
        believed = taught.softmax(1).gather(1, y[:, None])[:, 0] ** self.options["strength"]
        return torch.dot(believed / believed.sum(), cross_entropy(logits, y, reduction="none"))


BARE: dict[str, type[Bare]] = {
    "lwf": BareLwF,
    "feature_distillation": BareFeatureDistillation,
    "ema_teacher": BareEMATeacher,
    "label_refurbishment": BareLabelRefurbishment,
    "teacher_weight": BareTeacherWeight,
}
