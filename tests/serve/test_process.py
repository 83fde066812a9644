"""The command as users run it: two processes that begin, serve, and end together, however one of them ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time

import psutil
import pytest

from tests.recipes import start
from tests.serve.client import Answer, read_all
from tests.serve.running import PATIENCE_S, Served, wait_until
from tests.serve.test_equality import chat_ids, expected, text_of
from unmask.types import SamplingParams

FEW = ("engine.num_pages=3000", "engine.page_size=4")
ENDLESS = {"max_tokens": 4000, "unmask": {"ignore_eos": True, "stop_token_ids": []}}


class Asking:
    """Requests that go on in threads of their own: a stream, and a whole answer."""

    def __init__(self, served: Served, **fields):
        self.answers: dict[bool, Answer | Exception] = {}
        self.threads = [threading.Thread(target=self._ask, args=(served, s, fields)) for s in (True, False)]
        for thread in self.threads:
            thread.start()
        wait_until(lambda: served.num("answers_under_way") == 2, "under way")

    def _ask(self, served: Served, stream: bool, fields: dict) -> None:
        try:
            self.answers[stream] = served.client.complete("hello", stream=stream, **fields)
        except Exception as error:
            self.answers[stream] = error

    def get(self) -> tuple[Answer | Exception, Answer | Exception]:
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        return self.answers[True], self.answers[False]


def test_it_serves_what_the_engine_says_and_ends_when_told(folders) -> None:
    with Served(folders["sdar"], *FEW) as served:
        params = SamplingParams(max_new_tokens=20, seed=3, stop_token_ids=(1,))
        want = expected(served, [chat_ids("hello")], params)[0]
        assert served.client.chat(max_tokens=20, seed=3).data["choices"][0]["message"]["content"] == text_of(want)
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "seed": 3, "max_tokens": 20})
        if curl := shutil.which("curl"):
            url = f"http://{served.client.host}:{served.client.port}/v1/chat/completions"
            words = [curl, "-sS", "-H", "Content-Type: application/json", "-d", body, url]
            answer = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=PATIENCE_S).stdout)
            assert answer["choices"][0]["message"]["content"] == text_of(want)
        assert served.client.get("/").text.startswith("<!doctype html>")
        assert psutil.Process(served.process.pid).net_connections()[0].laddr.ip == "127.0.0.1"
        served.assert_idle()
        asking = Asking(served, max_tokens=300, unmask=ENDLESS["unmask"])
        served.process.send_signal(signal.SIGTERM)
        streamed, whole = asking.get()
        assert streamed.events[-1]["choices"][0]["finish_reason"] == "length"
        assert whole.data["usage"]["completion_tokens"] == 300
        assert served.process.wait(PATIENCE_S) == 0
        served.assert_nothing_left()
    assert served.lines[-1] == "ending; 2 answers under way"
    assert len(served.lines) == 3


@pytest.mark.slow
def test_without_its_engine_it_ends(folders) -> None:
    with Served(folders["sdar"], *FEW) as served:
        asking = Asking(served, **ENDLESS)
        served.engine.kill()
        streamed, whole = asking.get()
        assert served.process.wait(PATIENCE_S) == 1
        for answer in (streamed, whole):
            if isinstance(answer, Answer) and answer.status != 200:
                assert answer.error["type"] == "server_error"
            elif isinstance(answer, Answer):
                assert json.loads(answer.text.split("\n\n")[-2].removeprefix("data: "))["error"]["type"] == "server_error"
            else:
                assert isinstance(answer, OSError | EOFError)
        served.assert_nothing_left()
    assert [line for line in served.lines if line.startswith("error: ")] == served.lines[-1:]
    assert not any("Traceback" in line for line in served.lines)


@pytest.mark.slow
def test_killed_it_takes_its_engine_along(folders) -> None:
    with Served(folders["sdar"], *FEW) as served:
        asking = Asking(served, **ENDLESS)
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
        assert not served.engine.is_running()
        assert all(isinstance(answer, Exception) for answer in asking.get())
    assert not any("Traceback" in line for line in served.lines)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_takes_too_long_to_end_is_told_off(folders, number) -> None:
    with Served(folders["sdar"], *FEW, "server.shutdown_timeout_s=0.3") as served:
        asking = Asking(served, **ENDLESS)
        half = served.client.connect()
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        before = time.monotonic()
        assert served.stop(number) == 0
        assert time.monotonic() - before < 30
        streamed, whole = asking.get()
        assert (whole.status, whole.error["message"]) == (503, "the server has ended")
        last = json.loads(streamed.text.split("\n\n")[-2].removeprefix("data: "))
        assert last["error"] == whole.error
        with half:
            assert b" 503 " in read_all(half)[:20]
    assert served.lines[-1] == "ending; 2 answers under way"


@pytest.mark.slow
def test_a_second_signal_does_not_wait(folders) -> None:
    with Served(folders["sdar"], *FEW, "server.shutdown_timeout_s=1000") as served:
        asking = Asking(served, **ENDLESS)
        half = served.client.connect()
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        served.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert served.process.poll() is None
        before = time.monotonic()
        assert served.stop(signal.SIGINT) == 0
        assert time.monotonic() - before < 20
        _, whole = asking.get()
        assert whole.status == 503
        half.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("wait_s", [0.5, 4.0])
def test_ended_while_it_starts_it_leaves_nothing(folders, number, wait_s) -> None:
    process = start("serve", folders["sdar"], "--port", 0, "--threads", 1)
    time.sleep(wait_s)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(children, PATIENCE_S)
    assert not alive
    assert not said.count("Traceback"), said


@pytest.mark.slow
def test_keys_of_a_file_and_the_environment(folders, tmp_path) -> None:
    (tmp_path / "keys").write_text("one\n")
    words = ("--api-key-file", tmp_path / "keys")
    with Served(folders["sdar"], *FEW, *words, UNMASK_API_KEYS="two", UNMASK_ADMIN_KEY="boss") as served:
        for key, status in (("one", 200), ("two", 200), ("boss", 401), ("", 401)):
            assert served.client.with_key(key).get("/v1/models").status == status
        assert served.client.with_key("boss").post("/admin/reload", {}).data["policy_version"] == 1
        assert served.client.with_key("one").post("/admin/reload", {}).status == 401
    assert not any(secret in line for line in served.lines for secret in ("one\n", "two", "boss"))


@pytest.mark.slow
def test_an_engine_that_stands_still_is_ended_with_the_server(folders) -> None:
    """A hung forward pass, as it were: the server still answers what needs no engine, and ends when told."""
    with Served(folders["sdar"], *FEW, "server.shutdown_timeout_s=0.3", "server.request_timeout_s=2") as served:
        os.kill(served.engine.pid, signal.SIGSTOP)
        assert served.client.complete("hello").status == 504
        assert served.client.get("/health").status == 200
        assert served.stop() == 0
        assert not served.engine.is_running()
