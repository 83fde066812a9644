"""Requests that join, stream, are aborted, fail or are malformed: nothing is lost, nobody else is touched."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from tests.conftest import make_model, random_prompts
from tests.engine.plain import any_model, assert_nothing_left, assert_same, full_attention_model, run, variety
from unmask.diffusion.generate import generate
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.models import Decoder
from unmask.types import SamplingParams, Trace


def test_requests_come_and_go_at_every_step(model) -> None:
    prompts, params = random_prompts([i % 13 for i in range(30)]), variety(4, 30)
    want = generate(model, prompts, params)
    engine, traces, g = Engine(model, max_sequences=4, num_pages=60, page_size=4), {}, random.Random(0)
    waiting = list(range(30))
    while waiting or engine.has_work:
        for _ in range(g.randint(0, 2)):
            if waiting:
                i = waiting.pop()
                assert engine.add_request(prompts[i], params[i], request_id=f"r{i}") == f"r{i}"
        for output in engine.step():
            if output.trace:
                traces[output.id] = output.trace
    assert_same([traces[f"r{i}"] for i in range(30)], want)


def test_stream_reports_every_token_once_and_in_order(model) -> None:
    prompts, params = random_prompts([5, 9, 2]), SamplingParams(max_new_tokens=22, block_size=4, confidence_threshold=0.3)
    want, got, ends = generate(model, prompts, params), {0: [], 1: [], 2: []}, {}
    engine = Engine(model)
    other = engine.add_request([7, 8], SamplingParams(max_new_tokens=3, seed=5))
    for index, news in engine.stream(prompts, params):
        assert index not in ends
        got[index] += news.new_ids
        assert news.new_ids or news.trace
        if news.trace:
            ends[index] = news.trace
    assert_same([ends[i] for i in range(3)], want)
    assert [got[i] for i in range(3)] == [t.response_ids for t in want]
    assert set(run(engine, 100)) == {other}  # news of others are kept for whoever steps next


def replay_steps(told: list, num_canvas: int) -> tuple[list[int], list[int], list[float], list[float], bool]:
    """The canvas as somebody has it who only hears of steps: tokens, step map, log-probabilities, confidences; and whether a
    window was begun anew."""
    canvas = {}
    last, is_anew = -1, False
    for news in told:
        if news.step <= last:
            is_anew = True
            canvas = {position: entry for position, entry in canvas.items() if entry[1] < news.step}
        last = news.step
        for i, position in enumerate(news.positions):
            assert position not in canvas
            canvas[position] = (news.ids[i], news.step, news.logprobs[i], news.confidences[i])
    ids, steps, logprobs, confidences = zip(*(canvas.get(i, (None, -1, 0.0, 0.0)) for i in range(num_canvas)), strict=True)
    return list(ids), list(steps), list(logprobs), list(confidences), is_anew


@pytest.mark.parametrize("family", ["sdar", "dream", "dual"])
def test_steps_that_are_reported_add_up_to_the_trace(family, model) -> None:
    """Also where windows are begun anew, since what their pages held is lost (as after a forward that failed)."""
    model = model if family == "sdar" else full_attention_model("dream" if family == "dream" else "llada")
    engine = Engine(model, num_pages=9, page_size=8, max_sequences=4)
    params = SamplingParams(max_new_tokens=22, block_size=8, confidence_threshold=0.2, stop_token_ids=())
    if family == "dual":
        params = params.model_copy(update={"cache": "dual"})
    prompts = random_prompts([7, 3, 5])
    told = {
        engine.add_request(p, params.model_copy(update={"seed": i}), reports_steps=i < 2): [] for i, p in enumerate(prompts)
    }
    traces, num_anew, is_forgotten = {}, 0, False
    while engine.has_work:
        if family == "dual" and 0 in engine._requests and engine._requests[0].sequence.block_step == 2 and not is_forgotten:
            engine._forget()
            is_forgotten = True
        for news in engine.step():
            if news.unmasked is not None:
                told[news.id].append(news.unmasked)
            if news.trace is not None:
                traces[news.id] = news.trace
    for request_id in (0, 1):
        trace = traces[request_id]
        ids, steps, logprobs, confidences, is_anew = replay_steps(told[request_id], len(trace.canvas_ids))
        num_anew += is_anew
        assert steps == trace.step_map
        assert (logprobs, confidences) == (trace.logprobs, trace.confidences)
        assert [i for i, s in zip(ids, steps, strict=True) if s >= 0] == [
            i for i, s in zip(trace.canvas_ids, trace.step_map, strict=True) if s >= 0
        ]
    assert told[2] == []  # it has not asked
    assert bool(num_anew) == (family == "dual")


def test_stepping_with_those_begun_makes_ready_for_new_weights(model) -> None:
    params = SamplingParams(max_new_tokens=12, block_size=4, stop_token_ids=())
    prompts = random_prompts([5, 6, 7])
    want = generate(model, prompts, params)
    engine = Engine(model, max_sequences=2)
    ids = [engine.add_request(p, params.model_copy(update={"seed": i})) for i, p in enumerate(prompts)]
    engine.step()
    assert engine.has_begun
    traces = {}
    while engine.has_begun:
        traces |= {news.id: news.trace for news in engine.step(only_begun=True) if news.trace}
    assert sorted(traces) == ids[:2]
    assert engine.step(only_begun=True) == []
    engine.update_weights(model.state_dict())
    traces |= run(engine, 100)
    assert_same([traces[i] for i in ids], want)
    assert [traces[i].policy_version for i in ids] == [0, 0, 1]


def test_full_attention_streams_what_has_no_mask_before_it() -> None:
    model = full_attention_model("llada")
    params = SamplingParams(max_new_tokens=20, block_size=8, stop_token_ids=())
    got = []
    for _, news in Engine(model).stream([[5, 6, 7]], params):
        got += news.new_ids
    assert got == generate(model, [[5, 6, 7]], params)[0].response_ids


def test_closing_a_stream_takes_its_requests_out(model) -> None:
    engine = Engine(model, num_pages=40)
    stream = engine.stream(random_prompts([5, 9]), SamplingParams(max_new_tokens=30, stop_token_ids=()))
    next(stream)
    stream.close()
    assert not engine.has_work
    assert_nothing_left(engine)


def test_abort_returns_what_there_is(model) -> None:
    engine, params = Engine(model, num_pages=40), SamplingParams(max_new_tokens=30, block_size=4, stop_token_ids=())
    stays, goes = (engine.add_request(prompt, params) for prompt in random_prompts([5, 6]))
    waits = engine.add_request([3], params)
    for _ in range(7):
        engine.step()
    trace = engine.abort(goes)
    want = generate(model, random_prompts([5, 6]), [params, params])[1]
    done = trace.num_response_tokens
    assert trace.finish_reason == "abort"
    assert 0 < done < 30
    assert (trace.response_ids, trace.step_map[:done]) == (want.canvas_ids[:done], want.step_map[:done])
    assert len(trace.prompt_ids + trace.canvas_ids) % 4 == 0
    with pytest.raises(UnmaskError, match=f"request {goes} is not being decoded"):
        engine.abort(goes)
    engine.abort(waits)
    assert_same([run(engine, 100)[stays]], generate(model, random_prompts([5]), [params]))
    assert_nothing_left(engine)


def interrupt(at: int, calls: list):
    def head(hidden):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return Decoder.head(head.model, hidden)

    return head


@pytest.mark.parametrize("kind", ["sdar", "dream"])
@pytest.mark.parametrize("at", [1, 2, 3, 7])
def test_an_interrupted_forward_changes_nothing(kind, at, monkeypatch) -> None:
    """Also where the plan had pages to copy, and in the middle of a window with kept keys and values."""
    model = any_model(kind)
    params = SamplingParams(max_new_tokens=14, block_size=6, stop_token_ids=(), cache="auto" if kind == "sdar" else "dual")
    prompts = random_prompts([21, 21, 9])
    prompts[1] = prompts[0]
    want = Engine(model).generate(prompts, params)
    engine, calls = Engine(model, num_pages=40), []
    for i, prompt in enumerate(prompts):
        engine.add_request(prompt, params.model_copy(update={"seed": i}))
    head = interrupt(at, calls)
    head.model = model
    monkeypatch.setattr(model, "head", head)
    traces = {}
    while engine.has_work:
        try:
            traces |= {o.id: o.trace for o in engine.step() if o.trace}
        except KeyboardInterrupt:
            assert len(calls) == at
    assert_same([traces[i] for i in range(3)], want)
    assert_nothing_left(engine)


def test_an_interrupted_generate_takes_its_requests_out(model, monkeypatch) -> None:
    engine = Engine(model, num_pages=40)
    prompts, params = random_prompts([5, 9]), SamplingParams(max_new_tokens=9)
    head = interrupt(3, [])
    head.model = model
    with monkeypatch.context() as patched:
        patched.setattr(model, "head", head)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(prompts, params)
    assert_nothing_left(engine)
    assert_same(engine.generate(prompts, params), generate(model, prompts, params))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_are_named_and_leave_nothing_behind(temperature) -> None:
    model, params = make_model(), SamplingParams(max_new_tokens=9, temperature=temperature)
    engine, prompts = Engine(model, num_pages=20), random_prompts([20, 3])
    good = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight[3, 3] = torch.nan
    engine.update_weights()
    for decode in (engine.generate, lambda *a: generate(model, *a)):
        with pytest.raises(UnmaskError, match="not finite"):
            decode(prompts, params)
    engine.update_weights(good)
    assert_same(engine.generate(prompts, params), generate(make_model(), prompts, params))
    assert_nothing_left(engine)


def test_an_error_of_decode_concerns_its_request_only(model) -> None:
    """The step is undone for the one request; others have had it. Without the request, all goes on."""

    def decode(ids):
        if len(ids) > 6:
            raise RuntimeError("no such token")
        return ""

    params = SamplingParams(max_new_tokens=20, block_size=4, stop_token_ids=())
    prompts = random_prompts([3, 5, 7])
    want = generate(model, prompts, params)
    engine, traces, num_errors = Engine(model, decode=decode), {}, 0
    for i, prompt in enumerate(prompts):
        stops = ("x",) if i == 1 else ()
        engine.add_request(prompt, params.model_copy(update={"seed": i, "stop_strings": stops}))
    while engine.has_work:
        try:
            traces |= {o.id: o.trace for o in engine.step() if o.trace}
        except RuntimeError:
            num_errors += 1
            if num_errors == 3:
                broken = engine.abort(1)
    done = broken.num_response_tokens
    assert broken.response_ids == want[1].canvas_ids[:done]
    assert_same([traces[0], traces[2]], [want[0], want[2]])


def test_streams_may_be_mixed_with_everything(model) -> None:
    params = SamplingParams(max_new_tokens=12, block_size=4, stop_token_ids=())
    engine = Engine(model)
    prompts = random_prompts([3, 5, 7, 9])
    want = generate(model, prompts, params)
    first, second = engine.stream(prompts[:2], params), engine.stream(prompts[2:], params.model_copy(update={"seed": 2}))
    own = engine.add_request(prompts[0], params)
    traces = {}
    for _ in range(100):
        for number, stream in enumerate((first, second)):
            for index, news in stream:
                if news.trace:
                    traces[2 * number + index] = news.trace
                break
    assert_same([traces[i] for i in range(4)], want)
    left = run(engine, 100)
    assert set(left) == {own}
    assert_same([left[own]], [want[0]])
    for _, news in engine.stream(prompts[:1], params):  # aborted while it is streamed
        if news.id in engine._requests:
            engine.abort(news.id)
    for _ in engine.stream(prompts[:1], params):  # its news are taken by somebody else
        engine.step()
    assert engine.generate(prompts[:1], params)[0].canvas_ids == want[0].canvas_ids


def test_news_of_finished_requests_outlive_a_closed_stream(model) -> None:
    params = SamplingParams(max_new_tokens=4, block_size=4, stop_token_ids=())
    engine = Engine(model)
    own = engine.add_request([5, 6], params)
    stream = engine.stream([[7]], params.model_copy(update={"max_new_tokens": 40}))
    while own in engine._requests:
        next(stream)
    stream.close()
    assert set(run(engine, 10)) == {own}


def test_numbers_given_as_ids_are_not_taken_twice(model) -> None:
    engine = Engine(model)
    engine.add_request([3], request_id=1)
    assert len(engine.generate([[4], [5], [6]], SamplingParams(max_new_tokens=3))) == 3


def test_a_long_prompt_lets_others_pass(model) -> None:
    engine = Engine(model, max_tokens_per_forward=64)
    params = SamplingParams(max_new_tokens=8, block_size=4, stop_token_ids=())
    long = engine.add_request(random_prompts([1000])[0], params)
    short = [engine.add_request(prompt, params) for prompt in random_prompts([9] * 8, seed=1)]
    ended = []
    while engine.has_work:
        ended += [output.id for output in engine.step() if output.trace]
        if set(short) <= set(ended):
            break
    assert long not in ended
    assert engine.stats.num_forwards < 15  # with the long one first and alone it would take 16 to begin
    assert_same([run(engine, 100)[long]], generate(model, random_prompts([1000]), params))
    assert engine.stats.num_prefill_tokens == 1000 + 8 * 8


def test_what_needs_no_pages_waits_for_none() -> None:
    model = full_attention_model("llada")
    engine = Engine(model, num_pages=1)
    params = SamplingParams(max_new_tokens=8, block_size=8, denoising_steps_per_block=4, stop_token_ids=(),
                            remasking_strategy="low_confidence_static")  # fmt: skip
    engine.generate(random_prompts([5] * 32), params)
    assert engine.stats.num_forwards == 4


def test_numpy_ids_make_traces_that_can_be_saved(model) -> None:
    for decode in (Engine(model).generate, lambda *a: generate(model, *a)):
        (trace,) = decode([list(np.array([5, 6, 7]))], SamplingParams(max_new_tokens=3))
        assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace


def test_another_precision_is_named(model) -> None:
    engine = Engine(model)
    engine.generate([[5, 6]], SamplingParams(max_new_tokens=3))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UnmaskError, match="use one precision, or another engine"):
        engine.generate([[5, 6]], SamplingParams(max_new_tokens=3))
    engine.generate([[5, 6]], SamplingParams(max_new_tokens=3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: Engine(m, max_sequence=3), "unknown key 'max_sequence'; the nearest known key is 'max_sequences'"),
        (lambda m: Engine(m, attention_backend="x"), "unknown attention_backend 'x' of the engine; known: auto, dense, flex"),
        (lambda m: Engine(m, page_size=0), "page_size: Input should be greater than or equal to 1, found 0"),
        (lambda m: Engine(m, kv_memory_gb=1e-9), "hold no page of 16 tokens, which takes"),
        (lambda m: Engine(m).generate([[99]]), "prompt 0: token id 99 is outside the vocabulary of 40"),
        (lambda m: Engine(m).generate([[3], 4]), "prompt 1 is 4; a prompt is a list of token ids"),
        (lambda m: Engine(m).generate(None), "prompts are None; give a list of lists of token ids"),
        (lambda m: Engine(m).generate([[3]], {"seed": 1}), "parameters are {'seed': 1}, not SamplingParams"),
        (lambda m: Engine(m).generate([[3]], [None]), "prompt 0: its parameters are None, not SamplingParams"),
        (
            lambda m: Engine(m).update_weights(m, in_flight="finnish"),
            "in_flight 'finnish' is unknown; known: finish",
        ),
        (lambda m: Engine(m, num_pages=10**12).generate([[3] * 9]), "no memory for 1000000000001 pages of 16 tokens"),
        (lambda m: Engine(m).generate([[3]], []), "0 sampling parameters for 1 prompts"),
        (lambda m: Engine(m).add_request([3], SamplingParams(remasking_strategy="x")), "unknown remasking_strategy 'x'"),
        (lambda m: Engine(m).add_request([3], SamplingParams(cache="dual")), 'cache "dual" is for full-attention models'),
        (lambda m: Engine(m).add_request([3], SamplingParams(stop_strings=("a",))), "stop_strings need a way to turn ids into"),
        (lambda m: generate(full_attention_model("llada"), [[3]], SamplingParams(cache="prefix")), "generate keeps no keys"),
        (
            lambda m: Engine(m, num_pages=3, page_size=4).add_request([3] * 5, SamplingParams(max_new_tokens=10, block_size=4)),
            "request 0: 5 prompt and 10 new tokens need 4 pages of 4 tokens; the pool has 3",
        ),
    ],
)
def test_bad_input_is_named(model, call, message) -> None:
    with pytest.raises(UnmaskError, match=message.replace("(", r"\(")):
        call(model)


def test_a_bad_prompt_leaves_nothing_behind(model) -> None:
    engine = Engine(model)
    with pytest.raises(UnmaskError, match="prompt 2: token id -1"):
        engine.generate([[3], [4], [-1]])
    assert not engine.has_work
    engine.add_request([3], request_id="a")
    with pytest.raises(UnmaskError, match="request 'a' is already being decoded"):
        engine.add_request([3], request_id="a")


def test_no_prompts_no_traces(model) -> None:
    assert Engine(model).generate([]) == []
    assert Engine(model).step() == []


def test_bfloat16_decodes() -> None:
    """Tokens may differ from float32's; the machinery does not."""
    model = make_model().to(torch.bfloat16)
    traces = Engine(model).generate(random_prompts([5, 9] * 4), SamplingParams(max_new_tokens=9, block_size=4))
    assert all(t.num_response_tokens and -1 not in t.step_map for t in traces)
