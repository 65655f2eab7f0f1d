"""What is measured of a network's answers, features and weights: pure functions of tensors."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from continual.errors import UserError


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error sum_b (n_b / N) |accuracy_b - confidence_b| over bins of equal mass.

    A row's rank is the number of rows with less confidence (their largest probability), its bin floor(rank bins / N):
    rows of equal confidence share a bin, so that the order of rows does not matter.

    Args:
        probabilities: (N, C), rows that sum to 1.
        labels: (N,) int64; rows with a negative label (none) are left out.
        bins: how many.

    Returns:
        A value in [0, 1]: 0 if every confidence is the frequency of being right, 1 if sure and always wrong. NaN
        without labelled rows or with NaN probabilities.

    Raises:
        UserError: ``bins`` < 1, or values outside [0, 1] (logits).
    """
    if bins < 1:
        raise UserError(f"calibration_error: bins={bins} must be at least 1")
    confidence, predicted = (column.cpu().numpy() for column in probabilities[labels >= 0].double().max(dim=1))
    if not confidence.size or np.isnan(confidence).any():
        return float("nan")
    outside = confidence[(confidence < 0) | (confidence > 1 + 1e-6)]
    if outside.size:
        raise UserError(f"calibration_error: probability {outside[0]:g} is outside [0, 1]; apply softmax to logits")
    excess = (predicted == labels[labels >= 0].cpu().numpy()) - confidence  # (N,)
    rank = np.searchsorted(np.sort(confidence), confidence)  # (N,)
    return float(np.abs(np.bincount(rank * bins // len(rank), weights=excess)).sum() / len(rank))


def dormant_fraction(layers: Sequence[Tensor], threshold: float) -> float:
    """Share of all units of ``layers`` whose score, mean|h_u| / mean_v mean|h_v| over their own layer, is small.

    Small is at most ``threshold``. Activations are (N, U, ...) of each layer; a channel's positions count as more
    rows. In [0, 1]: 0 if all units take part; 1 if all are silent (the scores of a silent layer are undefined, each of
    its units is dormant). NaN without units or if activations are not finite. Source: Sokar et al. 2023, "The dormant
    neuron phenomenon in deep reinforcement learning", https://arxiv.org/abs/2302.12902
    """
    strengths = [h.detach().double().abs().transpose(0, 1).flatten(1).mean(dim=1) for h in layers]  # (U,) each
    if not strengths or not all(s.isfinite().all() for s in strengths):
        return float("nan")
    return float(torch.cat([s <= threshold * s.mean() for s in strengths]).double().mean())


def effective_rank(features: Tensor) -> float:
    """exp(-sum_k p_k ln p_k), p the singular values of ``features`` (N, F), uncentred, divided by their sum.

    In [1, min(N, F)]: 1 if all rows are collinear, the upper end if no direction is preferred; 0 for a zero matrix,
    NaN if features are not finite. Source: Roy and Vetterli 2007, "The effective rank".
    """
    if not features.isfinite().all():
        return float("nan")
    singular = torch.linalg.svdvals(features.detach().double())
    if not singular.any():
        return 0.0
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def weight_norm(parameters: Iterable[Tensor]) -> float:
    """Euclidean norm of all parameters as one vector, in float64; at least 0, 0 without parameters."""
    return math.sqrt(sum(float(parameter.detach().double().square().sum()) for parameter in parameters))
