"""Drawing against plain definitions."""

from __future__ import annotations

import math

import pytest
import torch

from unmask.diffusion.counter_rng import uniform
from unmask.diffusion.drawing import draw, draw_logprobs


def plain_distribution(logits: list[float], temperature: float, top_k: int, top_p: float, excluded: int) -> list[float]:
    """Temperature, then top-k, then top-p, one candidate at a time."""
    left = [(value / temperature, -i) for i, value in enumerate(logits) if i != excluded]
    left.sort(reverse=True)
    left = left[:top_k] if top_k else left
    total = sum(math.exp(v) for v, _ in left)
    kept, reached = [], 0.0
    for value, index in left:
        if reached >= top_p:
            break
        kept.append((value, -index))
        reached += math.exp(value) / total
    total = sum(math.exp(v) for v, _ in kept)
    result = [0.0] * len(logits)
    for value, index in kept:
        result[index] = math.exp(value) / total
    return result


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 3, 1.0), (1.0, 0, 0.6), (0.9, 5, 0.8), (1.0, 1, 1.0)],
)
def test_distribution_is_the_plain_one(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(20, 12, dtype=torch.float64) * 2
    got = draw_logprobs(logits, temperature=temperature, top_k=top_k, top_p=top_p, excluded_token_id=4).exp()
    want = torch.tensor([plain_distribution(row, temperature, top_k, top_p, 4) for row in logits.tolist()])
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_top_p_takes_the_token_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    for top_p, kept in ((0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (1.0, 4)):
        assert (draw_logprobs(logits, top_p=top_p) > -torch.inf).sum() == kept, top_p
    # at temperature 2 the first token has 0.37: the temperature comes before top-p
    assert (draw_logprobs(logits, top_p=0.5, temperature=2.0) > -torch.inf).sum() == 2


def test_frequencies_follow_the_distribution() -> None:
    n = 200_000
    logprobs = draw_logprobs(torch.tensor([[1.0, 0.0, -1.0, 5.0]]), excluded_token_id=3)
    keys = torch.arange(n)
    tokens = draw(logprobs.expand(n, -1), uniform(keys, torch.zeros_like(keys)), 1.0)
    frequency = torch.bincount(tokens, minlength=4) / n
    assert frequency[3] == 0  # the excluded token is never drawn
    torch.testing.assert_close(frequency, logprobs[0].exp(), atol=4e-3, rtol=0)  # 3.6 standard deviations of p = 0.5


def test_extreme_numbers_never_draw_an_impossible_token() -> None:
    logprobs = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    assert draw(logprobs, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64), 1.0).tolist() == [1, 1, 1]


def test_temperature_zero_is_argmax_scored_at_temperature_one() -> None:
    logits = torch.randn(5, 9)
    logprobs = draw_logprobs(logits, temperature=0.0, top_k=2, excluded_token_id=8)
    torch.testing.assert_close(logprobs[:, :8], torch.log_softmax(logits[:, :8], -1))
    assert torch.equal(draw(logprobs, torch.rand(5).double(), 0.0), logits[:, :8].argmax(-1))


def test_random_numbers_are_a_function_of_their_keys() -> None:
    seed, position = torch.arange(1000), torch.arange(1000) % 7
    together = uniform(seed, position)
    assert together.dtype == torch.float64
    assert torch.equal(together[500:510], uniform(seed[500:510], position[500:510]))
    assert len(set(together.tolist())) == 1000
    assert 0.47 < together.mean() < 0.53
    assert 0 <= together.min() < together.max() < 1
    assert abs(torch.corrcoef(torch.stack((together[:-1], together[1:])))[0, 1]) < 0.1  # neighbouring seeds are unrelated
    swapped = uniform(position, seed)
    assert not torch.equal(swapped, together)  # the place of a key matters


def test_random_numbers_stay_what_they_were() -> None:
    """A change here silently changes every seeded result."""
    assert uniform(torch.tensor([0, 1, 2**62]), torch.tensor([0, 5, -3])).tolist() == PINNED


PINNED = [0.6561149711801131, 0.6896985863529844, 0.6813455192132777]
