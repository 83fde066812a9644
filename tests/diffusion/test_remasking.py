"""The contract of the strategies: comparators, ties, bounds."""

from __future__ import annotations

import itertools

import pytest
import torch

from unmask.diffusion.denoising import ParamColumns
from unmask.diffusion.remasking import STRATEGIES, StepScores, get_strategy
from unmask.errors import UnmaskError
from unmask.types import SamplingParams

CONFIDENCE = [0.2, 0.9, 0.5, 0.9, 0.1, 0.95]
ENTROPY = [0.3, 0.05, 0.2, 0.1, 0.9, 0.01]


def select(
    name: str, is_masked=(1, 1, 1, 1, 1, 0), quota: int = 2, confidence=CONFIDENCE, entropy=ENTROPY, is_inclusive=False,
    **params,
) -> list[int]:  # fmt: skip
    scores = StepScores(
        torch.tensor([is_masked], dtype=torch.bool),
        torch.tensor([confidence]),
        torch.tensor([entropy]),
        torch.tensor([[0.4, 0.1, 0.8, 0.7, 0.2, 0.9]], dtype=torch.float64),
        is_inclusive=is_inclusive,
    )
    chosen = get_strategy(name).select(scores, torch.tensor([quota]), SamplingParams(**params))
    return chosen[0].nonzero()[:, 0].tolist()


def test_static_takes_the_most_confident_masked() -> None:
    assert select("low_confidence_static", quota=3) == [1, 2, 3]


def test_ties_go_to_the_smallest_index() -> None:
    assert select("low_confidence_static", quota=1) == [1]
    # float noise below TIE is a tie too
    assert select("low_confidence_static", quota=1, confidence=[0.5, 0.5 + 2e-7, 0.5 + 1e-7, 0.5, 0.5, 0]) == [0]
    assert select("low_confidence_static", quota=1, confidence=[0.5, 0.5001, 0.5, 0.5, 0.5, 0]) == [1]


def test_dynamic_is_strictly_greater() -> None:
    assert select("low_confidence_dynamic", quota=1, confidence_threshold=0.5) == [1, 3]  # 0.5 itself does not pass
    assert select("low_confidence_dynamic", quota=1, confidence_threshold=0.05) == [0, 1, 2, 3, 4]


def test_dynamic_includes_the_threshold_for_full_attention() -> None:
    assert select("low_confidence_dynamic", quota=1, confidence_threshold=0.5, is_inclusive=True) == [1, 2, 3]


def test_a_schedule_may_ask_for_none() -> None:
    for name in ("low_confidence_static", "sequential", "random"):
        assert select(name, quota=0) == []
    assert select("low_confidence_dynamic", quota=0, confidence_threshold=0.99) == [1]
    assert select("entropy_bounded", quota=0, entropy_bound=0.0) == [1]


def test_alg_temp_draws_positions_by_softmax_without_replacement() -> None:
    """Frequencies of ordered pairs of positions against the plain definition."""
    confidence, alg_temp, rows = torch.tensor([0.9, 0.5, 0.1, 0.6]), 0.4, 40_000
    is_masked = torch.tensor([[True, True, True, False]]).expand(rows, -1)
    uniform = torch.rand(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = StepScores(is_masked, confidence.expand(rows, -1), torch.zeros(rows, 4), uniform)
    params = SamplingParams(alg_temp=alg_temp)
    weight = (confidence[:3] / alg_temp).softmax(0)
    one = STRATEGIES["low_confidence_static"].select(scores, torch.ones(rows, dtype=torch.long), params)
    torch.testing.assert_close(one.float().mean(0)[:3], weight, atol=9e-3, rtol=0)  # 3.6 standard deviations of p = 0.5
    two = STRATEGIES["low_confidence_static"].select(scores, torch.full((rows,), 2), params)
    want = [  # position i is among the first two: first, or second after j
        weight[i] + sum(weight[j] * weight[i] / (1 - weight[j]) for j in range(3) if j != i) for i in range(3)
    ]
    torch.testing.assert_close(two.float().mean(0)[:3], torch.stack(want), atol=9e-3, rtol=0)
    assert not two[:, 3].any()


def test_rows_with_settings_of_their_own() -> None:
    g = torch.Generator().manual_seed(1)
    scores = StepScores(torch.ones(6, 5, dtype=torch.bool), *(torch.rand(6, 5, generator=g) for _ in range(2)),
                        torch.rand(6, 5, generator=g, dtype=torch.float64))  # fmt: skip
    rows = [
        SamplingParams(confidence_threshold=c, entropy_bound=e, alg_temp=a)
        for c, e, a in ((0.1, 0.3, 0.0), (0.5, 1.0, 0.5), (0.9, 2.0, 0.0), (0.3, 0.0, 1.0), (0.7, 0.7, 0.0), (0.2, 5.0, 0.1))
    ]
    quota, columns = torch.tensor([1, 2, 3, 1, 2, 5]), ParamColumns(rows, torch.device("cpu"))
    for strategy in STRATEGIES.values():
        together = strategy.select(scores, quota, columns)
        for i, params in enumerate(rows):
            one = StepScores(*(getattr(scores, f)[i : i + 1] for f in ("is_masked_BT", "score_BT", "entropy_BT", "uniform_BT")))
            assert torch.equal(strategy.select(one, quota[i : i + 1], params)[0], together[i])


def test_dynamic_falls_back_to_the_quota() -> None:
    assert select("low_confidence_dynamic", quota=1, confidence_threshold=0.99) == [1]
    assert select("low_confidence_dynamic", quota=3, confidence_threshold=0.5) == [1, 2, 3]  # two pass, three are asked
    tied = [0.9, 0.9, 0.9, 0.1, 0.1, 0.0]  # as many pass as are asked: exactly those
    assert select("low_confidence_dynamic", quota=3, confidence=tied, confidence_threshold=0.5) == [0, 1, 2]


def test_sequential_takes_the_leftmost() -> None:
    assert select("sequential", is_masked=(0, 1, 0, 1, 1, 1), quota=2) == [1, 3]


def test_random_follows_its_numbers() -> None:
    assert select("random", quota=2) == [2, 3]


def test_entropy_bound_is_strict_on_the_running_sum() -> None:
    # ascending: 0.05 (1), 0.1 (3), 0.2 (2), 0.3 (0), ..; sums 0.05, 0.15, 0.35
    assert select("entropy_bounded", entropy_bound=0.16) == [1, 3]
    assert select("entropy_bounded", entropy_bound=0.05) == [1]  # at least one
    exact = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]  # 1 + 1 is not below 2
    assert select("entropy_bounded", entropy=exact, entropy_bound=2.0) == [0]
    assert select("entropy_bounded", entropy_bound=100.0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", STRATEGIES)
def test_bounds(name: str) -> None:
    """Only masked positions; at least one where any is left; never more than are left."""
    for is_masked in itertools.product((0, 1), repeat=6):
        for quota in (1, 4, 6):
            chosen = select(name, is_masked=is_masked, quota=quota)
            masked = [i for i, m in enumerate(is_masked) if m]
            assert set(chosen) <= set(masked)
            assert bool(chosen) == bool(masked)
            if name in ("low_confidence_static", "sequential", "random"):
                assert len(chosen) == min(quota, len(masked))


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_are_independent(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    rows = 20
    scores = StepScores(
        torch.rand(rows, 8, generator=g) < 0.6,
        torch.rand(rows, 8, generator=g),
        torch.rand(rows, 8, generator=g),
        torch.rand(rows, 8, generator=g).double(),
    )
    quota = torch.randint(1, 5, (rows,), generator=g)
    params = SamplingParams(confidence_threshold=0.7)
    together = STRATEGIES[name].select(scores, quota, params)
    for i in range(rows):
        one = StepScores(*(getattr(scores, f)[i : i + 1] for f in ("is_masked_BT", "score_BT", "entropy_BT", "uniform_BT")))
        assert torch.equal(STRATEGIES[name].select(one, quota[i : i + 1], params)[0], together[i])


def test_unknown_strategy_lists_the_known() -> None:
    with pytest.raises(UnmaskError, match="unknown remasking_strategy 'best'; known: low_confidence_static, "):
        get_strategy("best")
