"""What is measured of a network, on tensors worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from continual import measures
from continual.errors import UserError


def test_calibration_error_by_hand():
    probabilities = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.8, 0.2], [0.1, 0.9]])
    labels = torch.tensor([0, 0, 1, 1])  # right, wrong, wrong, right
    # 2 bins by confidence: {.6, .7} right 1/2, |.5 - .65| = .15; {.8, .9} right 1/2, |.5 - .85| = .35
    assert measures.calibration_error(probabilities, labels, bins=2) == pytest.approx(0.5 * 0.15 + 0.5 * 0.35)
    # 4 bins of one row: (.4 + .7 + .8 + .1) / 4
    assert measures.calibration_error(probabilities, labels, bins=4) == pytest.approx(0.5)
    # unlabelled rows do not count: rows 0 and 3 in one bin, |1 - .75|
    assert measures.calibration_error(probabilities, torch.tensor([0, -1, -1, 1]), bins=1) == pytest.approx(0.25)


def test_calibration_error_bins_hold_equal_mass():
    confidence = torch.tensor([0.51, 0.52, 0.53, 0.54, 0.55, 0.99])  # bins of equal width would hold 5 and 1
    probabilities = torch.stack([confidence, 1 - confidence], dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    # {.51 .52 .53}: |1 - .52| = .48; {.54 .55 .99}: |0 - 2.08 / 3| ; equal halves
    assert measures.calibration_error(probabilities, labels, bins=2) == pytest.approx(0.5 * 0.48 + 0.5 * 2.08 / 3)


def test_calibration_error_of_equal_confidences_is_one_bin():
    tied = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.9, 0.1]])
    # ranks 0 0 0 3, bins 0 0 0 1: 3/4 |1 - .5| + 1/4 |0 - .9|
    assert measures.calibration_error(tied, torch.tensor([0, 0, 0, 1]), bins=2) == pytest.approx(0.6)
    probabilities = torch.tensor([[0.5, 0.5]] * 40)
    labels = torch.tensor([0] * 20 + [1] * 20)
    assert measures.calibration_error(probabilities, labels) == pytest.approx(0.0)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(2, 5), st.integers(1, 20), st.integers(0, 2**31))
def test_calibration_error_is_bounded_and_ignores_order(rows, classes, bins, seed):
    source = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(rows, classes, generator=source).mul(4).round().softmax(dim=1)
    labels = torch.randint(classes, (rows,), generator=source)
    error = measures.calibration_error(probabilities, labels, bins)
    order = torch.randperm(rows, generator=source)
    assert 0 <= error <= 1
    assert measures.calibration_error(probabilities[order], labels[order], bins) == pytest.approx(error)


def test_calibration_error_refuses_logits_and_no_bins():
    with pytest.raises(UserError, match=r"probability 3 is outside \[0, 1\]; apply softmax"):
        measures.calibration_error(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
    with pytest.raises(UserError, match="bins=0 must be at least 1"):
        measures.calibration_error(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), bins=0)
    assert math.isnan(measures.calibration_error(torch.ones(1, 2) / 2, torch.tensor([-1])))


def test_dormant_fraction():
    activations = torch.tensor([[1.0, -0.02, 0.0, 3.0], [1.0, 0.02, 0.0, 3.0]])
    # mean |h|: 1, .02, 0, 3; their mean 1.005; scores .995, .0199, 0, 2.985
    assert measures.dormant_fraction([activations], 0.0) == 0.25
    assert measures.dormant_fraction([activations], 0.0199) == 0.25
    assert measures.dormant_fraction([activations], 0.02) == 0.5
    assert measures.dormant_fraction([10 * activations], 0.02) == 0.5  # relative to the layer
    assert measures.dormant_fraction([activations[:, :, None, None].expand(2, 4, 3, 3)], 0.02) == 0.5
    assert measures.dormant_fraction([torch.zeros(2, 4)], 0.0) == 1.0
    small = torch.full((2, 2), 0.001)  # scores are of each layer: its two units take part
    assert measures.dormant_fraction([activations, small], 0.02) == pytest.approx(2 / 6)
    assert math.isnan(measures.dormant_fraction([activations, torch.full((2, 4), math.nan)], 0.0))
    assert math.isnan(measures.dormant_fraction([], 0.0))


def test_effective_rank():
    assert measures.effective_rank(torch.eye(4)) == pytest.approx(4)
    assert measures.effective_rank(torch.ones(5, 3)) == pytest.approx(1)
    # singular values 3, 1: entropy of (.75, .25) = .562335, exp = 1.754765
    assert measures.effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(1.754765, abs=1e-6)
    assert measures.effective_rank(torch.zeros(3, 3)) == 0.0
    assert math.isnan(measures.effective_rank(torch.tensor([[math.inf]])))


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_effective_rank_is_bounded_by_the_rank_and_ignores_scale(rows, columns, seed):
    features = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    rank = measures.effective_rank(features)
    assert 1 - 1e-9 <= rank <= min(rows, columns) + 1e-9
    assert measures.effective_rank(7 * features) == pytest.approx(rank, rel=1e-5)


def test_weight_norm():
    parameters = [torch.nn.Parameter(torch.tensor([[1.0, 2.0]])), torch.tensor(-2.0)]
    assert measures.weight_norm(parameters) == pytest.approx(3.0)  # sqrt(1 + 4 + 4)
    assert measures.weight_norm([]) == 0.0
