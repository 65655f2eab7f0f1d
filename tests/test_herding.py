"""Herding against choices worked by hand and against every choice tried."""

from itertools import pairwise

import torch

from continual.herding import herd


def test_herding_by_hand() -> None:
    """Features 0, 1, 5, 10 have the mean 4.

    First 5 (1 away); then of (5 + 0)/2 = 2.5, (5 + 1)/2 = 3, (5 + 10)/2 = 7.5 the row 1; then of (6 + 0)/3 = 2 and
    (6 + 10)/3 = 5.33 the row 10; the row 0 is left.
    """
    features = torch.tensor([[0.0], [1.0], [5.0], [10.0]])
    assert herd(features, 4).tolist() == [2, 1, 3, 0]
    assert herd(features, 2).tolist() == [2, 1], "the first choices do not depend on how many there will be"
    assert herd(features, 9).tolist() == [2, 1, 3, 0], "there are no more than there are"
    assert herd(features, 0).tolist() == []
    assert herd(features, 2).dtype == torch.int64


def test_a_row_is_chosen_once_and_ties_go_to_the_first() -> None:
    """All at the mean: a row would otherwise be chosen again and again."""
    assert herd(torch.ones(3, 2), 3).tolist() == [0, 1, 2]
    assert herd(torch.tensor([[0.0], [2.0]]), 1).tolist() == [0]


def test_each_choice_is_the_best_of_all_that_are_left() -> None:
    features = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = features.clone()
    order = herd(features, 12).tolist()
    assert torch.equal(features, before)
    assert sorted(order) == list(range(12))
    for k in range(1, 13):
        left = [row for row in range(12) if row not in order[: k - 1]]
        away = {row: float((features.mean(0) - features[[*order[: k - 1], row]].mean(0)).norm()) for row in left}
        assert away[order[k - 1]] == min(away.values())


def test_the_mean_of_the_chosen_comes_near() -> None:
    """To within 1 / k of the features' spread, where random rows come near as 1 / sqrt(k)."""
    features = torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    order, mean = herd(features, 64), features.mean(0)
    away = [float((features[order[:k]].mean(0) - mean).norm()) for k in (1, 8, 64)]
    assert all(later < earlier / 4 for earlier, later in pairwise(away)), away
