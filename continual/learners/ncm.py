"""Nearest class mean: answer the class whose mean lies nearest.

    logits_c = z . mu_c - |mu_c|^2 / 2 = (|z|^2 - |z - mu_c|^2) / 2

over the inputs or a frozen backbone's features, or over random Fourier features of them (``learners.features``).
Mensink et al. 2013, https://doi.org/10.1109/TPAMI.2013.83, with the plain Euclidean distance, no metric learned.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from continual.learners.closed_form import ClosedForm
from continual.learners.features import Frozen, Model, fourier
from continual.seeding import generator
from continual.types import Batch, Spec


class NCM(ClosedForm):
    """One mean per class, kept as a sum.

    Args:
        spec: the stream's spec.
        n_features: random Fourier features; 0 uses the inputs, or the backbone's features, themselves.
        gamma: of their kernel, > 0, on inputs scaled to ``spec.input_range``.
        backbone, weights: see ``learners.features.Frozen``.
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
        batch_size: int = 1024,
        head: str = "all",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        features = fourier(Frozen(spec, backbone, weights, seed=seed), n_features, gamma, generator(seed, "ncm"))
        super().__init__(features, spec=spec, batch_size=batch_size, head=head, device=device)

    def empty(self, n_features: int) -> dict[str, Tensor]:
        return {"count": torch.zeros(self.spec.n_classes), "total": torch.zeros(self.spec.n_classes, n_features)}

    def add(self, z: Tensor, batch: Batch) -> None:
        self.sums["total"].index_add_(0, batch.y.to(z.device), z)

    def solve(self, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        mean = sums["total"] / sums["count"].clamp_min(1)[:, None]  # (C, F)
        return mean.T, -0.5 * mean.square().sum(1)
