"""A variational autoencoder of a stream's rows, and rows that it makes up.

    -ELBO = -log p(x | z) + KL( N(mu(x), sigma(x)^2) || N(0, 1) ),     z = mu(x) + sigma(x) noise

uint8 rows are scaled to [0, 1], and each value is the probability of a Bernoulli variable; floating rows are left as
they are, and each value is Gaussian of variance 1 (its constant log(2 pi) / 2 is left out): scale them to about that.
Kingma & Welling 2014, "Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from continual.errors import UserError
from continual.types import Spec


class VAE(nn.Module):
    """Perceptrons both ways: ReLU layers of the widths ``hidden``, and of these backwards.

    Args:
        spec: of the stream; its rows must be uint8 or floating.
        hidden: widths from the input on, at least one, each >= 1.
        n_latent: width D of z, >= 1.
    """

    def __init__(self, spec: Spec, hidden: Sequence[int] = (200,), n_latent: int = 32) -> None:
        super().__init__()
        if not hidden or min(*hidden, n_latent) < 1:
            raise UserError(f"the generator's hidden={list(hidden)} and n_latent={n_latent} must be at least 1 each")
        if not spec.dtype.is_floating_point and spec.dtype != torch.uint8:
            raise UserError(f"a generator of rows needs uint8 or floating rows, and this stream's are {spec.dtype}")
        self.spec, self.n_latent = spec, n_latent
        widths = [prod(spec.in_shape), *hidden]
        self.encoder = perceptron([*widths, 2 * n_latent])
        self.decoder = perceptron([n_latent, *reversed(widths)])
        self.to(spec.dtype if spec.dtype.is_floating_point else torch.float32)

    def losses(self, x: Tensor, noise: Tensor) -> Tensor:
        """(B,) minus the evidence lower bound of rows ``x`` (B, *in_shape), with ``noise`` (B, D) from N(0, 1)."""
        x = x.flatten(1)
        x = x.to(noise.dtype) / 255 if x.dtype == torch.uint8 else x  # (B, d)
        mean, log_variance = self.encoder(x).chunk(2, dim=1)  # (B, D) each
        decoded = self.decoder(mean + (log_variance / 2).exp() * noise)  # (B, d)
        likelihood = bernoulli if self.spec.dtype == torch.uint8 else gaussian
        return likelihood(decoded, x) + divergence(mean, log_variance)

    def rows(self, decoded: Tensor) -> Tensor:
        """The likeliest rows (n, *in_shape), in the stream's dtype, of what a decoder gave (n, d)."""
        if self.spec.dtype == torch.uint8:
            decoded = (decoded.sigmoid() * 255).round()
        return decoded.to(self.spec.dtype).view(-1, *self.spec.in_shape)


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers between ``widths``, with ReLU between them."""
    layers = [layer for fan_in, fan_out in pairwise(widths) for layer in (nn.Linear(fan_in, fan_out), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,) KL divergence of N(mean, variance), each (B, D), from N(0, 1): sum_d (mean^2 + variance - 1 - log) / 2."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """(B,) minus the log-likelihood of ``x`` (B, d) in [0, 1] under probabilities sigmoid(``logits``)."""
    return binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def gaussian(mean: Tensor, x: Tensor) -> Tensor:
    """(B,) minus the log-likelihood of ``x`` (B, d) under variance 1, without its constant."""
    return (x - mean).square().sum(1) / 2
