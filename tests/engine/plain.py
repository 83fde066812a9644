"""What the engine's tests share: models of every kind, comparison of traces, running an engine by hand."""

from __future__ import annotations

import random

import pytest

from tests.conftest import SPECIAL, make_model
from unmask.diffusion.remasking import STRATEGIES
from unmask.engine import Engine
from unmask.models import Decoder
from unmask.models.checkpoint import new_model
from unmask.types import SamplingParams, Trace

TOLERANCE = 1e-5  # float32 sums in another order


def full_attention_model(family: str, seed: int = 0) -> Decoder:
    """A tiny random Dream (shifted logits) or LLaDA, with opinions."""
    special = {**SPECIAL, "eos_token_id": 1}
    width = {"dream": {"hidden_size": 48, "intermediate_size": 96}, "llada": {"d_model": 48, "mlp_hidden_size": 96}}[family]
    std = {"dream": "initializer_range", "llada": "init_std"}[family]
    return new_model(f"{family}/tiny", seed, **special, **width, **{std: 0.15})


def any_model(kind: str) -> Decoder:
    return make_model() if kind == "sdar" else full_attention_model(kind)


def assert_same(got: list[Trace], want: list[Trace], tolerance: float = TOLERANCE) -> None:
    """Tokens, steps and how they ended exactly; probabilities to float tolerance."""
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a.prompt_ids, a.canvas_ids, a.step_map) == (b.prompt_ids, b.canvas_ids, b.step_map), i
        assert (a.num_response_tokens, a.finish_reason, a.num_forwards) == (
            b.num_response_tokens, b.finish_reason, b.num_forwards,
        ), i  # fmt: skip
        assert (a.block_size, a.seed, a.settings) == (b.block_size, b.seed, b.settings), i
        assert a.logprobs == pytest.approx(b.logprobs, abs=tolerance), i
        assert a.confidences == pytest.approx(b.confidences, abs=tolerance), i


def run(engine: Engine, max_steps: int) -> dict:
    """Steps until nothing is left; the traces by id. Fails if it takes more steps than it may."""
    traces = {}
    for _ in range(max_steps):
        if not engine.has_work:
            break
        for output in engine.step():
            if output.trace is not None:
                traces[output.id] = output.trace
    assert not engine.has_work, f"not finished after {max_steps} steps"
    return traces


def assert_nothing_left(engine: Engine) -> None:
    """All pages can be had again, and every slot."""
    scheduler = engine.scheduler
    assert scheduler.pool.num_available == scheduler.pool.num_pages
    assert not scheduler.running
    assert not scheduler.waiting
    assert len(scheduler._slots) == scheduler.max_sequences


def variety(seed: int, num: int, *, full_attention: bool = False) -> list[SamplingParams]:
    """Settings of all kinds side by side."""
    g = random.Random(seed)
    return [
        SamplingParams(
            max_new_tokens=g.randint(1, 24),
            block_size=g.choice([1, 2, 3, 4, 8, 16]),
            denoising_steps_per_block=g.choice([None, 1, 2, 3]),
            remasking_strategy=g.choice(list(STRATEGIES)),
            score=g.choice(["confidence", "margin", "neg_entropy"]),
            confidence_threshold=g.choice([0.1, 0.3, 0.9]),
            entropy_bound=g.choice([0.5, 3.0]),
            alg_temp=g.choice([0.0, 0.0, 0.5]),
            temperature=g.choice([0.0, 0.7, 1.0, 1.3]),
            top_k=g.choice([0, 0, 5]),
            top_p=g.choice([1.0, 1.0, 0.8]),
            quota_schedule=g.choice(["even", "even", "dream"]),
            pad_penalty=g.choice([1.0, 2.0]),
            stop_token_ids=g.choice([None, (), (9, 10, 11, 12, 13)]),
            ignore_eos=g.random() < 0.2,
            unmask_block_start=full_attention and g.random() < 0.3,
            seed=g.randrange(2**62),
        )
        for _ in range(num)
    ]
