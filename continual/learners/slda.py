"""Streaming linear discriminant analysis: one pass, no gradient, no replay, the same in any order of rows.

    mu_c = mean of class c,   Sigma = (1 / N) sum_c sum_{x in c} (x - mu_c)(x - mu_c)^T
    logits_c = x . w_c - mu_c . w_c / 2,   w_c = ((1 - shrinkage) Sigma + shrinkage T)^-1 mu_c

over the inputs or a frozen backbone's features, or over random Fourier features of them (``learners.features``).
T = I, or T = tr(Sigma) / F I. Hayes & Kanan 2020, https://arxiv.org/abs/1909.01520; shrinkage towards the mean
variance: Ledoit & Wolf 2004, "A well-conditioned estimator", https://doi.org/10.1016/S0047-259X(03)00096-4
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from continual.errors import UserError
from continual.learners.closed_form import ClosedForm
from continual.learners.features import Frozen, Model, fourier
from continual.seeding import generator
from continual.types import Batch, Spec

TARGETS = ("identity", "mean_variance")
ROUNDING = 2**-23  # of the float32 sums, relative: a smaller variance is none


class SLDA(ClosedForm):
    """Class means and one shared covariance, kept as sums; the closed-form floor of every table.

    The sums are float32, as the published size says: scale features to a mean near 0 (within some hundred standard
    deviations) first, or their differences drown; counts are exact up to 2^24 rows of a class.

    Args:
        spec: the stream's spec.
        n_features: random Fourier features; 0 uses the inputs, or the backbone's features, themselves.
        gamma: of their kernel, > 0, on inputs scaled to ``spec.input_range``.
        backbone, weights: see ``learners.features.Frozen``.
        shrinkage: in (0, 1], towards ``target``; 1 forgets the covariance.
        target: ``identity``, whose weight depends on how features are scaled (Fourier features have a variance of
            about 1 / F, and 1e-4 is much for 2000 of them), or ``mean_variance``, which does not.
        batch_size, head, device: see ``ClosedForm``.
        seed: of the run; only random features and backbones depend on it.
    """

    def __init__(
        self,
        *,
        spec: Spec,
        n_features: int = 0,
        gamma: float = 0.02,
        backbone: Model | None = None,
        weights: str | None = None,
        shrinkage: float = 1e-4,
        target: str = "identity",
        batch_size: int = 1024,
        head: str = "all",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if not 0 < shrinkage <= 1:
            raise UserError(f"learner.shrinkage={shrinkage} must be in (0, 1]")
        if target not in TARGETS:
            raise UserError(f"learner.target='{target}' is unknown; use one of {', '.join(TARGETS)}")
        self.shrinkage, self.target = shrinkage, target
        features = fourier(Frozen(spec, backbone, weights, seed=seed), n_features, gamma, generator(seed, "slda"))
        super().__init__(features, spec=spec, batch_size=batch_size, head=head, device=device)

    def empty(self, n_features: int) -> dict[str, Tensor]:
        c, f = self.spec.n_classes, n_features
        return {"count": torch.zeros(c), "total": torch.zeros(c, f), "scatter": torch.zeros(f, f)}

    def add(self, z: Tensor, batch: Batch) -> None:
        self.sums["total"].index_add_(0, batch.y.to(z.device), z)
        self.sums["scatter"].addmm_(z.T, z)

    def solve(self, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return discriminants(sums["count"], sums["total"], sums["scatter"], self.shrinkage, self.target)


def discriminants(
    count: Tensor, total: Tensor, scatter: Tensor, shrinkage: float, target: str = "identity"
) -> tuple[Tensor, Tensor]:
    """Weights (F, C) and biases (C,) from rows of each class (C,), their sums (C, F), and sum z z^T; in float64."""
    n = count.double()
    mean = total.double() / n.clamp_min(1)[:, None]  # (C, F)
    within = (scatter.double() - (mean * n[:, None]).T @ mean) / n.sum()  # (F, F)
    varies = within.trace() > ROUNDING * scatter.double().trace() / n.sum()  # or no class has two different rows
    scale = 1.0 if target == "identity" or not varies else within.trace() / len(within)
    shrunk = (1 - shrinkage) * within + shrinkage * scale * torch.eye(len(within), dtype=torch.float64)
    weight = torch.linalg.solve(shrunk, mean.T)  # (F, C)
    return weight, -0.5 * (mean.T * weight).sum(0)  # (F, C), (C,)
