"""The reward `code`: which part of a response is the program, what its tests make of it, here and on another machine."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request

import pytest

from tests.rewards.responses import rollout
from unmask import UnmaskError
from unmask.rewards.code import Code, extract_code
from unmask.rewards.interface import Score
from unmask.rewards.remote_code import make_server
from unmask.types import CodeTests, Example, Message

TESTS = CodeTests(
    test_method="function", test_list=("assert f(1) == 2", "assert f(2) == 3", "assert f(-1) == 0", "assert f(0) == 5")
)
EXAMPLE = Example(id="q", messages=(Message(role="user", content="f adds 1"),), tests=TESTS)
RIGHT = "Here it is:\n```python\ndef f(x):\n    return x + 1\n```\nDone."


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (RIGHT, "def f(x):\n    return x + 1\n"),
        ("```python\na\n```\nbetter:\n```python\nb\n```", "b\n"),
        ("```python\na\n```\nIts output:\n```\n3\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```cpp\na\n```", None),
        ("```Python3\na\n```", "a\n"),
        ("```py\na", "a"),  # never closed
        ("  ```python\n  a\n  ```", "  a\n"),
        ('```python\ns = "```"\nb\n```', 's = "```"\nb\n'),
        ("def f(): pass", None),
        ("```python\n```", ""),
        ("", None),
    ],
)
def test_the_last_block_of_python(text: str, code: str | None) -> None:
    assert extract_code(text) == code


def score(text: str, finish: str = "stop", example: Example = EXAMPLE, **options: object) -> Score:
    async def run() -> Score:
        reward = Code(Code.Options(**options))
        reward.check(example)
        await reward.start()
        try:
            return await reward(rollout(text, finish), example)
        finally:
            await reward.close()

    return asyncio.run(run())


def test_share_of_tests_passed(capfd) -> None:
    assert score(RIGHT) == Score(0.75, "3 of 4 tests passed; AssertionError in assert f(0) == 5", None, {"tests_passed": 0.75})
    assert score(RIGHT, score="all").reward == 0.0
    assert "code sandbox: " in capfd.readouterr().err
    assert score("no code")[:2] == (0.0, "no block of Python code")
    assert score(RIGHT, finish="length")[:2] == (0.0, "cut at the length limit")
    assert score(RIGHT, finish="length", is_cut_wrong=False).reward == 0.75


def test_an_example_without_tests_is_refused() -> None:
    with pytest.raises(UnmaskError, match=r"example q: has no tests; the reward `code` needs"):
        score(RIGHT, example=EXAMPLE.model_copy(update={"tests": None}))


@pytest.fixture
def server():
    made = make_server("127.0.0.1", 0, "secret")
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


def test_on_another_machine_as_here(server: str, monkeypatch, capfd) -> None:
    monkeypatch.setenv("UNMASK_SANDBOX_TOKEN", "secret")
    stdio = CodeTests(
        test_method="stdio", test_input=("1", "2"), test_output=("1.0", "3"), float_tolerance=0.1, test_time_limit=5
    )
    example = EXAMPLE.model_copy(update={"tests": stdio})
    for options in ({}, {"endpoint": server}):
        assert score(RIGHT, **options).reason == "3 of 4 tests passed; AssertionError in assert f(0) == 5"
        assert score("```python\nprint(input())\n```", example=example, **options).reward == 0.5
        slow = "```python\nwhile True: pass\n```"
        assert "time limit of 0.2 s" in score(slow, time_s=0.2, **options).reason
    assert f"code sandbox: {server}: " in capfd.readouterr().err


def test_a_server_that_refuses(server: str, monkeypatch) -> None:
    monkeypatch.setenv("UNMASK_SANDBOX_TOKEN", "wrong")
    with pytest.raises(UnmaskError, match=r"refused with 401 .*wrong or no token"):
        score(RIGHT, endpoint=server)


@pytest.mark.parametrize("body", [b"no json", b"{}", b'{"program": "x", "tests": {}, "limits": {}}', b"[1]"])
def test_a_bad_request(server: str, body: bytes) -> None:
    request = urllib.request.Request(f"{server}/run", body, {"Authorization": "Bearer secret"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=30)
    assert error.value.code == 400
    assert json.load(error.value)["error"]


def test_no_server_there(monkeypatch) -> None:
    monkeypatch.setattr("unmask.rewards.remote_code._PAUSE_S", 0.0)
    with pytest.raises(UnmaskError, match="no code sandbox answers there"):
        score(RIGHT, endpoint="http://127.0.0.1:9")
