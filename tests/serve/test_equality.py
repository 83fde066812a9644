"""What is served is what the engine decodes: alone and with others, whole and streamed, of every kind of model."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.engine.plain import variety
from tests.serve.client import Answer, Client
from tests.serve.models import KINDS, loaded, tokenizer
from tests.serve.running import Local
from unmask.data.text_stream import cut_at_stop
from unmask.diffusion.generate import generate
from unmask.types import Example, Message, SamplingParams, Trace

GREEDY = {"temperature": 0.0, "seed": 1}
SEEDED = {"temperature": 1.0, "seed": 7}
OWN_NAMES = {"max_new_tokens": "max_tokens", "stop_strings": "stop"}


@pytest.fixture(scope="module", params=KINDS)
def of_kind(request, folders) -> Local:
    with Local(folders[request.param], num_pages=3000, page_size=4, max_sequences=24, server_max_queue=500) as running:
        yield running
        running.assert_idle()


def chat_ids(text: str) -> list[int]:
    return tokenizer().prompt_ids(Example(id="x", messages=(Message(role="user", content=text),)))


def expected(server: Local, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]) -> list[Trace]:
    """The readable sampler's traces."""
    return generate(loaded(server.folder), prompts, params, decode=tokenizer().decode)


def text_of(trace: Trace) -> str:
    text = tokenizer().decode(trace.response_ids)
    return text[: cut_at_stop(text, trace.settings["stop_strings"])]


def assert_equal(got: dict[str, Any], want: Trace) -> None:
    """A trace as it was served."""
    served = Trace.from_dict(got)
    for name in ("prompt_ids", "canvas_ids", "step_map", "num_response_tokens", "num_forwards", "finish_reason", "seed"):
        assert getattr(served, name) == getattr(want, name), name
    assert served.logprobs == pytest.approx(want.logprobs, abs=1e-5)
    assert served.confidences == pytest.approx(want.confidences, abs=1e-5)
    assert served.settings == {**want.settings, "stop_strings": list(want.settings["stop_strings"])}


def told(events: list[dict[str, Any]], index: int = 0) -> tuple[str, list[dict[str, Any]], str, dict[str, Any]]:
    """Of a choice of a stream: its text, its step events, how it ended, and what was said then."""
    parts = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    text = "".join(part["delta"].get("content", "") if "delta" in part else part["text"] for part in parts)
    extras = [part["unmask"] for part in parts if "unmask" in part]
    assert [part["finish_reason"] is not None for part in parts] == [False] * (len(parts) - 1) + [True]
    return text, [extra for extra in extras if "step" in extra], parts[-1]["finish_reason"], extras[-1]


@pytest.mark.parametrize("drawing", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_chat_is_what_the_sampler_says(of_kind, drawing) -> None:
    params = SamplingParams(max_new_tokens=21, stop_token_ids=(1,), **drawing)
    want = expected(of_kind, [chat_ids("the 12 + 3")] * 3, params)  # each from seed + i
    more = {"max_tokens": 21, "n": 3, "unmask": {"return_trace": True}, **drawing}
    whole = of_kind.client.chat("the 12 + 3", **more).data
    streamed = of_kind.client.chat("the 12 + 3", stream=True, stream_options={"include_usage": True}, **more).events
    assert whole["usage"] == streamed[-1]["usage"]
    assert whole["usage"] == {
        "prompt_tokens": len(want[0].prompt_ids), "completion_tokens": sum(t.num_response_tokens for t in want),
        "total_tokens": len(want[0].prompt_ids) + sum(t.num_response_tokens for t in want),
        "num_forwards": sum(t.num_forwards for t in want),
        "tokens_per_forward": pytest.approx(sum(t.num_response_tokens for t in want) / sum(t.num_forwards for t in want)),
    }  # fmt: skip
    assert len(whole["choices"]) == 3
    for i, (choice, trace) in enumerate(zip(whole["choices"], want, strict=True)):
        assert (choice["index"], choice["message"]["content"], choice["finish_reason"]) == (
            i,
            text_of(trace),
            trace.finish_reason,
        )
        assert_equal(choice["unmask"]["trace"], trace)
        text, steps, reason, last = told(streamed, i)
        assert (text, steps, reason) == (text_of(trace), [], trace.finish_reason)
        assert_equal(last["trace"], trace)


def test_completions_of_texts_and_of_token_ids(of_kind) -> None:
    params = SamplingParams(max_new_tokens=9, **SEEDED)
    texts = ["the", "7+8=", ""]
    ids = [tokenizer().encode(text) for text in texts]
    want = expected(of_kind, ids, params)
    fields = {"max_tokens": 9, "unmask": {"return_trace": True}, **SEEDED}
    for prompts in (texts, ids[:2]):
        answer = of_kind.client.complete(prompts, **fields).data
        assert [choice["text"] for choice in answer["choices"]] == [text_of(trace) for trace in want[: len(prompts)]]
        for choice, trace in zip(answer["choices"], want, strict=False):
            assert_equal(choice["unmask"]["trace"], trace)
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids[: len(prompts)]))
    one = [of_kind.client.complete(prompt, **fields).data["choices"][0]["text"] for prompt in ("the", ids[0])]
    assert one == [text_of(want[0])] * 2
    # Several answers to each of several prompts: those to the first one first.
    double = of_kind.client.complete(texts[:2], n=2, **fields).data["choices"]
    want = expected(of_kind, [ids[0], ids[0], ids[1], ids[1]], params)
    assert [choice["text"] for choice in double] == [text_of(trace) for trace in want]


def test_step_events_add_up_to_the_trace(of_kind) -> None:
    settings = {"block_size": 8, "confidence_threshold": 0.03, "return_trace": True, "stream_unmask": True}
    events = of_kind.client.complete("the sum", max_tokens=30, stream=True, logprobs=0, unmask=settings, **SEEDED).events
    params = SamplingParams(max_new_tokens=30, block_size=8, confidence_threshold=0.03, **SEEDED)
    want = expected(of_kind, [tokenizer().encode("the sum")], params)[0]
    text, steps, reason, last = told(events)
    assert_equal(last["trace"], want)
    assert (text, reason) == (text_of(want), want.finish_reason)
    start = events[0]["choices"][0]["unmask"]["start"]
    assert start["prompt_token_ids"] == want.prompt_ids
    assert start["num_canvas_tokens"] >= len(want.canvas_ids)
    assert [step["step"] for step in steps] == list(range(want.num_forwards))
    assert any(len(step["tokens"]) > 1 for step in steps)
    seen = {}
    for step in steps:
        for token in step["tokens"]:
            assert token["position"] not in seen
            seen[token["position"]] = (step["step"], token["token_id"], token["token"])
            assert token["logprob"] == pytest.approx(want.logprobs[token["position"]], abs=1e-5)
            assert token["confidence"] == pytest.approx(want.confidences[token["position"]], abs=1e-5)
    pieces = tokenizer().pieces(want.canvas_ids)
    assert seen == {
        i: (step, want.canvas_ids[i], pieces[i]) for i, step in enumerate(want.step_map) if step >= 0
    }  # fmt: skip
    parts = [c["logprobs"] for e in events for c in e["choices"] if c["logprobs"]]
    assert [t for part in parts for t in part["tokens"]] == pieces[: want.num_response_tokens]
    values = [value for part in parts for value in part["token_logprobs"]]
    assert values == pytest.approx(want.logprobs[: want.num_response_tokens], abs=1e-5)


def test_logprobs_of_whole_answers(of_kind) -> None:
    want = expected(of_kind, [chat_ids("an")], SamplingParams(max_new_tokens=9, stop_token_ids=(1,), **GREEDY))[0]
    content = of_kind.client.chat("an", max_tokens=9, logprobs=True, **GREEDY).data["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == tokenizer().pieces(want.response_ids)
    assert [entry["logprob"] for entry in content] == pytest.approx(want.logprobs[: len(content)], abs=1e-5)
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in content)
    answer = of_kind.client.complete("ab", max_tokens=9, logprobs=0, **GREEDY).data["choices"][0]
    if answer["finish_reason"] == "length":  # no special token among them
        places = answer["logprobs"]["text_offset"]
        assert [answer["text"][a:b] for a, b in zip(places, [*places[1:], None], strict=True)] == answer["logprobs"]["tokens"]


def test_stop_strings_end_answers_and_are_not_said(of_kind) -> None:
    """Cut out of the answer itself, at every place: within a block and across two."""
    ids = tokenizer().encode("go")
    base = SamplingParams(max_new_tokens=24, ignore_eos=True, stop_token_ids=(), **SEEDED)
    text = text_of(expected(of_kind, [ids], base)[0])
    assert len(text) > 12
    for begin in range(2, 9, 2):
        stop = text[begin : begin + 3]
        params = base.model_copy(update={"stop_strings": (stop, "\ufffdnever")})
        want = expected(of_kind, [ids], params)[0]
        fields = {
            "max_tokens": 24,
            "stop": [stop, "\ufffdnever"],
            "unmask": {"ignore_eos": True, "stop_token_ids": []},
            **SEEDED,
        }
        whole = of_kind.client.complete("go", **fields).data
        streamed = of_kind.client.complete("go", stream=True, **fields).events
        assert whole["choices"][0]["text"] == told(streamed)[0] == text_of(want) == text[: text.find(stop)]
        assert whole["choices"][0]["finish_reason"] == told(streamed)[2] == "stop"
        assert whole["usage"]["completion_tokens"] == want.num_response_tokens


def test_64_clients_get_what_each_would_get_alone(of_kind) -> None:
    """Different prompts and settings, streams and whole answers, one and several at a time; none has another's tokens."""
    rng = random.Random(3)
    all_params = variety(11, 64, full_attention=loaded(of_kind.folder).spec.attention != "block_causal")
    prompts = [[rng.randrange(5, len(tokenizer().tokenizer)) for _ in range(rng.randint(1, 20))] for _ in all_params]
    want = expected(of_kind, prompts, all_params)

    def ask(i: int) -> Answer:
        given = all_params[i].model_dump(exclude_none=True)
        fields = {OWN_NAMES.get(k, k): given.pop(k) for k in ("temperature", "top_p", "max_new_tokens", "seed")}
        given.pop("stop_strings")
        if "stop_token_ids" in given:
            given["stop_token_ids"] = list(given["stop_token_ids"])
        settings = {**given, "return_trace": True, "stream_unmask": i % 4 == 1}
        client = Client(f"{of_kind.client.host}:{of_kind.client.port}")
        return client.complete(prompts[i], stream=i % 2 == 1, unmask=settings, **fields)

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    for i, (answer, trace) in enumerate(zip(answers, want, strict=True)):
        if i % 2:
            text, _, _, last = told(answer.events)
        else:
            text, last = answer.data["choices"][0]["text"], answer.data["choices"][0]["unmask"]
        assert text == text_of(trace)
        assert_equal(last["trace"], trace)


def test_answers_are_begun_as_in_the_training(folders) -> None:
    with Local(folders["sdar"], "server.response_prefix='so '", "seed=9") as running:
        turns = (Message(role="user", content="the"),)
        prompt = tokenizer().prompt_ids(Example(id="x", messages=turns, response_prefix="so "))
        want = expected(running, [prompt], SamplingParams(max_new_tokens=9, seed=9, stop_token_ids=(1,)))[0]
        assert running.client.chat("the", max_tokens=9).data["choices"][0]["message"]["content"] == text_of(want)
