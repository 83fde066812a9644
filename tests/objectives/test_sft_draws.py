"""What SFT draws: the same for any batch, rank and resumption, and statistically right.

Limits are Hoeffding's and, for distributions, Massart's bound of Kolmogorov's distance: a right program fails a comparison with
`limit` with a probability of at most 1e-6. (Seeds are fixed: it is one draw, and it holds.)
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.objectives.test_masked_sft import EVERY, by_item, demonstrations, objective, same, shares, shown
from tests.train.test_batches import batches
from unmask.objectives.masking import draw_blocks, draw_positions
from unmask.types import Demonstration

EVERYTHING = [
    {"rates": rates, "has_complements": complements, "rate_per": per, "loss_normalization": average, "num_masks": num}
    for rates, complements, per, average, num in itertools.product(
        ["independent", "stratified"], [False, True], ["sequence", "block"], ["token", "elbo"], [1, 2]
    )
]  # fmt: skip


def limit(num: int) -> float:
    return math.sqrt(math.log(2e6) / (2 * num))


def distance(values: np.ndarray) -> float:
    """Kolmogorov's, from the uniform distribution on [0, 1)."""
    ordered, n = np.sort(values.ravel()), values.size
    return float(max(np.abs(ordered - np.arange(n) / n).max(), np.abs(ordered - np.arange(1, n + 1) / n).max()))


def assert_independent(a: np.ndarray, b: np.ndarray) -> None:
    """Of uniform numbers: whether a is small says nothing of whether b is, at the median and at the quarters."""
    for at, other in itertools.product((0.25, 0.5, 0.75), repeat=2):
        both = ((a < at) & (b < other)).mean()
        assert abs(both - at * other) < limit(a.size)


@EVERY
def test_masks_are_the_same_in_any_batch_on_any_rank_and_after_resumption(family, name) -> None:
    """For all combinations of options. Each of two ranks makes the rows of its half; a resumed run has everything anew."""
    items = demonstrations()
    run, resumed = batches(num_bucket_steps=3), batches(num_bucket_steps=3)
    steps = [run[step][0] for step in range(8)][5:]
    for options in EVERYTHING:
        made = objective(family, name, **options)
        together = shown(made.rows(items))
        assert together == [row for item in items for row in shown(made.rows([item]))]
        assert together == shown(made.rows(items[:4])) + shown(made.rows(items[4:]))
        again = objective(family, name, **options)
        before = [shown(made.rows(list(step))) for step in steps[:1]]
        assert before == [shown(again.rows(list(resumed[step][0]))) for step in (5,)]
        later = [Demonstration(i.key, 1, i.prompt_ids, i.response_ids, place=i.place) for i in items]
        assert shown(made.rows(later)) != together


def test_numbers_are_uniform_and_independent() -> None:
    """Of positions and of blocks' rates, between each other and between seeds, epochs, samples, masks, blocks."""
    sample, position = np.divmod(np.arange(40 * 128), 128)
    block = position // 4 * 4

    def draws(seed: int = 0, epoch: int = 0, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        keys = (seed, epoch, sample + first)
        return draw_positions(keys, 2, position), draw_blocks(keys, 2, block)[:, ::4]

    mask, rate = draws()
    assert distance(mask) < limit(mask.size)
    assert distance(rate) < limit(rate.size)
    for other in (draws(seed=1), draws(epoch=1), draws(first=1), draws(first=2**62)):
        for mine, theirs in zip((mask, rate), other, strict=True):
            assert_independent(mine, theirs)
    assert_independent(mask[0], mask[1])  # of two masks
    assert_independent(rate[0], rate[1])
    assert_independent(mask[:, 1:], mask[:, :-1])  # neighbours
    assert_independent(rate[:, 1:], rate[:, :-1])
    for offset in range(4):  # a token and its block's rate
        assert_independent(mask[:, offset::4], rate)


@EVERY
@pytest.mark.parametrize("rate", [0.1, 0.5, pytest.param(0.9, marks=pytest.mark.slow)])
def test_masks_have_their_rate_in_every_epoch(family, name, rate) -> None:
    """At each position, together, and of two epochs, samples and neighbours at once."""
    n, length = 800, 8
    made = objective(family, name, block_size=4, min_rate=rate, max_rate=rate)
    masks = []
    for epoch in (0, 1):
        items = [Demonstration(i.key, epoch, i.prompt_ids, i.response_ids, place=i.place) for i in same(n, length)]
        trained = np.zeros((n, length))
        for key, rows in by_item(made.rows(items)).items():
            trained[key] = shares(rows, length, 4).sum(0)
        masks.append(trained)
        assert np.abs(trained.mean(0) - rate).max() < limit(n)
        assert abs(trained.mean() - rate) < limit(n * length)
    first, second = masks
    for a, b in ((first, second), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])):
        assert abs((a * b).mean() - rate**2) < limit(a.size / 2)  # neighbours overlap: two halves of independent pairs


@EVERY
@pytest.mark.parametrize("rate_per", ["sequence", "block"])
def test_rates_are_uniform_and_masks_follow_them(family, name, rate_per) -> None:
    n, num_blocks = 3000, 3
    made = objective(family, name, rate_per=rate_per, min_rate=0.2, max_rate=0.8)
    block = np.arange(num_blocks)
    keys = np.arange(n)[:, None]
    drawn = [made._rates((0, epoch, np.repeat(keys, 3)), np.zeros(3 * n), np.tile(block, n)) for epoch in (0, 1)]
    first, second = ((rates.reshape(n, num_blocks) - 0.2) / 0.6 for rates in drawn)
    assert distance(first[:, 0]) < limit(n)
    assert_independent(first[:, 0], second[:, 0])
    assert_independent(first[1:, 0], first[:-1, 0])
    if rate_per == "block":
        assert_independent(first[:, 0], first[:, 1])
    else:
        assert (first == first[:, :1]).all()
