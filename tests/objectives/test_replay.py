"""Exact replay: the trainer's log-probabilities for a trace are the sampler's."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import make_model, random_prompts
from tests.models.rows import ROWS, build
from unmask.attention import BACKENDS, DenseAttention
from unmask.diffusion.generate import generate
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model
from unmask.objectives.rows import collate, pack_rows, score_targets
from unmask.objectives.trace_views import replay_logprobs, trace_rows
from unmask.objectives.views import Grid
from unmask.types import SamplingParams

TOLERANCE = 1e-5  # float32 sums in another order; peaked random models reach 5e-6


def mismatch(model, traces, **options) -> float:
    replayed = replay_logprobs(model, traces, **options)
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


FULL_SETTINGS = (
    {},
    {"remasking_strategy": "low_confidence_static", "denoising_steps": 9},
    {"remasking_strategy": "low_confidence_static", "quota_schedule": "dream", "denoising_steps": 12, "alg_temp": 0.3},
    {"remasking_strategy": "random", "denoising_steps_per_block": 2},
    {"remasking_strategy": "entropy_bounded", "entropy_bound": 2.0},
    {"score": "margin", "confidence_threshold": 0.1, "unmask_block_start": True},
    {"score": "neg_entropy", "confidence_threshold": -1.0, "temperature": 0.7},
    {"top_k": 5, "temperature": 1.3, "min_tokens": 4, "pad_penalty": 3.0},
)
BLOCK_SETTINGS = tuple(s for s in FULL_SETTINGS if "unmask_block_start" not in s)


@pytest.mark.parametrize("row", [r for r in ROWS if r.name != "toy"], ids=str)
def test_replay_of_every_family(row) -> None:
    """Decoded together by the engine, sequences that agree in no setting: prompt lengths, blocks, strategies, stops."""
    model = build(row)
    settings = FULL_SETTINGS if model.spec.attention == "bidirectional" else BLOCK_SETTINGS
    prompts = [[t for t in p if t not in model.spec.eos_token_ids] for p in random_prompts(range(19))]
    stops = tuple(range(3, 7))
    params = [
        SamplingParams(**{
            "max_new_tokens": 11 + 3 * (i % 4), "block_size": 1 + 3 * i % 8, "seed": i, "stop_token_ids": stops,
            "confidence_threshold": 0.1, **settings[i % len(settings)],
        })
        for i in range(len(prompts))
    ]  # fmt: skip
    traces = Engine(model, max_sequences=12, page_size=8).generate(prompts, params)
    assert {t.finish_reason for t in traces} == {"stop", "length"}
    assert mismatch(model, traces) <= TOLERANCE
    assert mismatch(model, traces, max_tokens=60) <= TOLERANCE  # rows of one response in several packs
    assert mismatch(model, traces[:12], backend=BACKENDS["dense"]) <= TOLERANCE


@pytest.mark.parametrize("row", [r for r in ROWS if r.name in ("dream", "llada", "mmada")], ids=str)
def test_approximate_caches_differ_from_their_replay(row) -> None:
    """The replay is exact; a sampler with a stale cache is not, and that can be measured."""
    model = build(row)
    for cache in ("prefix", "dual"):
        params = SamplingParams(max_new_tokens=16, block_size=8, cache=cache)
        assert mismatch(model, Engine(model).generate(random_prompts([5, 9, 13]), params)) > 1e-3


def test_replay_of_golden_weights(golden_sdar) -> None:
    model = load_model(golden_sdar)
    for b in (1, 2, 4, 8):
        params = SamplingParams(max_new_tokens=21, block_size=b, confidence_threshold=0.2)
        assert mismatch(model, generate(model, random_prompts(range(2 * b + 2)), params)) <= TOLERANCE


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 8])
def test_the_trainers_own_forward_replays_too(model, block_size) -> None:
    """What an update computes: with gradients (float32 attention), rows of different lengths in one pack."""
    params = SamplingParams(max_new_tokens=17, block_size=block_size, confidence_threshold=0.3, stop_token_ids=(1, 11, 12))
    traces = generate(model, random_prompts(range(2 * block_size + 2)) * 2, params)
    rows = [row for trace in traces for row in trace_rows(trace, Grid(block_size), model.spec.mask_token_id)]
    batch = collate(rows)
    for backend in (DenseAttention, BACKENDS["tiled"]):
        got = score_targets(model, batch, backend).logprobs_N
        assert got.requires_grad
        torch.testing.assert_close(got.detach(), batch.values["rollout_logprobs"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("row", [r for r in ROWS if r.name != "toy"], ids=str)
def test_the_update_of_every_family_replays_too(row) -> None:
    model = build(row)
    stops = tuple(range(10, 14))
    params = SamplingParams(max_new_tokens=18, confidence_threshold=0.3, stop_token_ids=stops)
    traces = generate(model, random_prompts([0, 3, 7, 8]), params)
    grids = [Grid.of(model.spec, trace.block_size) for trace in traces]
    rows = [r for t, grid in zip(traces, grids, strict=True) for r in trace_rows(t, grid, model.spec.mask_token_id)]
    for pack in pack_rows(rows, 150):
        batch = collate(pack)
        got = score_targets(model, batch, BACKENDS["tiled"]).logprobs_N
        torch.testing.assert_close(got.detach(), batch.values["rollout_logprobs"], atol=TOLERANCE, rtol=0)


def test_replay_refuses_tokens_that_are_none(model) -> None:
    trace = generate(model, [[5, 6]], SamplingParams(max_new_tokens=4))[0]
    trace.canvas_ids[1] = 40
    with pytest.raises(UnmaskError, match="trace 0: token id 40, but the model's vocabulary has 40 tokens"):
        replay_logprobs(model, [trace])


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
