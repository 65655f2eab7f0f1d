"""Over seeds: a mean with an interval that names its method, and comparisons of two strategies on paired seeds."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from continual.errors import UserError

BOOTSTRAP_FROM = 20
"""Student's t below this n, a bootstrap from it on: at n = 5 a bootstrap's 95% interval covers about 84%."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and how sure it is.

    Attributes:
        mean: of the values.
        low: lower end of the interval, None if there is none.
        high: upper end of the interval, None if there is none.
        deviation: sample standard deviation (n - 1 in the denominator), None if undefined.
        n: number of values.
        method: the error bar to print, e.g. ``95% Student t``, or why there is none.
    """

    mean: float
    low: float | None
    high: float | None
    deviation: float | None
    n: int
    method: str


@dataclass(frozen=True, slots=True)
class Equivalence:
    """The answer of two one-sided tests.

    Attributes:
        equivalent: whether the mean difference is shown to lie within (-margin, margin).
        p_value: the larger of the two one-sided p-values, in [0, 1].
        difference: the mean difference with the interval that decides: at 95% confidence the 90% Student t interval.
        margin: what was allowed.
    """

    equivalent: bool
    p_value: float
    difference: Estimate
    margin: float


def interval(values: Iterable[float], confidence: float = 0.95) -> Estimate:
    """Mean of independent runs with its interval: Student's t for n < 20, BCa bootstrap from there.

    t: mean ± t_{n-1}((1 + confidence) / 2) s / sqrt(n). BCa (Efron 1987): 9,999 resamples by a generator of its own,
    so equal values give equal intervals in any order. Equal values have a zero-width interval; one value, or an
    infinite one, has none.

    Raises:
        UserError: no value, NaN among them, or ``confidence`` outside (0, 1).
    """
    _check_confidence(confidence)
    sample = np.sort(np.fromiter(values, np.float64))
    n, percent = len(sample), f"{confidence * 100:g}%"
    if n == 0 or np.isnan(sample).any():
        raise UserError(f"interval: values={sample.tolist()} must be at least one number, without NaN; leave out runs")
    if np.isinf(sample).any():
        ends = set(sample[np.isinf(sample)].tolist())
        return Estimate(sum(ends), None, None, None, n, "no interval: a value is infinite")
    if n == 1:
        return Estimate(float(sample[0]), None, None, None, 1, "no interval: n = 1")
    if sample[0] == sample[-1]:
        value = float(sample[0])
        return Estimate(value, value, value, 0.0, n, f"{percent}, all values equal")
    if n < BOOTSTRAP_FROM:
        return _student(sample, confidence)
    return _bootstrap(sample, confidence)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Estimate:
    """Mean over seeds of a[seed] - b[seed] with its interval, as :func:`interval` gives it.

    Pairs share stream, order and initialisation, so what a seed does to both cancels.

    Args:
        a: {seed: value} of one strategy.
        b: {seed: value} of the other, on the same seeds.
        confidence: of the interval, in (0, 1).

    Raises:
        UserError: the seeds differ or there are none; the message names them.
    """
    return interval(_differences(a, b), confidence)


def paired_p_value(a: Mapping[int, float], b: Mapping[int, float]) -> float | None:
    """Two-sided p-value of the paired t-test of a mean difference of 0; None for one seed.

    2 P(T_{n-1} > |mean| sqrt(n) / s). Differences that are all equal give 1 if they are 0, else 0. At any n it is a
    t-test, so from n = 20 on it may disagree with the bootstrap interval at its edge. Errors: as `paired_difference`.
    """
    differences = _differences(a, b)
    if len(differences) < 2:
        return None
    centre = abs(float(differences.mean()))
    return min(1.0, 2 * _upper_tail(differences, centre))


def equivalent(a: Mapping[int, float], b: Mapping[int, float], margin: float, confidence: float = 0.95) -> Equivalence:
    """Whether the mean difference is within (-margin, margin), by two one-sided paired t-tests (Schuirmann 1987).

    p = max(P(T_{n-1} > (mean + margin) sqrt(n) / s), P(T_{n-1} > (margin - mean) sqrt(n) / s)); equivalent if
    p < 1 - confidence. "Not equivalent" says that it was not shown, not that there is a difference.

    Args:
        a: {seed: value} of one strategy.
        b: {seed: value} of the other, on the same seeds.
        margin: the largest mean difference that does not matter, in the values' unit, above 0.
        confidence: 1 - level of the test, in (0.5, 1).

    Raises:
        UserError: the seeds differ or are fewer than two, or ``margin`` or ``confidence`` is out of range.
    """
    _check_confidence(confidence, lowest=0.5)
    if not 0 < margin < math.inf:
        raise UserError(f"equivalent: margin={margin} must be above 0 and finite, in the unit of the values")
    differences = _differences(a, b)
    if len(differences) < 2:
        raise UserError(f"equivalent: seeds {sorted(a)} are {len(differences)} pair; run at least 2 seeds of each")
    centre = float(differences.mean())
    p_value = max(_upper_tail(differences, margin + centre), _upper_tail(differences, margin - centre))
    difference = _student(np.sort(differences), 2 * confidence - 1)
    return Equivalence(p_value < 1 - confidence, p_value, difference, margin)


def _check_confidence(confidence: float, lowest: float = 0.0) -> None:
    if not lowest < confidence < 1:
        raise UserError(f"confidence={confidence} must be above {lowest:g} and below 1, e.g. 0.95")


def _differences(a: Mapping[int, float], b: Mapping[int, float]) -> NDArray[np.float64]:
    if a.keys() != b.keys():
        only_a, only_b = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
        raise UserError(f"paired runs need the same seeds: only the first has {only_a}, only the second {only_b}")
    if not a:
        raise UserError("paired runs need at least one common seed: there are 0")
    differences = np.array([a[seed] - b[seed] for seed in sorted(a)], dtype=np.float64)
    unusable = [seed for seed, value in zip(sorted(a), differences, strict=True) if not np.isfinite(value)]
    if unusable:
        raise UserError(f"paired runs need finite values: the difference of seeds {unusable} is not; leave them out")
    return differences


def _upper_tail(differences: NDArray[np.float64], distance: float) -> float:
    """P(T_{n-1} > distance sqrt(n) / s); without any spread 0 for a distance above 0, else 1."""
    from scipy.special import stdtr  # of scipy.stats.t, which takes a second to import

    n, deviation = len(differences), float(differences.std(ddof=1))
    if np.ptp(differences) == 0 or deviation == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stdtr(n - 1, -distance * math.sqrt(n) / deviation))


def _student(sample: NDArray[np.float64], confidence: float) -> Estimate:
    from scipy.special import stdtrit  # of scipy.stats.t, which takes a second to import

    n, centre, deviation = len(sample), float(sample.mean()), float(sample.std(ddof=1))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, deviation, n, f"{confidence * 100:g}% Student t")


def _bootstrap(sample: NDArray[np.float64], confidence: float) -> Estimate:
    from scipy.stats import bootstrap

    # BCa follows shifts and scalings; on [0, 1] rounding cannot make its resampled means look all alike.
    low, spread = sample[0], np.ptp(sample)
    result = bootstrap(
        ((sample - low) / spread,),
        np.mean,
        confidence_level=confidence,
        n_resamples=9999,
        method="BCa",
        random_state=np.random.default_rng(0),
    )
    low, high = (float(low + spread * end) for end in result.confidence_interval)
    return Estimate(
        float(sample.mean()), low, high, float(sample.std(ddof=1)), len(sample), f"{confidence * 100:g}% BCa bootstrap"
    )
