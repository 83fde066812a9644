"""The contract of the strategies: comparators, ties, bounds."""

from __future__ import annotations

import itertools

import pytest
import torch

from unmask.diffusion.generate import step_quota
from unmask.diffusion.remasking import STRATEGIES, StepScores, get_strategy
from unmask.errors import UnmaskError
from unmask.types import SamplingParams

CONFIDENCE = [0.2, 0.9, 0.5, 0.9, 0.1, 0.95]
ENTROPY = [0.3, 0.05, 0.2, 0.1, 0.9, 0.01]


def select(
    name: str, is_masked=(1, 1, 1, 1, 1, 0), quota: int = 2, confidence=CONFIDENCE, entropy=ENTROPY, **params
) -> list[int]:
    scores = StepScores(
        torch.tensor([is_masked], dtype=torch.bool),
        torch.tensor([confidence]),
        torch.tensor([entropy]),
        torch.tensor([[0.4, 0.1, 0.8, 0.7, 0.2, 0.9]], dtype=torch.float64),
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
        one = StepScores(*(getattr(scores, f)[i : i + 1] for f in StepScores.__slots__))
        assert torch.equal(STRATEGIES[name].select(one, quota[i : i + 1], params)[0], together[i])


def test_quota_spreads_the_remainder_over_the_first_steps() -> None:
    assert step_quota(torch.arange(3), 8, 3).tolist() == [3, 3, 2]
    assert step_quota(torch.arange(4), 4, 4).tolist() == [1, 1, 1, 1]


def test_unknown_strategy_lists_the_known() -> None:
    with pytest.raises(UnmaskError, match="unknown remasking_strategy 'best'; known: low_confidence_static, "):
        get_strategy("best")
