"""Reference solutions pass their tests, and fail those whose meaning is turned around; outputs are compared word by word."""

from __future__ import annotations

import ast
import asyncio
import json
import sys
from pathlib import Path

import pytest

from unmask import UnmaskError
from unmask.rewards.code_tests import CodeLimits, TestResult, find_difference, run_code_tests, run_tests
from unmask.sandbox.client import Sandbox
from unmask.types import CodeTests

CODE = Path(__file__).parents[3] / "shared" / "data" / "code"
needs_data = pytest.mark.skipif(not CODE.exists(), reason="the benchmarks are not beside the project (shared/data/code)")
NEAR_ENOUGH = {"closest_pick", "sheepwalking", "yeetzhee"}  # answers to within 1e-6


def human_eval() -> list[tuple[str, str, list[str], str]]:
    """(name, reference solution, tests, prefix) of each task."""
    rows = [json.loads(line) for line in (CODE / "HumanEval.jsonl").read_text().splitlines()]
    return [
        (row["task_id"], row["prompt"] + row["canonical_solution"], [f"{row['test']}\ncheck({row['entry_point']})"], "")
        for row in rows
    ]


def mbpp() -> list[tuple[str, str, list[str], str]]:
    rows = json.loads((CODE / "mbpp_sanitized.json").read_text())
    return [(str(row["task_id"]), row["code"], row["test_list"], "\n".join(row["test_imports"])) for row in rows]


def with_one_assert_negated(test: str, number: int) -> tuple[str, int]:
    """The test code with its assert of this number (modulo how many there are) negated; and how many there are."""
    tree = ast.parse(test)
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    chosen = asserts[number % len(asserts)]
    chosen.test = ast.UnaryOp(ast.Not(), chosen.test)
    return ast.unparse(ast.fix_missing_locations(tree)), len(asserts)


def run_all(jobs: list[tuple[str, CodeTests]]) -> list[list[TestResult]]:
    async def run() -> list[list[TestResult]]:
        async with Sandbox() as sandbox:
            limits = CodeLimits(time_s=10.0)
            return await asyncio.gather(*(run_tests(sandbox, program, tests, limits) for program, tests in jobs))

    return asyncio.run(run())


def function_tests(tests: list[str], prefix: str) -> CodeTests:
    return CodeTests(test_method="function", test_list=tuple(tests), prefix=prefix)


def joined(tasks: list[tuple[str, str, list[str], str]]) -> list[tuple[str, str, list[str], str]]:
    """All tests of a task as one, which runs the program once."""
    return [(name, program, ["\n".join(tests)], prefix) for name, program, tests, prefix in tasks]


@needs_data
@pytest.mark.parametrize(
    ("tasks", "num_tasks", "num_tests"),
    [
        pytest.param(lambda: human_eval()[::4], 41, 41, id="human_eval, one in four"),
        pytest.param(lambda: joined(mbpp())[::5], 86, 86, id="mbpp, one in five"),
        pytest.param(human_eval, 164, 164, id="human_eval", marks=pytest.mark.slow),
        pytest.param(lambda: joined(mbpp()), 427, 427, id="mbpp", marks=pytest.mark.slow),
        pytest.param(mbpp, 427, 1324, id="mbpp, test by test", marks=pytest.mark.slow),
    ],
)
def test_references_pass_and_their_opposites_fail(tasks, num_tasks: int, num_tests: int) -> None:
    tasks = tasks()
    results = run_all([(program, function_tests(tests, prefix)) for _, program, tests, prefix in tasks])
    wrong = {task[0]: got for task, got in zip(tasks, results, strict=True) if not all(result.passed for result in got)}
    assert not wrong
    assert (len(tasks), sum(map(len, results))) == (num_tasks, num_tests)
    jobs = []
    for number, (_, program, tests, prefix) in enumerate(tasks):
        negated, num_asserts = with_one_assert_negated(tests[number % len(tests)], number)
        if num_asserts:
            jobs.append((program, function_tests([negated], prefix)))
    assert len(jobs) == num_tasks
    assert not any(got[0].passed for got in run_all(jobs))


@needs_data
def test_reference_outputs_of_code_jam_pass() -> None:
    """A program that prints what is expected, on every input of every problem; with one word changed it fails."""
    jobs, wrong = [], []
    for problem in json.loads((CODE / "codejam" / "MANIFEST.derived.json").read_text()):
        folder = CODE / "codejam" / problem["path"]
        tolerance = 1e-6 if folder.name in NEAR_ENOUGH else None
        for name in problem["tests"]:
            given, expected = (folder / name).read_text(), (folder / name).with_suffix(".ans").read_text()
            tests = CodeTests(test_method="stdio", test_input=(given,), test_output=(expected,), float_tolerance=tolerance)
            printed = f"import sys\nassert sys.stdin.read() == {given!r}\nprint({expected!r})"
            jobs.append((printed, tests))
            words = expected.split()
            wrong.append((f"print({' '.join([*words[:-1], words[-1] + 'x'])!r})", tests))
    assert len(jobs) == 99
    assert [got[0].reason for got in run_all(jobs)] == ["passed"] * 99
    assert not any(got[0].passed for got in run_all(wrong))


def stdio(program: str, given: str = "", expected: str = "", **limits: object) -> TestResult:
    tests = {"test_method": "stdio", "test_input": [given], "test_output": [expected], "question": "of the row, ignored"}
    (result,) = run_code_tests(program, tests, limits)
    return result


def test_reasons_say_what_happened() -> None:
    assert stdio("print(int(input()) * 2)", "21\n", "42\n") == (True, "passed")
    assert stdio("print(int(input()) * 3)", "21\n", "42\n") == (False, "word 1 of the output is '63', expected '42'")
    assert stdio("print(1, 2)", "", "1 2 3") == (False, "the output has 2 words, expected 3")
    assert stdio("print('1 ' * 10 ** 6)", "", "1 1 1") == (False, "the output has more words, expected 3")
    assert stdio("print(42); 1 / 0", "", "42") == (False, "exit code 1: ZeroDivisionError: division by zero")
    assert stdio("print(42); raise SystemExit(3)", "", "42") == (False, "exit code 3")
    assert stdio("print(42); import os; os.kill(os.getpid(), 9)", "", "42") == (False, "signal 9")
    assert stdio("print(42", "", "42").reason.startswith("exit code 1: SyntaxError")
    assert stdio("while True: pass", time_s=0.3) == (False, "time limit of 0.3 s")
    assert stdio("print(42, flush=True)\nwhile True: pass", "", "42", time_s=0.3) == (False, "time limit of 0.3 s")
    got = run_code_tests(
        "def f(x): return x + 1",
        {"test_method": "function", "test_list": ["assert f(1) == 2", "assert f(1) == 3", "assert g(1) == 2", "assert f('1')"]},
    )
    assert [result.passed for result in got] == [True, False, False, False]
    assert [result.reason for result in got[1:]] == [
        "AssertionError in assert f(1) == 3",
        "NameError: the program defines nothing that the test uses",
        "TypeError: can only concatenate str (not \"int\") to str in assert f('1')",
    ]


def test_reasons_can_be_printed_and_written() -> None:
    """Whatever a program says of itself: control sequences, half characters."""
    got = stdio("raise SystemExit('\\x1b[2J\\ud800 x')").reason
    assert got == "exit code 1: ?[2J\\ud800 x"
    tests = {"test_method": "function", "test_list": ["assert f() == 1"]}
    (result,) = run_code_tests("def f(): raise ValueError('\\x1b[2J\\ud800 x')", tests)
    assert result.reason == "ValueError: ?[2J? x in assert f() == 1"


@pytest.mark.skipif(sys.platform != "linux", reason="system calls of Linux")
def test_memory_of_a_process_whose_first_thread_has_ended_is_counted() -> None:
    # The waits are ended by the limit, however long a busy machine takes to get there.
    fill = "def fill():\n    time.sleep(0.3)\n    x = bytearray(b'x' * 40_000_000)\n    time.sleep(20)\n"
    end_thread = "ctypes.CDLL(None).syscall(60 if platform.machine() == 'x86_64' else 93, 0)"
    fork = f"    if os.fork() == 0:\n        threading.Thread(target=fill).start()\n        {end_thread}\n"
    program = f"import ctypes, os, platform, threading, time\n{fill}for _ in range(4):\n{fork}time.sleep(20)\nprint(1)"
    assert stdio(program, "", "1", memory_mb=100, time_s=30.0) == (False, "memory limit of 100 MB")


def test_several_tasks_and_limits_of_their_own() -> None:
    """A test's own time limit is the one that counts."""
    tests = [
        CodeTests(test_method="stdio", test_input=("1", "2"), test_output=("1", "3"), test_time_limit=5.0),
        {"test_method": "function", "test_list": ["assert True"]},
    ]
    program = "import time, sys\nif sys.argv: time.sleep(0.3)\nprint(input() if __name__ == '__main__' else '')"
    assert [result.passed for result in run_code_tests(program, tests, {"time_s": 0.1})] == [True, False, False]


@pytest.mark.parametrize(
    ("tests", "limits", "message"),
    [
        ({"test_method": "function"}, {}, "tests of the method function should have test_list"),
        ({"test_method": "stdio", "test_input": ["1"], "test_output": []}, {}, "equally many, at least one; found 1 and 0"),
        ({"test_list": ["assert True"]}, {}, "tests: key 'test_method' is missing"),
        ({"test_method": "pipe", "test_list": ["assert True"]}, {}, "tests: test_method"),
        ({"test_method": "function", "test_list": ["assert True"]}, {"seconds": 1}, "limits: unknown key 'seconds'"),
        ({"test_method": "function", "test_list": ["assert True"]}, {"memory_mb": 1}, "limits: memory_mb"),
    ],
)
def test_what_is_no_test_is_refused(tests: dict, limits: dict, message: str) -> None:
    with pytest.raises(UnmaskError, match=message):
        run_code_tests("x = 1", tests, limits)


@pytest.mark.parametrize(
    ("found", "expected", "tolerance", "same"),
    [
        ("1  2\n3", "1 2 3\n", None, True),
        ("1.0", "1", None, False),
        ("1.0000001", "1", 1e-6, True),
        ("1000000.5", "1000000", 1e-6, True),
        ("1.00001", "1", 1e-6, False),
        ("nan", "1", 1e-6, False),
        ("inf", "1e400", 1e-6, True),
        ("inf", "1", 1e-6, False),
        ("1_0", "10", 1e-6, False),
        ("Case #1: x", "Case #1: x", 1e-6, True),
        ("Yes", "YES", None, False),
        ("", "", None, True),
        ("", "0", None, False),
        ("0 0", "0", None, False),
    ],
)
def test_words_are_compared(found: str, expected: str, tolerance: float | None, same: bool) -> None:
    assert (find_difference(found, expected, tolerance) is None) == same
