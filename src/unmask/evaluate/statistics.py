"""How sure one can be of an accuracy, and of the difference between two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Z_95 = 1.959963984540054  # two-sided, standard normal
_RESAMPLES, _AT_ONCE = 10_000, 500


class Estimate(NamedTuple):
    """A mean over examples, its standard error, and a 95 % confidence interval."""

    value: float
    standard_error: float
    low: float
    high: float


def estimate_share(shares: Sequence[float]) -> Estimate:
    """The mean of one number in [0, 1] per example: with several responses to an example, the share of right ones.

    Examples are independent, responses to one example are not: the standard error is that of the mean over examples. The
    interval is Wilson's score interval (1927), which stays within [0, 1] and has a width also where all are right, for as
    many independent answers as have this standard error (Kish's effective sample size).
    """
    n, mean = len(shares), float(np.mean(shares))
    error = float(np.std(shares, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    effective = mean * (1 - mean) / error**2 if error > 0 else float(n)
    centre = mean + Z_95**2 / (2 * effective)
    half = Z_95 * math.sqrt(mean * (1 - mean) / effective + (Z_95 / (2 * effective)) ** 2)
    scale = 1 + Z_95**2 / effective
    low = 0.0 if mean == 0 else (centre - half) / scale  # as the formula says, without its rounding
    high = 1.0 if mean == 1 else (centre + half) / scale
    return Estimate(mean, error, low, high)


def pass_at(num_tries: int, num_responses: int, num_right: int) -> float:
    """The probability that at least one of `num_tries` responses is right, drawn without replacement from those that were
    sampled: an unbiased estimate of pass@k (Chen et al. 2021, equation 1). num_tries <= num_responses."""
    return 1 - math.comb(num_responses - num_right, num_tries) / math.comb(num_responses, num_tries)


class Difference(NamedTuple):
    """Second minus first, on the examples that both have. p_value: two-sided, of no difference at all."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    num_examples: int


def paired_bootstrap(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> Difference:
    """Two means per example, compared on the ids that both have (at least one), by resampling examples with replacement.

    The interval holds the middle 95 % of 10,000 resampled differences; the p-value is twice the share of them on the other
    side of 0 (or on it), at most 1 (Efron & Tibshirani 1993, sections 13.3 and 15.4; +1 in both counts, so that it is never 0).
    """
    ids = sorted(first.keys() & second.keys())
    a, b = (np.array([values[i] for i in ids], dtype=np.float64) for values in (first, second))
    generator = np.random.Generator(np.random.Philox(key=seed))
    parts = []
    for _ in range(0, _RESAMPLES, _AT_ONCE):  # a matrix of [500, examples] at a time
        parts.append((b - a)[generator.integers(len(ids), size=(_AT_ONCE, len(ids)))].mean(axis=1))
    differences = np.concatenate(parts)
    low, high = np.quantile(differences, [0.025, 0.975])
    tail = min(np.sum(differences <= 0), np.sum(differences >= 0))
    p_value = min(1.0, 2 * (int(tail) + 1) / (_RESAMPLES + 1))
    return Difference(float(a.mean()), float(b.mean()), float((b - a).mean()), float(low), float(high), p_value, len(ids))
