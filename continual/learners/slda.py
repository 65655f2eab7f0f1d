"""Streaming linear discriminant analysis: one pass, no gradient, no replay, the same in any order of rows.

    mu_c = mean of class c,   Sigma = (1 / N) sum_c sum_{x in c} (x - mu_c)(x - mu_c)^T
    logits_c = x . w_c - mu_c . w_c / 2,   w_c = ((1 - shrinkage) Sigma + shrinkage I)^-1 mu_c

over the inputs, or over random Fourier features z(x) = sqrt(2 / F) cos(W x + b), W ~ N(0, 2 gamma),
b ~ U(0, 2 pi), which approximate the kernel exp(-gamma |x - x'|^2).
Hayes & Kanan 2020, https://arxiv.org/abs/1909.01520; Rahimi & Recht 2007, "Random Features for Large-Scale
Kernel Machines", https://papers.nips.cc/paper/3182-random-features-for-large-scale-kernel-machines
"""

from collections.abc import Iterator, Mapping
from math import pi, prod, sqrt
from typing import Any

import torch
from torch import Tensor

from continual.errors import UserError
from continual.seeding import generator
from continual.state import nbytes
from continual.types import Cost, Experience, Spec


class SLDA:
    """Class means and one shared covariance, kept as sums; the closed-form floor of every table.

    The sums are float32, as the published size says: scale features to a mean near 0 (within some hundred standard
    deviations) first, or their differences drown; counts are exact up to 2^24 rows of a class.
    Its cost counts one forward-equivalent per row: one pass over the row through its own features.

    Args:
        spec: the stream's spec.
        n_features: random Fourier features; 0 uses the inputs themselves.
        gamma: of the kernel, > 0, on inputs scaled to ``spec.input_range``.
        shrinkage: in (0, 1], towards the identity.
        batch_size: rows taken in at once, >= 1; the result does not depend on it but for rounding.
        seed: of the run; only the random features depend on it.
    """

    def __init__(
        self,
        *,
        spec: Spec,
        n_features: int = 0,
        gamma: float = 0.02,
        shrinkage: float = 1e-4,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        _check(n_features, gamma, shrinkage, batch_size)
        self.spec, self.batch_size, self.shrinkage = spec, batch_size, shrinkage
        inputs = prod(spec.in_shape)
        draws = generator(seed, "slda")
        self.weight, self.bias = torch.empty(0, 0), torch.empty(0)
        if n_features:
            self.weight = torch.randn(inputs, n_features, generator=draws) * sqrt(2 * gamma)
            self.bias = torch.rand(n_features, generator=draws) * 2 * pi
        size = n_features or inputs
        self.count = torch.zeros(spec.n_classes)
        self.total = torch.zeros(spec.n_classes, size)  # sum of features of each class
        self.scatter = torch.zeros(size, size)  # sum over rows of z z^T
        self.updates, self.spent = 0, 0.0
        self._solution: tuple[Tensor, Tensor] | None = None  # derived from the sums, rebuilt when asked for

    def learn(self, experience: Experience) -> Iterator[int]:
        """Take in ``batch_size`` rows at a time."""
        chunks = torch.split(torch.arange(len(experience.rows)), self.batch_size) if len(experience.rows) else ()
        for indices in chunks[self.updates :]:
            batch = experience.rows.take(indices)
            z = self.features(batch.x)  # (B, F)
            self.count += torch.bincount(batch.y, minlength=len(self.count))
            self.total.index_add_(0, batch.y, z)
            self.scatter.addmm_(z.T, z)
            self.spent += len(batch)
            self.updates += 1
            self._solution = None
            yield len(batch)
        self.updates = 0

    def features(self, x: Tensor) -> Tensor:
        """(B, *in_shape) -> (B, F)."""
        x = x.flatten(1)
        if x.dtype == torch.uint8:
            low, high = self.spec.input_range
            x = x.float() * ((high - low) / 255) + low
        if not len(self.bias):
            return x.float()
        return torch.cos(x.float() @ self.weight + self.bias) * sqrt(2 / len(self.bias))

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Discriminants (B, n_classes); classes without a row get the lowest of the others minus 1."""
        if task is not None and not self.spec.task_aware:
            raise UserError(f"predict got task={task}, and this stream hides task labels; leave it out")
        if not self.count.any():
            return torch.zeros(len(x), self.spec.n_classes)
        if self._solution is None:
            self._solution = discriminants(self.count, self.total, self.scatter, self.shrinkage)
        weight, bias = self._solution
        logits = self.features(x) @ weight + bias  # (B, C)
        lowest = logits[:, self.count > 0].min(dim=1, keepdim=True).values
        return torch.where(self.count > 0, logits, lowest - 1)

    def cost(self) -> Cost:
        """Rows taken in, and bytes of the sums and of the random features."""
        return Cost(self.spent, nbytes(self._tensors()))

    def _tensors(self) -> dict[str, Any]:
        names = ("weight", "bias", "count", "total", "scatter")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        return {**self._tensors(), "updates": self.updates, "spent": self.spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self.updates, self.spent, self._solution = state["updates"], state["spent"], None


def discriminants(count: Tensor, total: Tensor, scatter: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Weights (F, C) and biases (C,) of the linear discriminants from the sums, solved in float64."""
    n = count.double()
    mean = total.double() / n.clamp_min(1)[:, None]  # (C, F)
    within = (scatter.double() - (mean * n[:, None]).T @ mean) / n.sum()  # (F, F)
    shrunk = (1 - shrinkage) * within + shrinkage * torch.eye(len(within), dtype=torch.float64)
    weight = torch.linalg.solve(shrunk, mean.T)  # (F, C)
    bias = -0.5 * (mean.T * weight).sum(0)  # (C,)
    return weight.float(), bias.float()


def _check(n_features: int, gamma: float, shrinkage: float, batch_size: int) -> None:
    if n_features < 0:
        raise UserError(f"learner.n_features={n_features} must be at least 0")
    if gamma <= 0:
        raise UserError(f"learner.gamma={gamma} must be above 0")
    if not 0 < shrinkage <= 1:
        raise UserError(f"learner.shrinkage={shrinkage} must be in (0, 1]")
    if batch_size < 1:
        raise UserError(f"learner.batch_size={batch_size} must be at least 1")
