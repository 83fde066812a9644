"""Intervals against published ones and against simulation; pass@k against counting; the bootstrap against a plain one."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from unmask.evaluate.statistics import estimate_share, paired_bootstrap, pass_at


def test_one_answer_per_example_is_nearly_wilson() -> None:
    """81 of 263 (Newcombe 1998, table I): 0.2553 to 0.3662. The sample variance has n - 1, hence the third digit."""
    got = estimate_share([1.0] * 81 + [0.0] * 182)
    assert (got.low, got.high) == pytest.approx((0.2553, 0.3662), abs=2e-4)
    assert got.value == 81 / 263
    assert got.standard_error == pytest.approx(math.sqrt(81 / 263 * 182 / 263 / 262))


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.7225, 1.0), (0.0, 0.0, 0.2775)])
def test_certainty_has_a_width(value: float, low: float, high: float) -> None:
    """10 of 10: Wilson's bound is 1 / (1 + z^2 / 10)."""
    got = estimate_share([value] * 10)
    assert (got.low, got.high) == pytest.approx((low, high), abs=1e-4)


def test_responses_to_one_example_are_not_independent() -> None:
    """Four responses that always agree say no more than one."""
    alone = estimate_share([1.0, 0.0] * 50)
    copied = estimate_share([float(np.mean([x] * 4)) for x in [1.0, 0.0] * 50])
    assert copied == alone
    assert estimate_share([0.5] * 100).high - 0.5 < alone.high - 0.5  # and those that differ say more


def test_intervals_cover() -> None:
    """Of 400 made-up evaluations of 60 examples with 3 responses each, about 95 % of intervals hold the true accuracy."""
    rng = random.Random(0)
    hits = 0
    for _ in range(400):
        chances = [rng.betavariate(2, 1) for _ in range(60)]
        got = estimate_share([sum(rng.random() < p for _ in range(3)) / 3 for p in chances])
        hits += got.low <= 2 / 3 <= got.high
    assert 0.92 <= hits / 400 <= 0.98


def test_pass_at_counts_subsets() -> None:
    for n, right in [(5, 0), (5, 2), (5, 5), (6, 1)]:
        answers = [1] * right + [0] * (n - right)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(answers, k))
            assert pass_at(k, n, right) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_bootstrap_is_that_of_a_loop() -> None:
    rng = random.Random(1)
    first = {str(i): rng.random() for i in range(80)}
    second = {i: min(1.0, value + rng.gauss(0.05, 0.2)) for i, value in first.items()} | {"other": 1.0}
    got = paired_bootstrap(first, second)
    gaps = [second[i] - first[i] for i in first]
    plain = sorted(sum(rng.choices(gaps, k=80)) / 80 for _ in range(4000))
    assert got.num_examples == 80
    assert got.difference == pytest.approx(sum(gaps) / 80)
    assert (got.low, got.high) == pytest.approx((plain[99], plain[3899]), abs=6e-3)  # both are random: two standard errors
    assert got.p_value == pytest.approx(2 * np.mean(np.array(plain) <= 0), abs=0.02)
    assert got == paired_bootstrap(first, second)


def test_no_difference_and_a_certain_one() -> None:
    same = {str(i): i % 2 for i in range(40)}
    assert paired_bootstrap(same, same)[2:6] == (0.0, 0.0, 0.0, 1.0)
    better = {i: value + 0.5 for i, value in same.items()}
    got = paired_bootstrap(same, better)
    assert (got.difference, got.low, got.high) == (0.5, 0.5, 0.5)
    assert got.p_value == pytest.approx(2 / 10_001)
