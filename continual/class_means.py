"""Answering with the class whose mean is nearest, among features of length 1.

    u(x) = f(x) / |f(x)|,     mu_c = m_c / |m_c|, m_c the mean of u over the kept rows of class c
    logit_c(x) = -|u(x) - mu_c|^2, in [-4, 0];    a class of which no row is kept gets a very low one

Rebuffi et al. 2017, "iCaRL", https://arxiv.org/abs/1611.07725; over a replay memory Mai et al. 2021,
https://arxiv.org/abs/2103.13885
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from continual.memory import Memory
from continual.step import MASKED
from continual.strategy import View
from continual.types import Output

CHUNK = 512  # rows that go through the network at once


class NearestMean:
    """Means of what a memory holds, derived when they are asked for; ``drop`` them when network or memory change."""

    def __init__(self) -> None:
        self.means: tuple[Tensor, Tensor] | None = None

    def drop(self) -> None:
        """Forget the means."""
        self.means = None

    def answer(self, view: View, out: Output, memory: Memory) -> Tensor:
        """(B, C) logits for ``out``; the network's own ones while the memory is empty. Questions cost nothing."""
        if not len(memory) or out.features is None:
            return out.logits
        if self.means is None:
            slots = torch.arange(len(memory), device=view.classes.device)
            features = features_of(view, memory.inputs(slots, view.fetch))
            self.means = class_means(features, memory.column("y", slots), view.spec.n_classes)
        return nearest(out.features, *self.means)


def features_of(view: View, x: Tensor) -> Tensor:
    """Features (N, F) of ``x`` (N, *in_shape) by the weights as they are, in eval mode; costs a forward a row."""
    weights = view.params | view.buffers
    found = [view.answer(weights, part).features for part in torch.split(x.to(view.classes.device), CHUNK)]
    return torch.cat([features for features in found if features is not None])


def class_means(features: Tensor, y: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Means (C, F) of length 1 of ``features`` (N, F) with labels ``y`` (N,), and (C,) bool: which have rows."""
    members = one_hot(y, n_classes).to(features.dtype)  # (N, C)
    return normalize(members.T @ normalize(features, dim=1), dim=1), members.any(0)


def nearest(features: Tensor, means: Tensor, known: Tensor) -> Tensor:
    """(B, C) minus the squared distance of each of ``features`` (B, F), at length 1, to ``means`` (C, F)."""
    unit = normalize(features, dim=1)
    squares = unit.square().sum(1, keepdim=True) + means.square().sum(1)  # (B, C)
    return (2 * unit @ means.T - squares).masked_fill(~known, MASKED)
