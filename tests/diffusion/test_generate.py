"""The sampler against the golden decodes, against a plain slow sampler, and against itself in other company."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import make_model, random_prompts
from tests.golden import golden_cases
from tests.grid import grid
from unmask.diffusion.counter_rng import uniform
from unmask.diffusion.drawing import draw, draw_logprobs
from unmask.diffusion.generate import generate
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model
from unmask.types import SamplingParams, Trace


def with_engine(model, prompts, params):
    return Engine(model).generate(prompts, params)


# Golden cases that bake in what we do differently on purpose: known tokens overwritten when the quota exceeds the masks
# left, and confidences taken after top-k (all 1.0 at top_k=1) or after the temperature. See docs/architecture.md.
NOT_OURS = ("quirk_", "dynamic_temp0.5", "dynamic_topk3")


@pytest.mark.parametrize("decode", [generate, with_engine])
def test_golden_decodes(golden_sdar, decode) -> None:
    model, checked = load_model(golden_sdar), 0
    for case in golden_cases(golden_sdar, "generate"):
        name, p = case["name"], case["params"]
        if name.startswith(NOT_OURS):
            continue
        prompt = case["inputs"]["prompt_ids"][0].tolist()
        params = SamplingParams(
            max_new_tokens=p["gen_length"], block_size=p["block_length"], denoising_steps_per_block=p["denoising_steps"],
            remasking_strategy=p["remasking_strategy"], confidence_threshold=p["confidence_threshold"], temperature=0.0,
            stop_token_ids=p["stopping_criteria_idx"] or (),
        )  # fmt: skip
        (trace,) = decode(model, [prompt], params)
        decoded = slice(len(prompt), len(prompt) + len(trace.canvas_ids))  # the fixture pads a stopped row with masks
        assert trace.canvas_ids == case["outputs"]["output_ids"][0, decoded].tolist(), name
        assert trace.step_map == case["outputs"]["global_step"][decoded].tolist(), name
        assert trace.num_forwards == case["expected"]["n_denoise_forward"], name
        checked += 1
    assert checked >= 30


@pytest.mark.parametrize("decode", [generate, with_engine])
def test_golden_rollouts(golden_sdar, decode) -> None:
    """Batches of prompts of different lengths, end tokens, length limits (the reference counts steps from 1)."""
    model = load_model(golden_sdar)
    for case in golden_cases(golden_sdar, "rollout"):
        p, want = case["params"], case["expected"]
        params = SamplingParams(
            max_new_tokens=p["max_tokens"], block_size=p["block_length"], denoising_steps_per_block=p["denoising_steps"],
            remasking_strategy=p["remasking_strategy"], confidence_threshold=p["dynamic_threshold"], temperature=0.0,
            entropy_bound=p.get("eb_threshold", 0.5), stop_token_ids=(p["eos_id"],),
        )  # fmt: skip
        for i, trace in enumerate(decode(model, p["prompts"], params)):
            assert trace.response_ids == want["completion_token_ids"][i], case["name"]
            steps = [step + 1 for step in trace.step_map[: trace.num_response_tokens]]
            assert steps == want["first_unmask_steps"][i], case["name"]
            assert trace.num_forwards == want["n_denoise_forward"][i], case["name"]


def slow_generate(model, prompt: list[int], params: SamplingParams) -> Trace:
    """One token at a time in plain Python: low_confidence_static or _dynamic, no cache, no batch."""
    b = params.block_size or model.spec.block_size
    num_steps = params.denoising_steps_per_block or b
    stops = params.stop_token_ids if params.stop_token_ids is not None else model.spec.eos_token_ids
    ids, end = list(prompt), (len(prompt) + params.max_new_tokens + b - 1) // b * b
    step_map, logprobs, confidences, step = [], [], [], 0
    start = len(prompt) // b * b
    while start < end:
        known = len(ids) - start
        block: list[int | None] = [*ids[start:], *[None] * (b - known)]
        facts: dict[int, tuple[int, float, float]] = {}
        block_step = 0
        while None in block:
            tokens = [*ids[:start], *[model.spec.mask_token_id if t is None else t for t in block]]
            with torch.no_grad():
                logits = model.logits(torch.tensor([tokens]), block_size=b)[0, start:]
            drawn: dict[int, tuple[int, float, float]] = {}
            for i in (i for i, t in enumerate(block) if t is None):
                lp = draw_logprobs(
                    logits[i : i + 1], temperature=params.temperature, top_k=params.top_k, top_p=params.top_p,
                    excluded_token_id=model.spec.mask_token_id,
                )  # fmt: skip
                u = uniform(*(torch.tensor([k]) for k in (params.seed, start + i, step, 0)))
                token = int(draw(lp, u, params.temperature))
                drawn[i] = (token, float(lp[0, token]), float(logits[i].softmax(-1)[token]))
            quota = min(b // num_steps + (block_step < b % num_steps), len(drawn))
            passing = [i for i in drawn if drawn[i][2] > params.confidence_threshold]
            chosen = sorted(drawn, key=lambda i: (-round(drawn[i][2], 5), i))[: max(1, quota)]
            if params.remasking_strategy == "low_confidence_dynamic" and len(passing) >= quota:
                chosen = passing
            for i in chosen:
                block[i], facts[i] = drawn[i][0], (step, *drawn[i][1:])
            step, block_step = step + 1, block_step + 1
        ids = [*ids[:start], *[t for t in block if t is not None]]
        for i in range(known, b):
            step_map.append(facts[i][0])
            logprobs.append(facts[i][1])
            confidences.append(facts[i][2])
        if any(t in stops for t in ids[max(start, len(prompt)) :]):
            break
        start += b
    canvas = ids[len(prompt) :]
    counted = canvas[: params.max_new_tokens]
    stop = next((i for i, t in enumerate(counted) if t in stops), None)
    return Trace(
        prompt, canvas, step_map, logprobs, confidences, len(counted) if stop is None else stop + 1, b, step,
        "length" if stop is None else "stop", params.seed, params.model_dump(mode="json"),
    )  # fmt: skip


@pytest.mark.parametrize("strategy", ["low_confidence_static", "low_confidence_dynamic"])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.0, 0, 1.0), (0.8, 6, 0.9)])
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_generate_is_the_slow_sampler(model, strategy, temperature, top_k, top_p, block_size) -> None:
    base = SamplingParams(
        max_new_tokens=11, block_size=block_size, denoising_steps_per_block=min(3, block_size), remasking_strategy=strategy,
        confidence_threshold=0.2, temperature=temperature, top_k=top_k, top_p=top_p, seed=7,
    )  # fmt: skip
    prompts = random_prompts(range(2 * block_size + 2))
    for i, trace in enumerate(generate(model, prompts, base)):
        want = slow_generate(model, prompts[i], base.model_copy(update={"seed": 7 + i}))
        assert (trace.canvas_ids, trace.step_map) == (want.canvas_ids, want.step_map), i
        assert trace.num_response_tokens == want.num_response_tokens
        assert (trace.finish_reason, trace.num_forwards) == (want.finish_reason, want.num_forwards)
        assert trace.logprobs == pytest.approx(want.logprobs, abs=1e-5)
        assert trace.confidences == pytest.approx(want.confidences, abs=1e-5)


@grid(2, block_size=[1, 2, 4, 8], strategy=["low_confidence_static", "low_confidence_dynamic", "random", "entropy_bounded"])
def test_neighbours_change_nothing(model, strategy, block_size) -> None:
    base = SamplingParams(
        max_new_tokens=13, block_size=block_size, remasking_strategy=strategy, confidence_threshold=0.3, entropy_bound=2.0
    )
    prompts = random_prompts([*range(2 * block_size + 2), 1, 5])
    params = [base.model_copy(update={"seed": 100 + i}) for i in range(len(prompts))]
    together = generate(model, prompts, params)
    small_batches = generate(model, prompts, params, max_batch_size=3)
    for i, trace in enumerate(together):
        alone = generate(model, [prompts[i]], params[i])[0]
        for other in (alone, small_batches[i]):
            assert (other.canvas_ids, other.step_map) == (trace.canvas_ids, trace.step_map)
            assert other.logprobs == pytest.approx(trace.logprobs, abs=1e-5)


def test_mixed_parameters_in_one_call(model) -> None:
    prompts = random_prompts([3, 6, 9])
    params = [
        SamplingParams(max_new_tokens=5, temperature=0.0, block_size=2),
        SamplingParams(max_new_tokens=9, seed=3),
        SamplingParams(max_new_tokens=7, remasking_strategy="sequential"),
    ]
    for prompt, p, trace in zip(prompts, params, generate(model, prompts, params), strict=True):
        alone = generate(model, [prompt], p)[0]
        assert (trace.canvas_ids, trace.step_map, trace.settings) == (alone.canvas_ids, alone.step_map, alone.settings)
        assert trace.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_stop_tokens_in_the_prompt_do_not_stop(model) -> None:
    """Not in the prefilled blocks and not in the tail that heads the first denoised block."""
    base, checked = SamplingParams(max_new_tokens=20, block_size=4, temperature=0.0, stop_token_ids=()), 0
    for token in range(3, 40, 3):
        for prompt in ([token, 5, token], [token] * 6):
            free = generate(model, [prompt], base)[0]
            if token not in free.canvas_ids:
                trace = generate(model, [prompt], base.model_copy(update={"stop_token_ids": (token,)}))[0]
                assert (trace.canvas_ids, trace.finish_reason, trace.num_response_tokens) == (free.canvas_ids, "length", 20)
                checked += 1
    assert checked > 5


def test_policy_version_is_recorded(model) -> None:
    assert generate(model, [[5]], SamplingParams(max_new_tokens=2), policy_version=7)[0].policy_version == 7


def test_no_stop_tokens_runs_to_the_limit(model) -> None:
    trace = generate(model, [[5]], SamplingParams(max_new_tokens=10, block_size=4, stop_token_ids=()))[0]
    assert (trace.finish_reason, trace.num_response_tokens, len(trace.canvas_ids)) == ("length", 10, 11)


def test_mask_token_is_never_drawn() -> None:
    model = make_model()
    with torch.no_grad():
        model.norm.weight.zero_()  # hidden states 0: all tokens equally likely
    traces = generate(model, [[]] * 64, SamplingParams(max_new_tokens=32, stop_token_ids=()))
    assert not any(model.spec.mask_token_id in trace.canvas_ids for trace in traces)


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([[99]], SamplingParams(), "prompt 0: token id 99 is outside the vocabulary of 40"),
        ([3, 4], SamplingParams(), "prompt 0 is 3; a prompt is a list of token ids"),
        ([[3.7]], SamplingParams(), "prompt 0: token id 3.7 is outside the vocabulary of 40"),
        ([[3]], [], "0 sampling parameters for 1 prompts: give one, or one per prompt"),
        ([[3]], SamplingParams(remasking_strategy="x"), "unknown remasking_strategy 'x'"),
    ],
)
def test_bad_input_is_named(model, prompts, params, message) -> None:
    with pytest.raises(UnmaskError, match=message):
        generate(model, prompts, params)


def test_no_prompts_no_traces(model) -> None:
    assert generate(model, []) == []
