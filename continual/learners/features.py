"""Frozen features for learners without gradients: the inputs or a backbone's features, or a random map of them.

    fourier:  z(x) = sqrt(2 / F) cos(W x + b),  W ~ N(0, 2 gamma),  b ~ U(0, 2 pi)
    relu:     z(x) = max(0, W x),               W ~ N(0, 1)

Products of the first approximate the kernel exp(-gamma |x - x'|^2): Rahimi & Recht 2007, "Random Features for
Large-Scale Kernel Machines", https://papers.nips.cc/paper/3182-random-features-for-large-scale-kernel-machines
"""

from collections.abc import Callable
from math import pi, sqrt

import torch
from torch import Tensor, nn

from continual.errors import UserError
from continual.models.network import Classifier, Network
from continual.models.weights import load_weights
from continual.seeding import derive
from continual.types import Output, Spec

Model = Callable[[Spec], nn.Module]


class Frozen(nn.Module):
    """(B, *in_shape) in the stream's dtype -> (B, D) float32; in eval mode, without gradient, never changed.

    Args:
        spec: the stream's spec.
        backbone: f(spec) -> module that tells features (``Output.features``); None for the flattened inputs, uint8
            ones mapped to ``spec.input_range``. Of a ``Classifier`` the head is not kept.
        weights: safetensors file of the backbone's weights; None leaves them random.
        seed: of the run; the random weights depend on it.
    """

    def __init__(self, spec: Spec, backbone: Model | None = None, weights: str | None = None, *, seed: int) -> None:
        super().__init__()
        if backbone is None and weights is not None:
            raise UserError(f"learner.weights={weights} are of no backbone; add one, e.g. model@learner.backbone=cnn")
        model: nn.Module = nn.Flatten()
        if backbone is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "backbone"))
                model = backbone(spec)
            if weights is not None:
                load_weights(model, weights)
        self.bare = backbone is None or isinstance(model, Classifier)  # whether what it answers are the features
        self.network = Network(model.features if isinstance(model, Classifier) else model, spec)
        self.eval().requires_grad_(False)
        self.width = self(torch.zeros(1, *spec.in_shape, dtype=spec.dtype)).shape[1]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        out: Output = self.network(x.float() if x.is_floating_point() else x)
        features = out.logits if self.bare else out.features
        if features is None:
            raise UserError(
                "learner.backbone is a model that tells no features; use mlp, cnn, slim_resnet18 or vit, or return "
                "continual.types.Output(logits, features)"
            )
        return features


class Fourier(nn.Module):
    """Random Fourier features (B, D) -> (B, n_features); ``gamma`` > 0 is that of the kernel."""

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, n_features: int, gamma: float, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(width, n_features, generator=generator) * sqrt(2 * gamma))
        self.register_buffer("bias", torch.rand(n_features, generator=generator) * 2 * pi)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(x @ self.weight + self.bias) * sqrt(2 / len(self.bias))


class Rectified(nn.Module):
    """Random projection and ReLU (B, D) -> (B, n_features)."""

    weight: Tensor

    def __init__(self, width: int, n_features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(width, n_features, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight)


def fourier(base: Frozen, n_features: int, gamma: float, generator: torch.Generator) -> nn.Sequential:
    """``base`` followed by random Fourier features; by nothing if ``n_features`` is 0."""
    check_n_features(n_features)
    if gamma <= 0:
        raise UserError(f"learner.gamma={gamma} must be above 0")
    return nn.Sequential(base, Fourier(base.width, n_features, gamma, generator) if n_features else nn.Identity())


def check_n_features(n_features: int) -> None:
    """Refuse a number of random features below 0."""
    if n_features < 0:
        raise UserError(f"learner.n_features={n_features} must be at least 0")
