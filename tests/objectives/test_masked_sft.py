"""SFT with masks drawn at random: what is masked, trained and seen, at which rates, with which weights."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

from tests.conftest import SPECIAL, make_model
from unmask.models import ModelSpec
from unmask.models.checkpoint import new_model
from unmask.objectives import SFT_OBJECTIVES
from unmask.objectives.masked_sft import MaskedSft
from unmask.objectives.rows import TrainRow
from unmask.types import Demonstration

MASK, PAD = 2, 0
BOTH = pytest.mark.parametrize("family", ["sdar", "llada"])
EVERY = pytest.mark.parametrize(("family", "name"), list(itertools.product(["sdar", "llada"], ["random_masking", "semi_ar"])))
OPTIONS = [
    {}, {"rate_per": "block"}, {"rate_per": "sequence"}, {"rates": "stratified", "num_masks": 2}, {"has_complements": True},
    {"loss_normalization": "elbo"}, {"canvas_length": 21, "num_trained_pads": 1}, {"block_size": 8},
]  # fmt: skip


def demonstrations(n: int = 8, seed: int = 0) -> list[Demonstration]:
    rng = np.random.default_rng(seed)
    return [
        Demonstration(i, 0, rng.integers(3, 40, 2 + i).tolist(), rng.integers(3, 40, 9 + 3 * (i % 3)).tolist(), place=10 * i)
        for i in range(n)
    ]


def same(num: int, num_response: int, num_prompt: int = 4) -> list[Demonstration]:
    return [Demonstration(i, 0, [1000 + i] * num_prompt, [5] * num_response, place=i) for i in range(num)]


@functools.cache
def spec_of(family: str) -> ModelSpec:
    return (make_model() if family == "sdar" else new_model(f"{family}/tiny", 0, **SPECIAL)).spec


def objective(family: str, name: str, seed: int = 0, **options) -> MaskedSft:
    made = SFT_OBJECTIVES[name]
    return made(made.Options(**options), spec_of(family), seed)


def by_item(rows: list[TrainRow]) -> dict[int, list[TrainRow]]:
    """The rows of each of `same`'s items, which begin with a token of their own."""
    found: dict[int, list[TrainRow]] = {}
    for row in rows:
        found.setdefault(int(row.input_ids[0]) - 1000, []).append(row)
    return found


def shown(rows: list[TrainRow]) -> list[tuple]:
    """All of the rows but their weights, which refer to the whole step."""
    return [(r.input_ids.tolist(), r.position.tolist(), r.copy.tolist(), r.target_column.tolist()) for r in rows]


def canvas_of(made: MaskedSft, item: Demonstration) -> list[int]:
    """As the option's description has it."""
    length = max(len(item.response_ids), made.options.canvas_length or 0)
    size = made.options.block_size or (4 if made.spec.attention == "block_causal" else 32)
    if made.spec.attention == "block_causal":
        length += -(len(item.prompt_ids) + length) % size
    elif made.options.canvas_length is None:
        length += -length % size
    return [*item.response_ids, *[PAD] * (length - len(item.response_ids))]


@EVERY
@pytest.mark.parametrize("options", OPTIONS)
def test_rows_show_what_they_should(family, name, options) -> None:
    """Noisy tokens are the sequence's or masked; what is trained is masked and no prompt; what lies behind is not seen."""
    made = objective(family, name, **options)
    for item in demonstrations():
        canvas, num_prompt = canvas_of(made, item), len(item.prompt_ids)
        ids = np.array([*item.prompt_ids, *canvas])
        for row in made.rows([item]):
            is_noisy = row.copy > 0 if family == "sdar" else np.ones_like(row.copy, dtype=bool)
            is_masked = row.input_ids == MASK
            assert (row.input_ids[~is_masked] == ids[row.position[~is_masked]]).all()
            assert not is_masked[~is_noisy].any()
            assert not is_masked[row.position < num_prompt].any()
            assert is_masked[row.target_column].all()
            assert (row.target_ids == ids[row.position[row.target_column]]).all()
            trained_end = num_prompt + len(item.response_ids) + options.get("num_trained_pads", len(canvas))
            assert (row.position[row.target_column] < trained_end).all()
            if family == "sdar":
                size = made.block_size
                assert all(len({p // size for p in row.position[row.copy == c]}) == 1 for c in range(1, row.copy.max() + 1))
                untrained = set(np.flatnonzero(is_masked)) - set(row.target_column)
                assert all(row.position[column] >= trained_end for column in untrained)
            else:
                assert len(row.input_ids) == len(ids)
                assert not row.block.any()
                if name == "semi_ar":
                    window = (row.position[row.target_column] - num_prompt) // made.block_size
                    assert len(set(window)) == 1
                    assert is_masked[num_prompt + (window[0] + 1) * made.block_size :].all()
                    assert not is_masked[: num_prompt + window[0] * made.block_size].any()


@EVERY
@pytest.mark.parametrize("options", OPTIONS)
def test_masks_depend_on_seed_sample_and_epoch_only(family, name, options) -> None:
    """The same in one batch of eight, alone, in another order, and dealt out to two ranks."""
    items, made = demonstrations(), objective(family, name, **options)
    together = shown(made.rows(items))
    assert together == [row for item in items for row in shown(made.rows([item]))]
    assert together == [row for item in items[::-1] for row in shown(made.rows([item]))[::-1]][::-1]
    ranks = [made.rows(items[rank::2]) for rank in (0, 1)]
    assert sorted(together) == sorted(shown(ranks[0]) + shown(ranks[1]))
    later = [Demonstration(i.key, 1, i.prompt_ids, i.response_ids, place=i.place + 8) for i in items]
    assert shown(made.rows(later)) != together
    assert shown(objective(family, name, seed=1, **options).rows(items)) != together


def shares(rows: list[TrainRow], num_canvas: int, num_prompt: int = 0) -> np.ndarray:
    """Float [rows, canvas]: which positions each row trains."""
    trained = np.zeros((len(rows), num_canvas))
    for i, row in enumerate(rows):
        trained[i, row.position[row.target_column] - num_prompt] = 1
    return trained


@EVERY
def test_rates(family, name) -> None:
    """2,000 sequences of two blocks: the share of masks is the mean rate, and its variance that of what has a rate.

    Limits are 5 standard errors of the 2,000 (error probability below 1e-6 each).
    """
    n, size = 2000, 4
    for rate_per in ("sequence", "block"):
        made = objective(family, name, block_size=size, rate_per=rate_per, min_rate=0.2, max_rate=0.8)
        trained = np.zeros((n, 2 * size))
        for key, rows in by_item(made.rows(same(n, 2 * size, size))).items():
            trained[key] = shares(rows, 2 * size, size).sum(0)
        counts = trained.reshape(n, 2, size).sum(2)
        spread = 0.6**2 / 12
        assert counts.mean() == pytest.approx(size / 2, abs=5 * np.sqrt((size * 0.25 + size * (size - 1) * spread) / n))
        # Of a block: binomial, and the spread of its rate. Of two blocks together: the covariance, if they share a rate.
        assert counts.var(0).mean() == pytest.approx(size * 0.25 + size * (size - 1) * spread, rel=0.16)
        covariance = np.cov(counts.T)[0, 1]
        expected = size**2 * spread if rate_per == "sequence" else 0.0
        assert covariance == pytest.approx(expected, abs=5 * 1.5 / np.sqrt(n))


def rates_of(made: MaskedSft, item: Demonstration, num_blocks: int) -> np.ndarray:
    block = np.arange(num_blocks)
    return made._rates((made.seed, item.epoch, item.key), np.full_like(block, item.place), block)


@BOTH
@pytest.mark.parametrize("rate_per", ["sequence", "block"])
def test_stratified_rates_are_even_and_each_of_them_is_uniform(family, rate_per) -> None:
    """Of N rates in a row the largest gap is below 3 / N (the three-gap theorem; of random ones it is about ln N / N)."""
    options = {"rate_per": rate_per, "min_rate": 0.0, "max_rate": 1.0, "rates": "stratified"}
    made = objective(family, "random_masking", **options)
    for num in (8, 64, 500):
        for begin in (0, 77):
            found = np.sort([rates_of(made, item, 1)[0, 0] for item in same(num + begin, 4)[begin:]])
            assert np.diff(found, prepend=found[-1] - 1).max() < 3 / num
    two = objective(family, "random_masking", num_masks=2, **options)
    first, second = rates_of(two, same(1, 4)[0], 3)[:, 0]
    assert (second - first) % 1 == pytest.approx(0.5)
    blocks = rates_of(made, same(1, 4)[0], 3)[0]
    assert len(set(blocks)) == (1 if rate_per == "sequence" else 3)
    # Over seeds a rate is uniform: Kolmogorov's distance of 500 is above 0.1 with probability 1e-4.
    drawn = np.sort(
        [rates_of(objective(family, "random_masking", seed, **options), same(4, 4)[3], 1)[0, 0] for seed in range(500)]
    )
    assert np.abs(drawn - np.arange(500) / 500).max() < 0.1


@EVERY
def test_complements_train_every_token_once(family, name) -> None:
    made = objective(family, name, has_complements=True, num_masks=3)
    for item in demonstrations():
        length = len(canvas_of(made, item))
        trained = shares(made.rows([item]), length, len(item.prompt_ids)) if family == "llada" else None
        if trained is None:
            trained = np.zeros(length)
            for row in made.rows([item]):
                np.add.at(trained, row.position[row.target_column] - len(item.prompt_ids), 1)
        assert (np.atleast_2d(trained).sum(0) == 3).all()


@EVERY
@pytest.mark.parametrize("options", [{}, {"rate_per": "block"}, {"has_complements": True}, {"rates": "stratified"}])
def test_elbo_weights_are_one_in_the_mean(family, name, options) -> None:
    """Every trainable token has the expected weight 1 / tokens / sequences, so that the weights of a step add up to 1.

    Over 1,000 sequences the limit is 5 standard errors of what was seen (error probability below 1e-6).
    """
    made = objective(family, name, loss_normalization="elbo", min_rate=0.1, max_rate=1.0, num_trained_pads=1, **options)
    n = 1000
    sums = np.zeros(n)
    for key, rows in by_item(made.rows(same(n, 7, 2))).items():
        sums[key] = n * sum(row.values["weight"].sum() for row in rows)
    assert sums.mean() == pytest.approx(1.0, abs=5 * sums.std() / np.sqrt(len(sums)))
    rows = made.rows(same(4, 7, 2))
    alone = [row for item in same(4, 7, 2) for row in made.rows([item])]
    for row, one in zip(rows, alone, strict=True):
        np.testing.assert_allclose(row.values["weight"], one.values["weight"] / 4)


@EVERY
def test_averages(family, name) -> None:
    """token: all the same. sequence: every sequence the same in sum. constant: 1 / length / sequences."""
    items = demonstrations()
    for kind in ("token", "sequence", "constant"):
        made = objective(family, name, loss_normalization=kind, constant_length=50, min_rate=0.5)
        rows_of = [made.rows([item]) for item in items]
        rows = made.rows(items)
        weights = np.concatenate([row.values["weight"] for row in rows])
        num_targets = [sum(len(row.target_ids) for row in of) for of in rows_of]
        expected = {
            "token": np.full(sum(num_targets), 1 / sum(num_targets)),
            "sequence": np.concatenate([np.full(n, 1 / n / len(items)) for n in num_targets]),
            "constant": np.full(sum(num_targets), 1 / 50 / len(items)),
        }
        np.testing.assert_allclose(weights, expected[kind])


@EVERY
def test_trained_pads(family, name) -> None:
    def pads(**options) -> int:
        rows = objective(family, name, canvas_length=5, **options).rows(same(200, 2, 3))
        return sum(int((row.target_ids == PAD).sum()) for row in rows)

    assert pads() > 2 * pads(num_trained_pads=1) > 0
    assert pads(num_trained_pads=0) == 0


def test_several_masks_share_the_clean_tokens() -> None:
    items = demonstrations()
    one, three = (sum(len(r.input_ids) for r in objective("sdar", "semi_ar", num_masks=n).rows(items)) for n in (1, 3))
    assert one < three < 3 * one
    assert len({row.input_ids.tobytes() for row in objective("llada", "random_masking", num_masks=3).rows(items[:1])}) == 3
