"""SFT with random masks over the whole response: what is masked, trained and seen, for both kinds of attention."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import SPECIAL, make_model
from unmask.models.checkpoint import new_model
from unmask.objectives.random_masking_sft import RandomMaskingSft
from unmask.types import Demonstration

MASK, PAD = 2, 0


def demonstrations(n: int = 5, seed: int = 0) -> list[Demonstration]:
    rng = np.random.default_rng(seed)
    return [
        Demonstration(i, 0, rng.integers(3, 40, 3 + i).tolist(), rng.integers(3, 40, 7 + 2 * (i % 3)).tolist())
        for i in range(n)
    ]


def objective(family: str, seed: int = 0, **options) -> RandomMaskingSft:
    model = make_model() if family == "sdar" else new_model(f"{family}/tiny", 0, **SPECIAL)
    return RandomMaskingSft(RandomMaskingSft.Options(**options), model.spec, seed)


def test_full_attention_sees_the_whole_canvas() -> None:
    items = demonstrations()
    rows = objective("llada", canvas_length=16).rows(items)
    assert len(rows) == len(items)
    for item, row in zip(items, rows, strict=True):
        canvas = [*item.response_ids, *[PAD] * (16 - len(item.response_ids))]
        clean = np.array([*item.prompt_ids, *canvas])
        is_masked = row.input_ids == MASK
        assert row.input_ids[~is_masked].tolist() == clean[~is_masked].tolist()
        assert not is_masked[: len(item.prompt_ids)].any()
        assert row.target_column.tolist() == is_masked.nonzero()[0].tolist()  # pads are trained, too
        assert row.target_ids.tolist() == clean[is_masked].tolist()
        assert not row.block.any()


def test_the_canvas_is_the_longest_of_the_batch_unless_given() -> None:
    items = demonstrations()
    assert {len(row.input_ids) - len(i.prompt_ids) for row, i in zip(objective("llada").rows(items), items, strict=True)} == {
        11
    }


@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_trained_pads(family) -> None:
    items = [Demonstration(i, 0, [7, 8, 9], [5, 6]) for i in range(200)]

    def pads(**options) -> int:
        return sum(int((row.target_ids == PAD).sum()) for row in objective(family, canvas_length=5, **options).rows(items))

    assert pads() > 2 * pads(num_trained_pads=1) > 0
    assert pads(num_trained_pads=0) == 0


def test_block_models_have_one_rate_for_the_whole_response() -> None:
    """Shares of masks in the first and the last block go together, where semi_ar draws a rate for each block."""
    items = [Demonstration(i, 0, [], [5] * 40) for i in range(600)]
    rows = objective("sdar", min_rate=0.1, max_rate=0.9).rows(items)
    shares = []
    for row in rows:
        counts = np.bincount(row.position[row.target_column] // 4, minlength=10) / 4
        shares.append((counts[:5].mean(), counts[5:].mean()))
    assert np.corrcoef(np.array(shares).T)[0, 1] > 0.6


def test_masks_depend_on_seed_sample_and_epoch_only() -> None:
    items = demonstrations()
    together = [r.input_ids.tolist() for r in objective("sdar").rows(items)]
    alone = [objective("sdar").rows([item])[0].input_ids.tolist() for item in items]
    assert together == alone
    later = [Demonstration(i.key, 1, i.prompt_ids, i.response_ids) for i in items]
    assert [r.input_ids.tolist() for r in objective("sdar").rows(later)] != together
    assert [r.input_ids.tolist() for r in objective("sdar", seed=1).rows(items)] != together


def test_weights_are_a_mean_over_tokens_and_masks_differ() -> None:
    rows = objective("llada", num_masks=3, min_rate=0.5).rows(demonstrations())
    assert len(rows) == 15
    weights = np.concatenate([row.values["weight"] for row in rows])
    assert weights == pytest.approx(np.full(len(weights), 1 / len(weights)))
    assert len({row.input_ids.tobytes() for row in rows[:3]}) == 3
