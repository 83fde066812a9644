"""What the server puts up with, and what it says beyond that: numbers of answers, bytes, seconds."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.client import head, read_all, read_answer, took
from tests.serve.running import Local, wait_until
from unmask.serve import streams

CHAT = "/v1/chat/completions"
ENDLESS = {"max_tokens": 4000, "unmask": {"ignore_eos": True, "stop_token_ids": []}}


@pytest.fixture(scope="module")
def narrow(folders) -> Local:
    """Room for four answers, three of one key; everything has to be quick."""
    limits = {
        "max_sequences": 2, "server_max_queue": 2, "server_max_per_key": 3, "server_max_choices": 3, "server_max_body_mb": 0.1,
        "server_body_timeout_s": 0.5, "server_request_timeout_s": 1.5, "server_keep_alive_s": 1, "server_max_context": 4095,
    }  # fmt: skip
    with Local(folders["sdar"], num_pages=5000, page_size=4, api_keys=("a", "b"), **limits) as running:
        running.client = running.client.with_key("a")
        yield running
        running.assert_idle()


def assert_cut_off(connection: socket.socket) -> None:
    """Although there is always another byte."""
    for _ in range(400):
        try:
            connection.sendall(b"X")
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError("still open after 20 s")


def test_who_finds_no_room_is_told_at_once(narrow) -> None:
    begun = [narrow.client.begin(**ENDLESS) for _ in range(3)]
    other = narrow.client.with_key("b")
    refused = narrow.client.complete("x")  # of this key
    begun.append(other.begin(**ENDLESS))
    full = other.complete("x")  # of all
    for answer, said in ((refused, "this key has 3 answers under way, of 3"), (full, "4 answers are under way or wait, of 4")):
        assert (answer.status, answer.error["type"], answer.error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert said in answer.error["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    for stream in begun:
        stream.close()
    narrow.assert_idle()
    assert other.complete("x", max_tokens=2).status == 200


def test_what_never_fits_is_no_overload(narrow) -> None:
    answer = narrow.client.complete("x", n=4)
    assert (answer.status, answer.error["param"]) == (400, "n")
    assert narrow.client.complete("x" * 4000, max_tokens=96).error["code"] == "context_length_exceeded"
    assert narrow.client.complete("x" * 4000, max_tokens=95).status in (200, 504)  # it fits; the time is short here


def test_an_answer_that_takes_too_long(narrow) -> None:
    answer = narrow.client.complete("x", **ENDLESS)
    assert (answer.status, answer.error["type"]) == (504, "timeout_error")
    streamed = narrow.client.complete("x", stream=True, n=2, **ENDLESS)
    assert streamed.status == 200
    *events, last, rest = streamed.text.split("\n\n")
    assert (len(events) > 3, rest) == (True, "")
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "timeout_error"
    narrow.assert_idle()


def test_a_stream_that_waits_says_so_now_and_then(narrow, monkeypatch) -> None:
    monkeypatch.setattr(streams, "_HEARTBEAT_S", 0.05)
    ahead = [narrow.client.begin(**ENDLESS) for _ in range(2)]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(narrow.client.complete, "x", stream=True, max_tokens=2)
        time.sleep(0.5)
        for stream in ahead:
            stream.close()
        waiting = answer.result()
    *events, last = waiting.text.split("\n\n")[:-1]
    assert (waiting.status, last) == (200, "data: [DONE]")
    assert events.count(": waiting") > 3
    assert all(event == ": waiting" or json.loads(event.removeprefix("data: ")) for event in events)
    narrow.assert_idle()


@pytest.mark.parametrize("size", [150_000, 10_000_000])
def test_large_bodies_are_refused_and_the_connection_goes_on(narrow, size) -> None:
    with narrow.client.connect() as connection:
        for _ in range(2):
            connection.sendall(head("POST", CHAT, size, "Authorization: Bearer a") + b"x" * size)
            answer = read_answer(connection)
            assert (answer.status, answer.error["message"][:23]) == (413, "the request's body has ")
        connection.sendall(head("GET", "/health"))
        assert read_answer(connection).status == 200


def test_an_endless_body_is_cut_off(narrow) -> None:
    with narrow.client.connect() as connection:
        connection.sendall(head("POST", CHAT, None, "Transfer-Encoding: chunked", "Authorization: Bearer a"))

        def send() -> None:
            part = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            while True:
                try:
                    connection.sendall(part)
                except OSError:
                    return

        sender = threading.Thread(target=send)
        sender.start()
        assert read_answer(connection).status == 413
        sender.join(20)
        assert not sender.is_alive()


@pytest.mark.parametrize("part", ["head", "body", "nothing"])
def test_half_a_request_is_not_waited_for(narrow, part) -> None:
    with narrow.client.connect() as connection:
        if part == "head":
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost")
        elif part == "body":
            connection.sendall(head("POST", CHAT, 50, "Authorization: Bearer a") + b'{"mess')
        if part == "nothing":
            assert took(lambda: read_all(connection)) < 10
        else:
            answer = read_answer(connection)
            assert (answer.status, answer.error["type"], answer.headers["connection"]) == (408, "timeout_error", "close")
            assert connection.recv(1) == b""


def test_a_head_that_trickles_is_not_waited_for(narrow) -> None:
    with narrow.client.connect() as connection:
        assert_cut_off(connection)
    wait_until(lambda: not narrow.num_connections, "no connections")


def test_a_refused_body_that_trickles_is_not_waited_for(narrow) -> None:
    """The answer, 401, is there before the body; what goes on coming keeps nothing open."""
    with narrow.client.with_key("").connect() as connection:
        connection.sendall(head("POST", CHAT, 5000))
        assert read_answer(connection).status == 401
        assert_cut_off(connection)


def test_an_idle_connection_is_kept_for_a_while(narrow) -> None:
    with narrow.client.connect() as connection:
        for _ in range(3):
            connection.sendall(head("GET", "/health"))
            assert read_answer(connection).status == 200
            time.sleep(0.3)
        assert 0.3 < took(lambda: read_all(connection)) < 20


@pytest.mark.parametrize("stream", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_who_does_not_read_is_cut_off_and_frees_its_pages(folders, stream) -> None:
    """Of a stream, and of a whole answer that is larger than what the system keeps for a connection."""
    limits = {"server_write_timeout_s": 0.5, "server_keep_alive_s": 1, "max_sequences": 16}
    with Local(folders["sdar"], num_pages=20_000, page_size=4, **limits) as server:
        steps = {"ignore_eos": True, "stop_token_ids": [], "block_size": 64, "denoising_steps_per_block": 1}
        fields = {
            "max_tokens": 4000,
            "n": 8,
            "logprobs": 0,
            "unmask": {**steps, "return_trace": True, "stream_unmask": stream},
        }
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((server.client.host, server.client.port))
        body = json.dumps({"prompt": "hello", "stream": stream, **fields}).encode()
        connection.sendall(head("POST", "/v1/completions", len(body)) + body)
        wait_until(lambda: server.num("answers_under_way") == 8, "being decoded")
        wait_until(lambda: not server.num_connections, "cut off")
        server.assert_idle()
        connection.close()
        assert server.client.complete("x", max_tokens=2).status == 200


def test_a_slow_reader_that_reads_gets_everything(folders) -> None:
    with Local(folders["sdar"], num_pages=20_000, page_size=4, server_write_timeout_s=1.0) as server:
        fields = {"max_tokens": 200, "seed": 1, "unmask": {"ignore_eos": True, "stop_token_ids": [], "stream_unmask": True}}
        want = server.client.complete("hello", stream=True, **fields)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((server.client.host, server.client.port))
        body = json.dumps({"prompt": "hello", "stream": True, **fields}).encode()
        connection.sendall(head("POST", "/v1/completions", len(body), "Connection: close") + body)
        received = b""
        with connection:
            while part := connection.recv(3000):
                received += part
                time.sleep(0.005)
        same = re.compile(rb'"(id|created)":("[^"]*"|\d+)')
        lines = [same.sub(b"", line) for line in received.split(b"\r\n") if line.startswith(b"data:")]
        assert lines == [same.sub(b"", event) + b"\n\n" for event in want.body.split(b"\n\n")[:-1]]


def test_500_connections_at_a_time(folders) -> None:
    """Most of them half a request; those that ask are answered."""
    with Local(folders["sdar"], num_pages=2000, page_size=4, server_max_queue=1000) as server:
        halves = [server.client.connect() for _ in range(400)]
        for i, connection in enumerate(halves):
            connection.sendall(head("POST", CHAT, 100)[: 5 + i % 100])
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(lambda i: server.client.complete("hello", max_tokens=2, stream=i % 2 == 0), range(100)))
        assert [answer.status for answer in answers] == [200] * 100
        for connection in halves:
            connection.close()
        wait_until(lambda: not server.num_connections, "no connections")
        server.assert_idle()
