"""Requests that are wrong: each is answered with what is wrong, in OpenAI's form, and nothing else suffers."""

from __future__ import annotations

import json

import pytest

from tests.serve.client import JSON, head

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
TEXT = '{"prompt":"hello",'


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "no body"),
        (b"{", 400, "not JSON"),
        (b'{"prompt": "a"} x', 400, "not JSON"),
        (b'{"prompt": "\xff\xfe"}', 400, "UTF-8"),
        (b"\xff\xfe\x00", 400, "UTF-8"),
        (b"null", 400, "body"),
        (b"[]", 400, "the body: should be a JSON object"),
        (b'"hello"', 400, "object"),
        (b"[" * 20_000, 400, "JSON"),
        (b"[" * 200_000, 413, "lists"),
        (b'{"prompt":' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400, "JSON"),
        (TEXT.encode() + b'"metadata":{"a":' + b'{"a":' * 400 + b"1" + b"}" * 402, 400, "recursion"),
        (TEXT.encode() + b'"temperature":NaN}', 400, "temperature"),
        (TEXT.encode() + b'"temperature":1e999}', 400, "temperature"),
        (TEXT.encode() + b'"temperature":-Infinity}', 400, "temperature"),
        (TEXT.encode() + b'"n":' + b"9" * 400 + b"}", 400, "n:"),
        (TEXT.encode() + b'"seed":' + b"9" * 5000 + b"}", 400, ""),
        (TEXT.encode() + b'"unmask":{"confidence_threshold":NaN}}', 400, "confidence_threshold"),
        (TEXT.encode() + b'"unmask":{"entropy_bound":1e999}}', 400, "entropy_bound"),
        (TEXT.encode() + b'"max_tokens":2,"max_tokens":3}', 200, ""),
        (b'{"prompt":"\\ud800"}', 400, "hex escape"),
        (b'{"prompt":"a","model":"\\ud800"}', 400, "hex escape"),
        (b'{"prompt":"a","\\ud800":1}', 400, "hex escape"),
        (b'{"prompt":"a","max_tokens":4,"stop":["\\udc00"],"stream":true}', 400, "hex escape"),
        ('{"prompt":"a","max_tokens":4}'.encode("utf-16"), 400, "UTF-8"),
        (TEXT.encode() + b'"metadata":{"a":[' + b"1," * 200_000 + b"1]}}", 413, "54,096 values"),
        (TEXT.encode() + b'"max_tokens":2,"metadata":{"a":[' + b"1," * 50_000 + b"1]}}", 200, ""),
        (TEXT.encode() + b'"metadata":{"a":[' + b",".join([b'{"a" :1}'] * 20_001) + b"]}}", 413, "20,000 keys"),
        (TEXT.encode() + b'"max_tokens":2,"metadata":{"a":[' + b",".join([b'{"a" :1}'] * 19_000) + b"]}}", 200, ""),
        (TEXT.encode() + b'"metadata":{"a":[' + b",".join([b"[[[[]]]]"] * 6000) + b"]}}", 413, "20,000 lists and objects"),
        (b'{"prompt":"' + b"a," * 60_000 + b'"}', 400, "max_tokens"),
        (json.dumps({"prompt": json.dumps({str(i): [i] for i in range(25_000)})}).encode(), 400, "no tokens"),
        (TEXT.encode() + b'"metadata":{"a":[' + b",".join([b'"a"'] * 50_001) + b"]}}", 413, "50,000 texts"),
        (b'\xef\xbb\xbf{"prompt":"a","max_tokens":4}', None, ""),
        (b'{"prompt":"\\u0000"}', 400, "no tokens"),
    ],
)  # fmt: skip
def test_bodies_that_are_no_requests(local, body, status, said) -> None:
    answer = local.client.post(COMPLETIONS, body)
    if status is None:  # either is right, with its own form
        assert answer.status in (200, 400)
        assert answer.status == 200 or answer.error
    else:
        assert answer.status == status, answer.text
        assert status == 200 or said in answer.error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"promt": "a"}, "promt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [1.5]}, "prompt.0"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [10**9]}, None),
        ({"prompt": ["a", 5]}, "prompt.1"),
        ({"prompt": [True]}, "prompt.0"),
        ({"prompt": "a" * 5000}, "max_tokens"),
        ({"prompt": "Z"}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 9, "prompt": ["a", "b"]}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4096}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": "4"}, "max_tokens"),
        ({"max_tokens": 4.0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e-9}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"stop": [5]}, "stop.0"),
        ({"stream": "yes"}, "stream"),
        ({"logprobs": 5}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, None),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"user": 5}, "user"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"body": 1}, "body"),
        ({"str": 1}, "str"),
        ({"a[b]": 1}, "a[b]"),
        ({"unmask": {"temperature": 1}}, "unmask.temperature"),
        ({"unmask": {"block_size": 0}}, "unmask.block_size"),
        ({"unmask": {"block_size": 10**9}}, "unmask.block_size"),
        ({"unmask": {"block_size": 4097}}, "unmask.block_size"),
        ({"unmask": {"denoising_steps": 10**400}}, "unmask.denoising_steps"),
        ({"unmask": {"denoising_steps_per_block": 0}}, "unmask.denoising_steps_per_block"),
        ({"unmask": {"denoising_steps": 4, "denoising_steps_per_block": 2}}, None),
        ({"unmask": {"top_k": 10**30}}, "unmask.top_k"),
        ({"unmask": {"remasking_strategy": "none such"}}, None),
        ({"unmask": {"remasking_strategy": "\ud800"}}, None),
        ({"unmask": {"cache": "dual"}}, None),
        ({"unmask": {"cache": "all"}}, "unmask.cache"),
        ({"unmask": {"unmask_block_start": True}}, None),
        ({"unmask": {"further_horizon": 4}}, None),
        ({"unmask": {"min_tokens": 9999}}, None),
        ({"unmask": {"stop_token_ids": [-1]}}, "unmask.stop_token_ids.0"),
        ({"unmask": {"pad_penalty": 0}}, "unmask.pad_penalty"),
        ({"unmask": 5}, "unmask"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_wrong_fields_are_named(local, fields, param) -> None:
    answer = local.client.post(COMPLETIONS, {"prompt": "hello", **fields})
    assert answer.status == 400, answer.text
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["param"] == param, answer.text
    assert len(answer.body) < 3000


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        (["hello"], "messages.0"),
        ([{"role": "user"}, {"role": "robot", "content": "x"}], "messages.1.role"),
        ([{"content": "x"}], "messages.0.role"),
        ([{"role": "user", "content": 5}], "messages.0.content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages.0.content.0.image_url"),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], "messages.0.tool_calls"),
        ([{"role": "user", "content": "x", "other": 1}], "messages.0.other"),
        ([{"role": "system", "content": "x"}], "messages"),  # the template writes what the vocabulary lacks
        ([{"role": "user", "content": "x"}] * 5000, "messages"),
    ],
)  # fmt: skip
def test_wrong_messages_are_named(local, messages, param) -> None:
    answer = local.client.post(CHAT, {"messages": messages} if messages is not None else {})
    assert (answer.status, answer.error["param"]) == (400, param), answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "<|im_end|><|MASK|><|endoftext|><|assistant|>"}]},
        {"seed": 2**63 - 1, "n": 3},
        {"stop": ["a" * 256] * 16},
        {"max_completion_tokens": 3, "max_tokens": 100},
        {"n": 16},
        {"unmask": {"stop_token_ids": [2**31 - 1]}},
        {"unmask": {"denoising_steps": 10**6}},
        {"unmask": {"denoising_steps_per_block": 10**6}},
        {"unmask": {"top_k": 10**9}},
        {"unmask": {"min_tokens": 4}},
        {"unmask": {"alg_temp": 1e-300, "remasking_strategy": "low_confidence_static"}},
        {"unmask": {"alg_temp": 1e300, "pad_penalty": 1e300}},
        {"unmask": {"pad_penalty": 1e-300, "alg_temp": 1e-300, "score": "neg_entropy"}},
        {"unmask": {"pad_penalty": 1e-300, "remasking_strategy": "low_confidence_static"}},
        {"unmask": {"entropy_bound": 1e300, "remasking_strategy": "entropy_bounded"}},
        {"unmask": {"confidence_threshold": 1e300}},
        {"unmask": {"confidence_threshold": -1e300, "score": "neg_entropy"}},
        {"temperature": 100, "top_p": 1e-300},
        {"temperature": 0.001},
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "presence_penalty": 0.0, "store": False},
    ],
    ids=lambda value: json.dumps(value)[:60],
)  # fmt: skip
def test_odd_requests_are_answered(local, fields) -> None:
    fields = {"max_tokens": 4, **HELLO, **fields}
    answer = local.client.post(CHAT, fields)
    assert answer.status == 200, answer.text
    assert len(answer.data["choices"]) == fields.get("n", 1)
    assert all(0 <= choice["unmask"]["seed"] < 2**63 for choice in answer.data["choices"])


def test_a_limit_that_nobody_gave_is_lowered_to_the_context(local) -> None:
    answer = local.client.complete("a" * 4090)
    assert (answer.status, answer.data["usage"]["completion_tokens"]) == (200, 6)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/health/", 404), ("GET", CHAT, 405), ("PUT", "/health", 405), ("DELETE", "/", 405),
        ("GET", "/v1/models/other", 404), ("GET", "/v1/models/%ff%00%0a", 404), ("GET", "/v1/../admin", 404),
        ("OPTIONS", CHAT, 405), ("GET", "/docs", 404), ("POST", "/admin/reload", 403), ("GET", "/admin/x", 403),
        ("BREW", "/health", 405), ("GET", "//v1/models", 404), ("GET", "/" + "a" * 9000, 404),
    ],
)  # fmt: skip
def test_addresses_and_methods_that_are_not_there(local, method, path, status) -> None:
    answer = local.client.request(method, path)
    assert (answer.status, bool(answer.error)) == (status, True)


def test_head_has_no_body(local) -> None:
    answer = local.client.request("HEAD", "/health")
    assert (answer.status, answer.body) == (405, b"")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_is_not_json_by_name_is_refused(local, kind) -> None:
    with local.client.connect() as connection:
        line = f"Content-Type: {kind}\r\n" if kind else ""
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{line}Content-Length: 2\r\n\r\n{{}}".encode())
        assert connection.recv(12) == b"HTTP/1.1 415"


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"])
def test_json_by_other_names(local, kind) -> None:
    assert local.client.post(CHAT, {**HELLO, "max_tokens": 2}, **{"Content-Type": kind}).status == 200
    assert local.client.post(CHAT, {**HELLO, "bogus": 2}, **{"Content-Type": kind}).error["param"] == "bogus"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n\r\n\x00\x01\x02 nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"GET /he alth HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /h\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n", 400),  # TLS
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1_000_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200_000 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (head("POST", CHAT, None, "Content-Length: -5"), 400),
        (head("POST", CHAT, None, "Content-Length: five"), 400),
        (head("POST", CHAT, None, "Content-Length: 5", "Content-Length: 6"), 400),
        (head("POST", CHAT, None, "Content-Length: " + "9" * 30), 400),
        (head("POST", CHAT, None, "Content-Length: 99999999999"), 413),
        (head("POST", CHAT, 2_000_000, "Expect: 100-continue"), 413),
        (head("POST", CHAT, None, "Transfer-Encoding: gzip"), 400),
        (head("POST", CHAT, None, "Transfer-Encoding: chunked") + b"zz\r\n", 400),
        (head("POST", CHAT, None, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n", 400),
        (head("CONNECT", "x:1", None), 404),
        (head("GET", "/health", None, "Upgrade: websocket", "Connection: upgrade"), 200),
        (head("POST", CHAT, 0), 400),
        (head("POST", CHAT), 400),
    ],
)  # fmt: skip
def test_bytes_that_are_no_good_http(local, data, status) -> None:
    answer = local.client.raw(data)
    assert answer.status == status, answer.text
    assert status == 200 or answer.error


def test_a_chunked_body_without_a_length(local) -> None:
    body = json.dumps({**HELLO, "max_tokens": 3}).encode()
    chunks = b"".join(b"1\r\n" + body[i : i + 1] + b"\r\n" for i in range(len(body))) + b"0\r\n\r\n"
    answer = local.client.raw(head("POST", CHAT, None, "Transfer-Encoding: chunked") + chunks)
    assert (answer.status, len(answer.data["choices"])) == (200, 1)


def test_who_expects_to_continue_is_told_so(local) -> None:
    body = json.dumps({**HELLO, "max_tokens": 3}).encode()
    with local.client.connect() as connection:
        connection.sendall(head("POST", CHAT, len(body), "Expect: 100-continue", "Connection: close"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_requests_in_one_packet_are_answered_in_order(local) -> None:
    """Pipelining, of good ones and bad ones."""
    good = json.dumps({**HELLO, "max_tokens": 3, "temperature": 0}).encode()
    with local.client.connect() as connection:
        for body in (good, b"{", good):
            connection.sendall(head("POST", CHAT, len(body)) + body)
        connection.sendall(head("GET", "/health", None, "Connection: close"))
        received = b""
        while part := connection.recv(65536):
            received += part
    assert [received[i + 9 : i + 12] for i in range(len(received)) if received.startswith(b"HTTP/1.1 ", i)] == [
        b"200", b"400", b"200", b"200",
    ]  # fmt: skip


def test_an_old_client_gets_a_stream_that_ends_with_its_connection(local) -> None:
    body = json.dumps({**HELLO, "max_tokens": 3, "stream": True}).encode()
    request = f"POST {CHAT} HTTP/1.0\r\nContent-Type: {JSON['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
    assert local.client.raw(request.encode() + body).events


@pytest.mark.parametrize("fields", [{"stream_unmask": True}, {"unmask": {"stream_unmask": True}}, {"stream_options": {}}])
def test_what_belongs_to_a_stream_needs_one(local, fields) -> None:
    assert "belongs to a stream" in local.client.complete("a", **fields).error["message"]


def test_what_programs_send_without_asking_for_anything(local) -> None:
    nothing = ("n", "stream_unmask", "audio", "function_call", "prediction", "reasoning_effort", "verbosity", "tools", "seed")
    answer = local.client.chat("a", max_tokens=2, safety_identifier="x", prompt_cache_key="y", **dict.fromkeys(nothing))
    assert answer.data["choices"][0]["message"]["role"] == "assistant"


def test_each_prompt_has_its_own_room(local) -> None:
    """A prompt's answer does not depend on the length of those beside it."""
    room = local.service.max_context
    fields = {"temperature": 0, "unmask": {"return_trace": True}}
    alone = local.client.complete("the", **fields).data["choices"][0]
    beside = local.client.complete(["the", "a" * (room - 10)], **fields).data["choices"]
    assert beside[0]["text"] == alone["text"]
    assert [choice["unmask"]["trace"]["settings"]["max_new_tokens"] for choice in beside] == [256, 10]


def test_a_text_beyond_all_measure_is_not_tokenised(local) -> None:
    error = local.client.complete(["a" * 300_000] * 3).error
    assert error["code"] == "context_length_exceeded"
