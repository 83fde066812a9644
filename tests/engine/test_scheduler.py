"""Admission, preemption, sharing: random workloads on pools that are far too small."""

from __future__ import annotations

import random

import pytest

from tests.conftest import random_prompts
from tests.engine.plain import any_model, assert_nothing_left, assert_same, run
from tests.engine.symbolic import advance, symbolic_engine
from unmask.diffusion.generate import generate
from unmask.diffusion.sequence import DecodingSequence
from unmask.engine import Engine
from unmask.types import SamplingParams


def random_workload(g: random.Random, spec) -> list[tuple[list[int], SamplingParams]]:
    """Prompts that often begin alike, or are the same; a few block sizes."""
    stems = random_prompts([g.randint(0, 40) for _ in range(2)], seed=g.randrange(1000))
    sizes = g.sample([1, 2, 3, 4, 8], 2)
    work = []
    for _ in range(g.randint(1, 9)):
        stem = g.choice(stems)
        prompt = [
            *stem[: g.choice([len(stem), g.randint(0, len(stem))])],
            *random_prompts([g.choice([0, 0, 1, 5])], g.random())[0],
        ]
        params = SamplingParams(
            max_new_tokens=g.randint(1, 20), block_size=g.choice(sizes), seed=g.randrange(10**6), stop_token_ids=(5, 6),
            cache=g.choice(["auto"] * 7 + ["none"]),
        )  # fmt: skip
        work += [(prompt, params.model_copy(update={"seed": params.seed + i})) for i in range(g.choice([1, 1, 3]))]
    return work


def alone(prompt: list[int], params: SamplingParams, spec) -> DecodingSequence:
    sequence = DecodingSequence(prompt, params, spec)
    while not advance(sequence):
        pass
    return sequence


def fuzz(model, seed: int) -> Engine:
    """One workload, arriving bit by bit, some of it aborted: everything ends, with what it comes to alone, in time."""
    g = random.Random(seed)
    work = random_workload(g, model.spec)
    page_size = g.choice([1, 2, 4, 5, 16])
    pages = [-(-DecodingSequence(*item, model.spec).end // page_size) for item in work]
    limits = {
        "page_size": page_size, "num_pages": max(max(pages), sum(pages) // g.choice([1, 3, 10, 100])),
        "max_sequences": g.choice([1, 8, 64]), "max_tokens_per_forward": g.choice([1, 30, 100, 1000]),
        "use_prefix_cache": g.random() < 0.9,
    }  # fmt: skip
    engine, want, traces, aborted = symbolic_engine(model, **limits), {}, {}, set()
    bound = 0
    for prompt, params in work:
        lonely = symbolic_engine(model, **{**limits, "num_pages": 1000})
        lonely.add_request(prompt, params)
        while lonely.has_work:
            lonely.step()
        bound += lonely.stats.num_forwards
    waiting = list(work)
    num_steps = 0
    while waiting or engine.has_work:
        for _ in range(g.choice([0, 1, 5])):
            if waiting:
                prompt, params = waiting.pop()
                want[engine.add_request(prompt, params)] = (prompt, params)
        if g.random() < 0.02 and engine._requests:
            aborted.add(request_id := g.choice(list(engine._requests)))
            engine.abort(request_id)
        if engine.has_work:
            num_steps += 1
            traces |= {output.id: output.trace for output in engine.step() if output.trace}
        assert num_steps <= bound, "more steps than one after the other"
    assert traces.keys() | aborted == want.keys()
    for request_id, trace in traces.items():
        assert trace == alone(*want[request_id], model.spec).trace()
    assert_nothing_left(engine)
    return engine


def test_random_workloads_on_tiny_pools(model) -> None:
    num_preemptions = num_shared = 0
    for seed in range(400):
        stats = fuzz(model, seed).stats
        num_preemptions += stats.num_preemptions
        num_shared += stats.num_shared_tokens
    assert num_preemptions > 80
    assert num_shared > 8_000


@pytest.mark.slow
def test_many_more_random_workloads(model) -> None:
    for seed in range(400, 20000):
        fuzz(model, seed)


@pytest.mark.parametrize("kind", ["sdar", "dream"])
def test_a_tenth_of_the_pages(kind) -> None:
    """With real keys and values: the same results, and no more forwards than one sequence after the other would take."""
    model = any_model(kind)
    prompts = random_prompts([i % 17 for i in range(20)])
    params = SamplingParams(max_new_tokens=30, block_size=4, confidence_threshold=0.3, stop_token_ids=(11,))
    if kind == "dream":
        params = params.model_copy(update={"cache": "dual"})
    ample = Engine(model, page_size=4)
    want = ample.generate(prompts, params)
    need = sum(-(-(len(p) + 30 + 3) // 4) for p in prompts)
    engine = Engine(model, page_size=4, num_pages=need // 10)
    for i, prompt in enumerate(prompts):
        engine.add_request(prompt, params.model_copy(update={"seed": i}))
    traces = run(engine, max_steps=sum(t.num_forwards for t in want))
    assert_same([traces[i] for i in range(20)], want)
    assert engine.stats.peak_pages <= need // 10
    assert kind == "dream" or engine.stats.num_preemptions > 0
    assert_nothing_left(engine)


def test_a_request_that_fills_the_pool_alone_is_decoded(model) -> None:
    params = SamplingParams(max_new_tokens=14, block_size=4, stop_token_ids=())
    engine = Engine(model, page_size=4, num_pages=5)
    prompts = random_prompts([6, 6, 2])
    assert_same(engine.generate(prompts, params), generate(model, prompts, params))
    assert engine.stats.peak_pages == 5


def test_earlier_requests_go_first(model) -> None:
    """A late one never ends before an equal early one, however short of pages."""
    engine = Engine(model, page_size=4, num_pages=8, use_prefix_cache=False)
    params = SamplingParams(max_new_tokens=12, block_size=4, remasking_strategy="sequential", stop_token_ids=())
    ids = [engine.add_request(prompt, params) for prompt in random_prompts([4] * 6)]
    order = []
    while engine.has_work:
        order += [output.id for output in engine.step() if output.trace]
    assert order == ids
