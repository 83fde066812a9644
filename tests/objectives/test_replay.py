"""Exact replay: the trainer's log-probabilities for a trace are the sampler's."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import make_model, random_prompts
from unmask.attention import DenseAttention
from unmask.diffusion.generate import generate
from unmask.models.checkpoint import load_model
from unmask.objectives.rows import collate, target_logprobs
from unmask.objectives.trace_views import replay_logprobs, trace_row
from unmask.types import SamplingParams

TOLERANCE = 1e-5  # float32 sums in another order; peaked random models reach 5e-6


def mismatch(model, traces) -> float:
    replayed = replay_logprobs(model, traces)
    assert [len(r) for r in replayed] == [len(t.canvas_ids) for t in traces]
    return max(abs(a - b) for r, t in zip(replayed, traces, strict=True) for a, b in zip(r, t.logprobs, strict=True))


@pytest.mark.parametrize("strategy", ["low_confidence_static", "low_confidence_dynamic", "random", "entropy_bounded"])
@pytest.mark.parametrize("cache", ["auto", "none"])
@pytest.mark.parametrize("block_size", [1, 2, 4, 8])
def test_replay(model, block_size, cache, strategy) -> None:
    """Prompt lengths 0 to 2b+1 in one batch, stops inside a block, limits inside a block."""
    params = SamplingParams(
        max_new_tokens=19, block_size=block_size, confidence_threshold=0.3, remasking_strategy=strategy, cache=cache,
        entropy_bound=2.0, seed=block_size, stop_token_ids=(1, 11, 12),
    )  # fmt: skip
    traces = generate(model, random_prompts(range(2 * block_size + 2)) * 3, params)
    assert {t.finish_reason for t in traces} == {"stop", "length"}
    if block_size > 2:
        assert any(t.finish_reason == "stop" and t.num_response_tokens < len(t.canvas_ids) for t in traces)
    assert mismatch(model, traces) <= TOLERANCE


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.5, 0, 1.0), (1.5, 5, 1.0), (0.9, 0, 0.7), (0.0, 0, 1.0)])
def test_replay_knows_the_decode_settings(model, temperature, top_k, top_p) -> None:
    params = SamplingParams(max_new_tokens=16, temperature=temperature, top_k=top_k, top_p=top_p)
    assert mismatch(model, generate(model, random_prompts(range(9)), params)) <= TOLERANCE


def test_replay_of_golden_weights(golden_sdar) -> None:
    model = load_model(golden_sdar)
    for b in (1, 2, 4, 8):
        params = SamplingParams(max_new_tokens=21, block_size=b, confidence_threshold=0.2)
        assert mismatch(model, generate(model, random_prompts(range(2 * b + 2)), params)) <= TOLERANCE


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 8])
def test_the_trainers_own_forward_replays_too(model, block_size) -> None:
    """What an update computes: with gradients (float32 attention), rows of different lengths in one padded batch."""
    params = SamplingParams(max_new_tokens=17, block_size=block_size, confidence_threshold=0.3, stop_token_ids=(1, 11, 12))
    traces = generate(model, random_prompts(range(2 * block_size + 2)) * 2, params)
    rows = [trace_row(trace, model.spec.mask_token_id) for trace in traces]
    batch = collate(rows, model.spec.pad_token_id)
    got = target_logprobs(model, batch, DenseAttention)
    assert got.requires_grad
    torch.testing.assert_close(got.detach(), batch.values["old_logprobs"], atol=TOLERANCE, rtol=0)


def test_replay_fails_on_the_wrong_grid(model) -> None:
    """The test can fail: blocks counted from the response start give other numbers."""
    trace = generate(model, random_prompts([5]), SamplingParams(max_new_tokens=16))[0]
    slipped = random_prompts([4])[0]
    trace.prompt_ids, trace.canvas_ids = slipped, [*trace.canvas_ids, 3]
    for values in (trace.step_map, trace.logprobs, trace.confidences):
        values.append(values[-1])
    assert mismatch(model, [trace]) > 1e-2


def test_replay_fails_on_a_shifted_step_map() -> None:
    model = make_model(seed=3)
    trace = generate(model, random_prompts([6]), SamplingParams(max_new_tokens=16, remasking_strategy="random"))[0]
    trace.step_map = trace.step_map[1:] + trace.step_map[:1]
    assert mismatch(model, [trace]) > 1e-3
