import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from continual.errors import UserError
from continual.statistics import equivalent, interval, paired_difference, paired_p_value

FIVE = [0.81, 0.79, 0.84, 0.80, 0.86]


def seeds(values):
    return dict(enumerate(values))


def test_student_by_hand():
    # 1, 2, 3: mean 2, s = 1, t_2(.975) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138
    estimate = interval([1, 2, 3])
    assert (estimate.mean, estimate.deviation, estimate.n, estimate.method) == (2, 1, 3, "95% Student t")
    assert (estimate.low, estimate.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_student_agrees_with_scipy():
    reference = scipy.stats.ttest_1samp(FIVE, 0).confidence_interval(0.9)
    estimate = interval(FIVE, confidence=0.9)
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high))
    assert estimate.method == "90% Student t"


def test_bootstrap_from_twenty_values():
    values = np.random.default_rng(1).exponential(size=20)
    assert interval(values[:19]).method == "95% Student t"
    estimate = interval(values)
    reference = scipy.stats.bootstrap((np.sort(values),), np.mean, random_state=np.random.default_rng(0))
    ends = reference.confidence_interval
    assert estimate.method == "95% BCa bootstrap"
    assert estimate.deviation == pytest.approx(values.std(ddof=1))
    assert (estimate.low, estimate.high) == pytest.approx((ends.low, ends.high))
    # BCa follows the skew to the right; a symmetric interval does not.
    assert estimate.high - estimate.mean > 1.1 * (estimate.mean - estimate.low)


@pytest.mark.parametrize("n", [3, 25])
def test_interval_is_deterministic_ignores_order_and_draws_from_no_global_generator(n):
    values = np.random.default_rng(2).normal(size=n)
    before = np.random.get_state()[1].copy()
    assert interval(values) == interval(values) == interval(values[::-1])
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("n", [2, 25])
def test_equal_values_have_zero_width(n):
    estimate = interval([0.1] * n)
    assert (estimate.mean, estimate.low, estimate.high, estimate.deviation) == (0.1, 0.1, 0.1, 0.0)
    assert estimate.method == "95%, all values equal"


@pytest.mark.parametrize("other", [math.nextafter(0.1, 1), 0.2])
def test_nearly_equal_values_have_an_interval(other):
    estimate = interval([0.1] * 24 + [other])
    assert estimate.method == "95% BCa bootstrap"
    assert 0.1 <= estimate.low <= estimate.high <= other


def test_one_value_has_no_interval_and_says_so():
    estimate = interval([0.5])
    assert (estimate.mean, estimate.n, estimate.method) == (0.5, 1, "no interval: n = 1")
    assert estimate.low is estimate.high is estimate.deviation is None


def test_infinite_values_have_no_interval():
    estimate = interval([100.0, math.inf])
    assert estimate.mean == math.inf
    assert estimate.low is estimate.high is None
    assert estimate.method == "no interval: a value is infinite"


@pytest.mark.parametrize("values", [[], [0.5, math.nan]])
def test_interval_refuses_nothing_and_nan(values):
    with pytest.raises(UserError, match="at least one number, without NaN"):
        interval(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_interval_refuses_confidence(confidence):
    with pytest.raises(UserError, match=f"confidence={confidence} must be above 0 and below 1"):
        interval(FIVE, confidence=confidence)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=24), st.floats(0.5, 0.99))
def test_interval_holds_the_mean_and_grows_with_confidence(values, confidence):
    estimate, wider = interval(values, confidence), interval(values, confidence + (1 - confidence) / 2)
    assert estimate.low - 1e-12 <= estimate.mean <= estimate.high + 1e-12
    assert wider.low <= estimate.low + 1e-12
    assert estimate.high <= wider.high + 1e-12


def coverage(runs=1500, n=5):
    """How often the 95% interval of ``n`` normal values holds their true mean, 0."""
    samples = np.random.default_rng(3).normal(size=(runs, n))
    estimates = [interval(sample) for sample in samples]
    return sum(e.low <= 0 <= e.high for e in estimates) / runs


def test_the_interval_covers_what_it_says_at_five_seeds():
    assert abs(coverage() - 0.95) < 0.02  # three standard errors are .017


def test_the_normal_quantile_would_not(monkeypatch):
    monkeypatch.setattr(scipy.special, "stdtrit", lambda _, quantile: scipy.stats.norm.ppf(quantile))
    assert coverage() < 0.90  # .878 in theory


# ---------------------------------------------------------------- pairs

A, B = seeds([0.80, 0.70, 0.90, 0.60]), seeds([0.75, 0.60, 0.82, 0.59])


def test_paired_difference_by_hand_and_against_scipy():
    # .05 .10 .08 .01: mean .06, s^2 = (.0001 + .0016 + .0004 + .0025) / 3, s = .039158
    estimate = paired_difference(A, B)
    assert estimate.mean == pytest.approx(0.06)
    assert estimate.deviation == pytest.approx(math.sqrt(0.0046 / 3))
    reference = scipy.stats.ttest_rel(list(A.values()), list(B.values()))
    ends = reference.confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((ends.low, ends.high))
    assert paired_p_value(A, B) == pytest.approx(reference.pvalue)
    assert paired_p_value(B, A) == pytest.approx(reference.pvalue)


def test_pairs_are_matched_by_seed_not_by_position():
    backwards = dict(reversed(B.items()))
    assert paired_difference(A, backwards) == paired_difference(A, B)


def test_pairing_removes_what_a_seed_does_to_both():
    luck = np.random.default_rng(4).normal(size=10)
    first, second = seeds(luck + 0.01 * np.arange(10)), seeds(luck)
    paired = paired_difference(first, second)
    assert paired.low > 0
    assert paired.high - paired.low < 0.1 * (interval(first.values()).high - interval(first.values()).low)


def test_different_seeds_are_named():
    with pytest.raises(UserError, match=r"only the first has \[3\], only the second \[7, 9\]"):
        paired_difference({1: 0.5, 3: 0.5}, {1: 0.5, 9: 0.5, 7: 0.5})
    with pytest.raises(UserError, match="at least one common seed"):
        paired_difference({}, {})
    with pytest.raises(UserError, match=r"difference of seeds \[2\]"):
        paired_difference({1: 0.5, 2: math.inf}, {1: 0.5, 2: math.inf})


def test_one_pair_has_a_difference_only():
    estimate = paired_difference({0: 0.8}, {0: 0.5})
    assert estimate.mean == pytest.approx(0.3)
    assert estimate.low is None
    assert paired_p_value({0: 0.8}, {0: 0.5}) is None


def test_equal_differences_have_a_p_value():
    assert paired_p_value(A, A) == 1.0
    assert paired_p_value(seeds([1.5, 2.5]), seeds([1.0, 2.0])) == 0.0


@pytest.mark.parametrize("margin", [0.05, 0.07, 0.2])
def test_equivalence_against_scipys_one_sided_tests(margin):
    differences = np.array([A[seed] - B[seed] for seed in A])
    above = scipy.stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(differences, margin, alternative="less").pvalue
    answer = equivalent(A, B, margin)
    assert answer.p_value == pytest.approx(max(above, below))
    assert answer.equivalent == (max(above, below) < 0.05)
    assert answer.difference.method == "90% Student t"


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=25), st.floats(0.01, 1))
def test_equivalence_is_the_ninety_percent_interval_within_the_margin(differences, margin):
    nothing = seeds([0.0] * len(differences))
    answer = equivalent(seeds(differences), nothing, margin)
    inside = max(-answer.difference.low, answer.difference.high)
    if abs(inside - margin) > 1e-9:
        assert answer.equivalent == (inside < margin)
    assert equivalent(nothing, seeds(differences), margin).p_value == pytest.approx(answer.p_value)


def test_equivalence_of_equal_differences():
    assert equivalent(A, A, 0.01).p_value == 0.0
    assert not equivalent(seeds([1.5, 2.5]), seeds([1.0, 2.0]), 0.5).equivalent


def test_equivalence_refuses():
    with pytest.raises(UserError, match="margin=0 must be above 0"):
        equivalent(A, B, 0)
    with pytest.raises(UserError, match="run at least 2 seeds"):
        equivalent({0: 0.5}, {0: 0.5}, 0.1)
    with pytest.raises(UserError, match=r"confidence=0.4 must be above 0.5"):
        equivalent(A, B, 0.1, confidence=0.4)
