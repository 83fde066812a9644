"""Published decodes of Dream, LLaDA and MMaDA, by the readable sampler and by the engine, with and without caches.

docs/engine.md has the table of settings that reproduce each published sampler, and what is left out.
"""

from __future__ import annotations

import dataclasses

import pytest

from tests.conftest import GOLDEN
from tests.golden import golden_cases
from unmask.diffusion.generate import generate
from unmask.engine import Engine
from unmask.models.checkpoint import load_model
from unmask.types import SamplingParams

# Left out: entropy with the wrong sign (least certain first); top-p before top-k with confidences after both; guidance.
NOT_OURS = {
    "llada_a": {"nocache_static_target_neg_entropy"},
    "mmada_a": {"nocache_static_target_neg_entropy", "mmu_generate_cfg1.5"},
    "dream_a": {"nocache_dynamic0.7_topk5_topp0.9"},
}
# A stop token ends a sequence here at once; there the rest of its block is decoded, and the rest of the canvas filled.
STOPPING = {"all_pad_block_stops": 97, "mmu_generate_fast_eot": 46}
SCORES = {"confidence": "confidence", "margin_confidence": "margin", "neg_entropy": "neg_entropy"}


def settings(case: dict, family: str) -> SamplingParams:
    p, kind = case["params"], case["kind"]
    stops = (STOPPING[case["name"]],) if case["name"] in STOPPING else ()
    values = {"temperature": 0.0, "stop_token_ids": stops, "block_size": p["block_length"], "cache": "none"}
    values["max_new_tokens"] = p.get("gen_length") or p["max_new_tokens"]
    threshold = p.get("unmask_threshold")
    if kind == "dream_block":
        values["cache"] = "dual" if p["dual_cache"] else "prefix"
        threshold = p["threshold"] if p["alg"] == "confidence_threshold" else None
        values["score"] = "confidence" if p["alg"] == "confidence_threshold" else "neg_entropy"
    elif kind != "mmu_generate":
        values["score"] = SCORES[p["target"]]
        if p["use_cache"] or (family != "dream_a" and p["further_horizon"] is not None):
            values |= {"cache": "prefix", "further_horizon": p["further_horizon"]}
    if family == "dream_a":
        values |= {"unmask_block_start": True, "quota_schedule": "dream", "pad_penalty": p.get("pad_target_penalty", 1.0)}
    if threshold is None:
        values |= {"remasking_strategy": "low_confidence_static", "denoising_steps": p["steps"]}
    else:
        values |= {"remasking_strategy": "low_confidence_dynamic", "confidence_threshold": threshold}
    return SamplingParams(**values)


def order(steps: list[int]) -> list[int]:
    """Steps without those that unmasked nothing (a batch that waits for its slowest row, a forward too many)."""
    number = {step: i for i, step in enumerate(sorted({s for s in steps if s >= 0}))}
    return [number.get(step, -1) for step in steps]


@pytest.mark.parametrize("family", ["dream_a", "llada_a", "mmada_a"])
@pytest.mark.parametrize("sampler", ["generate", "engine"])
def test_published_decodes(family, sampler) -> None:
    if not (GOLDEN / family).exists():
        pytest.skip(f"golden fixtures are not at {GOLDEN}")
    model, checked, exact = load_model(GOLDEN / family), 0, 0
    own_pad = model.spec
    for case in golden_cases(GOLDEN / family, "generate"):
        name, p, params = case["name"], case["params"], settings(case, family)
        if name in NOT_OURS[family] or (sampler == "generate" and params.cache != "none"):
            continue
        pad = p.get("pad_id")
        model.spec = own_pad if pad is None else dataclasses.replace(own_pad, pad_token_id=pad)
        prompts = case["inputs"]["prompt_ids"].tolist()
        # Dream's padding is invisible; LLaDA's and MMaDA's is seen, and here given as what it is: tokens of the prompt.
        shown = [[t for t in prompt if not (p.get("mask_pads") and t == pad)] for prompt in prompts]
        traces = (Engine(model).generate if sampler == "engine" else lambda *a: generate(model, *a))(shown, params)
        outputs, num = case["outputs"], params.max_new_tokens
        steps = outputs["step_map" if "step_map" in outputs else "step"][:, -num:].tolist()
        for trace, ids, step_map in zip(traces, outputs["output_ids"][:, -num:].tolist(), steps, strict=True):
            if params.stop_token_ids:
                end = ids.index(params.stop_token_ids[0]) + 1
                assert (trace.finish_reason, trace.response_ids) == ("stop", ids[:end]), name
                assert order(trace.step_map[:end]) == order(step_map[:end]), name
            else:
                assert trace.canvas_ids == ids, name
                assert order(trace.step_map) == order(step_map), name
                exact += trace.step_map == step_map
        checked += 1
    model.spec = own_pad
    assert checked == {
        ("dream_a", "engine"): 33, ("dream_a", "generate"): 11, ("llada_a", "engine"): 24, ("llada_a", "generate"): 8,
        ("mmada_a", "engine"): 26, ("mmada_a", "generate"): 10,
    }[family, sampler]  # fmt: skip
    assert exact >= checked  # step by step equal, forwards that unmask nothing included
