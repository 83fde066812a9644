"""The engine decodes what `generate` decodes: every strategy, block size, cache, batch, pool and page size."""

from __future__ import annotations

import dataclasses
import random

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import random_prompts
from tests.engine.plain import any_model, assert_nothing_left, assert_same, full_attention_model, variety
from tests.grid import grid
from unmask.diffusion.generate import generate
from unmask.diffusion.remasking import STRATEGIES
from unmask.engine import Engine, runner
from unmask.types import SamplingParams


@grid(5, block_size=[1, 3, 4, 8, 32], temperature=[0.0, 1.0], strategy=STRATEGIES)
def test_engine_is_generate(model, strategy, temperature, block_size) -> None:
    """Prompt lengths 0 to 2b + 1, stops and limits inside blocks."""
    params = SamplingParams(
        max_new_tokens=19, block_size=block_size, remasking_strategy=strategy, confidence_threshold=0.3, entropy_bound=2.0,
        temperature=temperature, seed=3, stop_token_ids=(1, 11, 12),
    )  # fmt: skip
    prompts = random_prompts(range(2 * block_size + 2))
    engine = Engine(model, num_pages=1000)
    assert_same(engine.generate(prompts, params), generate(model, prompts, params))
    assert_nothing_left(engine)


@grid(2, family=["dream", "llada"], strategy=STRATEGIES, temperature=[0.0, 1.0])
def test_engine_is_generate_with_full_attention(family, strategy, temperature) -> None:
    """Windows that do not divide the canvas, prompts from nothing on, different lengths in one batch."""
    model, g = full_attention_model(family), random.Random(5)
    prompts = random_prompts(range(12))
    params = [
        SamplingParams(
            max_new_tokens=g.randint(1, 30),
            block_size=g.choice([1, 4, 5, 32]),
            remasking_strategy=strategy,
            seed=i,
            confidence_threshold=0.3,
            entropy_bound=2.0,
            temperature=temperature,
            stop_token_ids=(1, 11, 12, 13, 14),
        )
        for i in range(12)
    ]
    want = generate(model, prompts, params)
    assert_same(Engine(model, num_pages=20).generate(prompts, params), want)
    assert temperature == 0 or {trace.finish_reason for trace in want} == {"stop", "length"}


@pytest.mark.parametrize("kind", ["sdar", "dream", "llada"])
def test_neighbours_with_other_settings_change_nothing(kind) -> None:
    """32 requests that agree in nothing, together, in threes, and each alone with the readable sampler."""
    model = any_model(kind)
    params = variety(1, 32, full_attention=kind != "sdar")
    prompts = random_prompts([i % 19 for i in range(32)])
    want = [generate(model, [prompt], [p])[0] for prompt, p in zip(prompts, params, strict=True)]
    assert_same(Engine(model).generate(prompts, params), want)
    assert_same(Engine(model, max_sequences=3, max_tokens_per_forward=24).generate(prompts, params), want)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "limits",
    [
        {"page_size": 1},
        {"page_size": 3},
        {"page_size": 64},
        {"use_prefix_cache": False},
        pytest.param({"attention_backend": "flex"}, marks=pytest.mark.slow),
    ],
)
def test_pages_and_backends_change_nothing(model, limits) -> None:
    is_slow = "attention_backend" in limits  # uncompiled, a forward takes a quarter of a second
    num = 12 if is_slow else 40
    params, prompts = variety(2, num), random_prompts([i % 23 for i in range(num)])
    want = generate(model, prompts, params)
    engine = Engine(model, num_pages=100 if is_slow else 400, **limits)
    assert_same(engine.generate(prompts, params), want)
    assert_same(engine.generate(prompts, params), want)  # now the prompts are known
    assert_nothing_left(engine)


@pytest.mark.parametrize("max_tokens", [1, 8, 17, 64])
def test_long_prompts_in_chunks_beside_decoding(model, max_tokens) -> None:
    """A forward has at most max_tokens tokens, unless a single block needs more."""
    prompts = random_prompts([70, 3, 55, 9, 120, 0])
    params = SamplingParams(max_new_tokens=12, block_size=4, confidence_threshold=0.3)
    engine, most = Engine(model, max_tokens_per_forward=max_tokens), 0
    for i, prompt in enumerate(prompts):
        engine.add_request(prompt, params.model_copy(update={"seed": i}))
    traces = {}
    while engine.has_work:
        before = engine.stats.num_tokens
        traces |= {o.id: o.trace for o in engine.step() if o.trace}
        most = max(most, engine.stats.num_tokens - before)
    assert_same([traces[i] for i in range(6)], generate(model, prompts, params))
    assert most <= max(8, max_tokens)
    assert engine.stats.num_prefill_forwards > 0


@grid(2, cache_horizon=[("prefix", None), ("dual", None), ("prefix", 0), ("prefix", 3)], family=["dream", "llada"])
def test_approximate_caches(family, cache_horizon) -> None:
    """Alone, among others, with hardly any pages: the same. With one step per block they are exact; else they are not."""
    model, prompts, (cache, horizon) = full_attention_model(family), random_prompts([0, 1, 5, 9, 16, 3, 3, 3]), cache_horizon
    exact = SamplingParams(max_new_tokens=21, block_size=6, temperature=1.0, stop_token_ids=(11,))
    params = exact.model_copy(update={"cache": cache, "further_horizon": horizon})
    together = Engine(model).generate(prompts, params)
    for i, prompt in enumerate(prompts):
        alone = Engine(model).generate([prompt], params.model_copy(update={"seed": i}))
        assert_same(alone, [together[i]])
    engine = Engine(model, num_pages=5, page_size=8)
    assert_same(engine.generate(prompts, params), together)
    assert engine.stats.peak_pages <= 5
    assert [t.canvas_ids for t in together] != [t.canvas_ids for t in generate(model, prompts, exact)]
    one_step = {"denoising_steps_per_block": 1, "remasking_strategy": "low_confidence_static"}
    got = Engine(model).generate(prompts, params.model_copy(update=one_step))
    for trace, want in zip(got, generate(model, prompts, exact.model_copy(update=one_step)), strict=True):
        assert (trace.canvas_ids, trace.step_map) == (want.canvas_ids, want.step_map)


def test_a_group_shares_its_prefill(model) -> None:
    """The tokens prefilled do not depend on the size of the group, also where prompts end inside a page and a block."""
    params = SamplingParams(max_new_tokens=8, block_size=4)
    for length in (16, 37, 64, 3):
        work = []
        for size in (1, 2, 16):
            engine, prompt = Engine(model), random_prompts([length])[0]
            traces = engine.generate([prompt] * size, params)
            assert_same(traces, generate(model, [prompt] * size, params))
            work.append(engine.stats.num_prefill_tokens)
        assert work == [length // 4 * 4] * 3


def test_equal_beginnings_are_found(model) -> None:
    """Between groups that begin alike, in one call; and of a conversation that goes on, later."""
    engine, system = Engine(model), random_prompts([40])[0]
    params = SamplingParams(max_new_tokens=8, block_size=4, stop_token_ids=())
    prompts = [[*system, *tail] for tail in random_prompts([8, 12, 8], seed=1)]
    first = engine.generate(prompts, params)
    assert engine.stats.num_prefill_tokens == 40 + 8 + 12 + 8
    turn = [*first[0].prompt_ids, *first[0].canvas_ids, *random_prompts([6], seed=2)[0]]
    assert_same(engine.generate([turn], params), generate(model, [turn], params))
    # The last block of a finished sequence is never committed: 48 + 4 tokens are known, 4 + 4 are new.
    assert engine.stats.num_prefill_tokens == 68 + 8


def test_shifted_logits_with_blocks() -> None:
    """No family here is both; one that is (Fast-dLLM v2) reads a window's first prediction at the token before it."""
    model = full_attention_model("dream")
    model.spec = dataclasses.replace(model.spec, attention="block_causal", block_size=4)
    params = SamplingParams(max_new_tokens=17, confidence_threshold=0.3, stop_token_ids=(11,))
    prompts = [*random_prompts(range(11)), *random_prompts([20]) * 4]
    want = generate(model, prompts, params)
    engine = Engine(model, num_pages=60, page_size=4)
    assert_same(engine.generate(prompts, params), want)
    assert_same(engine.generate(prompts, params), want)  # now all but the last block of each prompt is known
    assert engine.stats.num_shared_tokens > 50
    engine = Engine(model, num_pages=12, page_size=4, max_tokens_per_forward=9)
    assert_same(engine.generate(prompts, params), want)
    assert engine.stats.num_preemptions > 0


def test_blocks_of_another_size_are_not_shared(model) -> None:
    engine, prompts = Engine(model), random_prompts([24])
    for b in (4, 8, 3):
        params = SamplingParams(max_new_tokens=9, block_size=b)
        assert_same(engine.generate(prompts, params), generate(model, prompts, params))
    assert engine.stats.num_shared_tokens == 0


def test_a_block_costs_its_steps(model) -> None:
    """K steps are K forwards: prefill and commits cost none of their own, the last block is not committed."""
    params = SamplingParams(max_new_tokens=32, block_size=4, stop_token_ids=())
    engine = Engine(model)
    traces = engine.generate(random_prompts([9] * 8), params)
    assert engine.stats.num_prefill_forwards == 0
    assert engine.stats.num_denoising_forwards == sum(t.num_forwards for t in traces)
    assert engine.stats.num_forwards == max(t.num_forwards for t in traces)
    assert engine.stats.num_tokens == 8 * (8 + 8 * 4) + 4 * engine.stats.num_denoising_forwards  # prompt, 8 of 9 commits, steps


@pytest.mark.parametrize("family", ["sdar", "dream"])
def test_operations_are_counted(model, family, monkeypatch) -> None:
    """Pairs against the rule, one by one; products against PyTorch's count, which has nothing of a fused attention."""
    model = model if family == "sdar" else full_attention_model(family)
    engine, build, num_pairs = Engine(model, page_size=4), runner.build_batch, 0

    def follow(rows, *more, **options):
        nonlocal num_pairs
        for row in rows:
            s = row.request.sequence
            block = [i // s.block_size if s.is_block_causal else 0 for i in range(row.key_end)]
            num_pairs += sum(k <= block[q] for q in range(row.query_start, row.query_end) for k in block)
        return build(rows, *more, **options)

    monkeypatch.setattr(runner, "build_batch", follow)
    with FlopCounterMode(display=False) as counter:
        engine.generate(random_prompts([0, 3, 9, 14]), SamplingParams(max_new_tokens=10, block_size=4))
    products = sum(n for kind, n in counter.get_flop_counts()["Global"].items() if "mm" in str(kind))
    spec = model.spec
    assert engine.runner.num_flops == products + 4 * spec.num_layers * spec.num_heads * spec.head_dim * num_pairs
