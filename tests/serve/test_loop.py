"""The event loop is never away for long, whatever somebody sends or is sent."""

from __future__ import annotations

import gc

import pytest

from tests.serve.client import Answer
from tests.serve.running import Local

LIMIT_S = 0.05  # of processor time
FAST = {"ignore_eos": True, "stop_token_ids": [], "block_size": 64, "denoising_steps_per_block": 1}


@pytest.fixture(scope="module")
def large(folders) -> Local:
    with Local(folders["sdar"], num_pages=20_000, page_size=4, server_max_context=9000) as running:
        running.client.complete("a", max_tokens=2)  # the first one has more to do
        gc.collect()
        gc.freeze()  # as the command does; here it is what all tests have left
        yield running
        gc.unfreeze()
        running.assert_idle()


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":[' + b"1.5," * 200_000 + b"1]}",
        b'{"prompt":[' + b"[]," * 200_000 + b"[]]}",
        b'{"prompt":"a",' + b",".join(b'"%d":1' % i for i in range(80_000)) + b"}",
        b'{"prompt":"a","unmask":{' + b",".join(b'"%d":1' % i for i in range(80_000)) + b"}}",
        b'{"prompt":"a","logit_bias":{' + b",".join(b'"%d":"x"' % i for i in range(80_000)) + b"}}",
        b'{"prompt":"a","stop":[' + b"1," * 300_000 + b"1]}",
        b'{"prompt":"a","unmask":{"stop_token_ids":[' + b'"",' * 200_000 + b"1]}}",
        b'{"prompt":[' + b"5," * 300_000 + b"5]}",
        b'{"prompt":"a","n":0,"metadata":{"a":[' + b",".join([b"[[[[[[[]]]]]]]"] * 54_000) + b"]}}",
        b'{"prompt":"a","n":0,"metadata":{"a":[' + b",".join([b'{"" :{"" :{}}}'] * 54_000) + b"]}}",
        b'{"prompt":"a","metadata":{' + b",".join(b'"%d" :1' % i for i in range(54_000)) + b"}}",
        b'{"prompt":"' + b'\\":,' * 200_000 + b'"}',
        b'{"prompt":"' + b"hello " * 170_000 + b'"}',
        b'{"prompt":["' + b'","'.join([b"hello " * 1600] * 16) + b'"]}',
    ],
    ids=lambda body: body[:30].decode(),
)  # fmt: skip
def test_large_requests(large, body) -> None:
    answers: list[Answer] = []
    stall = large.longest_stall_s(lambda: answers.append(large.client.post("/v1/completions", body)))
    assert answers[0].error
    assert stall < LIMIT_S


def test_conversations_of_thousands_of_turns(large) -> None:
    messages = [{"role": "user", "content": "hello you"}] * 2000
    assert large.longest_stall_s(lambda: large.client.post("/v1/chat/completions", {"messages": messages})) < LIMIT_S


@pytest.mark.parametrize("stream", [False, True])
def test_large_answers(large, stream) -> None:
    """Sixteen at a time, with all there is to say about each token: a quarter of a second of work."""
    fields = {"n": 16, "max_tokens": 1000, "logprobs": True, "stream": stream, "unmask": {**FAST, "return_trace": True}}
    answers: list[Answer] = []
    stall = large.longest_stall_s(lambda: answers.append(large.client.chat("a", **fields)))
    assert len(answers[0].body) > 2**20
    assert stall < LIMIT_S


@pytest.mark.parametrize("num", [2500, pytest.param(4000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stream", [False, True])
def test_long_answers(large, stream, num) -> None:
    """After prompts that are as long, with all that can be said of each token."""
    prompt = [5 + i % 40 for i in range(num)]
    steps = {"stream_unmask": True} if stream else {}
    fields = {"prompt": prompt, "max_tokens": num, "logprobs": 0, "stream": stream}
    fields["unmask"] = {**FAST, **steps, "block_size": 500, "return_trace": True}
    answers: list[Answer] = []
    stall = large.longest_stall_s(lambda: answers.append(large.client.post("/v1/completions", fields)))
    assert (answers[0].status, len(answers[0].body) > 50 * num) == (200, True)
    assert stall < LIMIT_S
