"""Programs that would pass without being right, or do harm: none may."""

from __future__ import annotations

import asyncio
import textwrap
import time
from typing import NamedTuple

import pytest

from tests.sandbox import attacks
from tests.sandbox.arena import Arena, below, new_sandbox, start
from unmask.rewards.code_tests import CodeLimits, run_tests
from unmask.sandbox.client import Sandbox
from unmask.types import CodeTests

LIMITS = CodeLimits(time_s=0.3, memory_mb=128, num_processes=8, file_mb=8, output_mb=2)
LONGEST_S = LIMITS.time_s + 3.0  # of a job, on a machine that also runs three others of them and their neighbour
NUM_WORKERS = 4
STDIO = CodeTests(test_method="stdio", test_input=("3\n",), test_output=("4711 3.25\n",), float_tolerance=1e-6)
NEIGHBOUR = "n = int(input())\nprint(sum(range(n)))"


class Job(NamedTuple):
    name: str
    program: str
    tests: CodeTests


class Report(NamedTuple):
    passed: list[str]
    slow: list[str]
    neighbours: list[str]  # the reason of each result
    changes: list[str]
    left: list[str]


def functions(*tests: str) -> CodeTests:
    return CodeTests(test_method="function", test_list=tests)


def any_of(tests: list[str]) -> str:
    """Test code that is passed by whoever passes one of these."""
    return "\n".join(
        [
            "passed = False",
            *(f"try:\n{textwrap.indent(test, '    ')}\n    passed = True\nexcept Exception: pass" for test in tests),
            "assert passed",
        ]
    )


def jobs(*, is_thorough: bool) -> list[Job]:
    every = list(attacks.TESTS.values())
    few = [
        attacks.TESTS[name]
        for name in (
            "equal",
            "close",
            "isclose",
            "is one of",
            "contains",
            "sorted",
            "no arguments",
            "builtin",
            "builtin in a function",
            "with",
        )
    ]
    found = []
    for name, code in attacks.AT_IMPORT.items():
        program = attacks.at_import(code)
        is_about_results = name.startswith(("evil", "other result", "forged"))
        tests = every if is_about_results and is_thorough else few if is_about_results or is_thorough else few[:1]
        if not is_thorough and name.startswith(("evil", "other result")):  # which do not answer out of turn
            tests = [any_of([test for test in few if "f(" in test])]
        found.append(Job(f"{name}, stdio", program, STDIO))
        found += [Job(f"{name}, {test.splitlines()[-1]}", program, functions(test)) for test in tests]
    for name, code in attacks.IN_CALL.items():
        program = attacks.in_call(code)
        tests = [
            *(every[:3] if is_thorough else every[:1]),
            *(attacks.EXCEPTION_TESTS.values() if name.startswith("exit") else ()),
        ]
        if is_thorough:
            found.append(Job(f"{name} in a call, stdio", program, STDIO))
        found += [Job(f"{name} in a call, {test}", program, functions(test)) for test in tests]
    return found


async def attack(sandbox: Sandbox, arena: Arena, todo: list[Job]) -> Report:
    await start(sandbox)
    slots, passed, slow, neighbours = asyncio.Semaphore(NUM_WORKERS - 1), [], [], []

    async def run(job: Job) -> None:
        async with slots:
            begin = time.monotonic()
            results = await run_tests(sandbox, arena.place(job.program), job.tests, LIMITS)
            if (seconds := time.monotonic() - begin) > LONGEST_S:
                slow.append(f"{job.name}: {seconds:.1f} s")
            passed.extend(job.name for result in results if result.passed)

    async def live_next_door() -> None:
        tests = CodeTests(test_method="stdio", test_input=("1000\n",), test_output=("499500",))
        while not is_over:
            neighbours.extend(r.reason for r in await run_tests(sandbox, NEIGHBOUR, tests, CodeLimits(time_s=1.0)))

    is_over = False
    neighbour = asyncio.create_task(live_next_door())
    try:
        await asyncio.gather(*(run(job) for job in todo))
        is_over = True
        await neighbour
        assert sandbox._connection is not None
        server = sandbox._connection.server.pid
        await asyncio.sleep(0.2)
        left = [str(process) for process in below(server)]
    finally:
        await sandbox.close()
    return Report(passed, slow, neighbours, arena.changes(), left)


def check(report: Report) -> None:
    assert not report.passed
    assert not report.left
    assert not report.changes
    assert not report.slow
    assert set(report.neighbours) == {"passed"}


def test_no_attack_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    with Arena(monkeypatch) as arena:
        check(asyncio.run(attack(new_sandbox("namespaces", monkeypatch, NUM_WORKERS), arena, jobs(is_thorough=False))))


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["bubblewrap", "process"])
def test_no_attack_succeeds_without_our_namespaces(isolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Arena(monkeypatch) as arena:
        check(asyncio.run(attack(new_sandbox(isolation, monkeypatch, NUM_WORKERS), arena, jobs(is_thorough=False))))


@pytest.mark.slow
def test_no_attack_succeeds_on_any_test(monkeypatch: pytest.MonkeyPatch) -> None:
    with Arena(monkeypatch) as arena:
        check(asyncio.run(attack(new_sandbox("namespaces", monkeypatch, NUM_WORKERS), arena, jobs(is_thorough=True))))


# name -> (program, test code): words that the test code means as Python does, replaced by a program that is wrong.
REPLACED_WORDS = {
    "range, and no function": ("def range(*a): return []", "for i in range(3):\n    assert f(i) == 4711"),
    "isinstance, and no function": ("def isinstance(*a): return False", "if isinstance(3, int):\n    assert f(3) == 4711"),
    "len, and no function": ("def len(x): return 0", "x = [1, 2]\nwhile len(x) > 0:\n    assert f(x.pop()) == 4711"),
    "a module, and no function": (
        "class M:\n    def product(self, *a): return []\nitertools = M()",
        "for a, b in itertools.product([1], [2]):\n    assert f(a, b) == 4711",
    ),
    "zip": ("def pow(a, b): return 0\ndef zip(*a): return []", "for x, y in zip([2, 3], [4, 9]):\n    assert pow(x, 2) == y"),
    "all": ("def pow(a, b): return 0\ndef all(x): return True", "assert all([pow(2, 3) == 6])"),
    "abs": ("def pow(a, b): return 0\ndef abs(x): return 0", "assert abs(pow(2, 3) - 6) < 1e-6"),
    "math": (
        "class M:\n    def isclose(self, *a): return True\nmath = M()\ndef pow(a, b): return 0",
        "assert math.isclose(pow(2, 3), 6)",
    ),
    "isnan": ("def isnan(x): return True\ndef f(x): return 0", "assert isnan(f(3))"),
    "arguments": (attacks.AT_IMPORT["forged: changed arguments and a value"], "x = [3, 1]\nassert f(x) == sorted(x)"),
    "nan": ("class N:\n    def __eq__(self, o): return True\nnan = N()\ndef f(x): return nan", "assert f(3) == nan"),
}


# Test code that leaves its tests to a runner.
LEFT_TO_A_RUNNER = {
    "pytest": "def test_f():\n    assert f(3) == 4711",
    "a class for pytest": "class TestF:\n    def test_f(self): assert f(3) == 4711",
    "async": "async def test_f():\n    assert f(3) == 4711",
    "fixtures": "def test_f(x):\n    assert f(3) == 4711",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertEqual(f(3), 4711)",
    "unittest, an error": "from unittest import *\nclass T(TestCase):\n    def test_f(self): f(3) / 0\nmain(exit=False)",
    "a script": "def main():\n    assert f(3) == 4711\nif __name__ == '__main__':\n    main()",
}


def test_tests_that_are_defined_are_run() -> None:
    async def go() -> list[str]:
        async with Sandbox("auto", 2) as sandbox:
            limits = CodeLimits(time_s=2.0)
            todo = (run_tests(sandbox, "def f(x): return 0", functions(test), limits) for test in LEFT_TO_A_RUNNER.values())
            results = await asyncio.gather(*todo)
        return [name for name, (result,) in zip(LEFT_TO_A_RUNNER, results, strict=True) if result.passed]

    assert asyncio.run(go()) == []


def test_words_of_the_test_code_keep_their_meaning() -> None:
    async def go() -> list[str]:
        async with Sandbox("auto", 2) as sandbox:
            todo = (run_tests(sandbox, program, functions(test), LIMITS) for program, test in REPLACED_WORDS.values())
            results = await asyncio.gather(*todo)
        return [name for name, (result,) in zip(REPLACED_WORDS, results, strict=True) if result.passed]

    assert asyncio.run(go()) == []
