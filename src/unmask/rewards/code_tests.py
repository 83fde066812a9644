"""Unit tests of programs: which of them a program passes, and why not the others."""

from __future__ import annotations

import asyncio
import atexit
import math
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from unmask.config import check
from unmask.rewards.background import BackgroundLoop
from unmask.rewards.interface import RewardOptions
from unmask.sandbox.client import Sandbox
from unmask.sandbox.jail import Bounds
from unmask.sandbox.keeper import Outcome
from unmask.types import CodeTests

_LONGEST_NUMBER, _LONGEST_REASON = 40, 300


class TestResult(NamedTuple):
    """Of one test. reason: in a few words; "passed" if it has."""

    passed: bool
    reason: str


TestResult.__test__ = False  # type: ignore[attr-defined]  # pytest takes what is called like this for tests of its own


class CodeLimits(RewardOptions):
    """What a program may use in one test."""

    time_s: float = Field(
        1.0, gt=0, le=3600, description="seconds of processor time and by the clock, where a test has no limit of its own"
    )
    memory_mb: int = Field(1024, ge=32, le=2**20, description="of all processes of the program together")
    num_processes: int = Field(32, ge=1, le=1024, description="processes and threads at a time")
    file_mb: int = Field(64, ge=1, le=2**16, description="files that the program writes, together")
    output_mb: int = Field(16, ge=1, le=1024, description="what it prints")

    def bounds(self, own_time_s: float | None) -> Bounds:
        """own_time_s: the limit that a test has of its own, which then counts."""
        time_s = own_time_s or self.time_s
        return Bounds(time_s, self.memory_mb, self.num_processes, self.file_mb, self.output_mb)


async def run_tests(sandbox: Sandbox, program: str, tests: CodeTests, limits: CodeLimits) -> list[TestResult]:
    """One result per test, in order. Each test runs the program afresh."""
    bounds = limits.bounds(tests.test_time_limit)
    if tests.test_method == "function":
        runs = [_run_function(sandbox, program, test, tests.prefix, bounds) for test in tests.test_list]
    else:
        pairs = zip(tests.test_input, tests.test_output, strict=True)
        runs = [_run_stdio(sandbox, program, *pair, tests.float_tolerance, bounds) for pair in pairs]
    return list(await asyncio.gather(*runs))


def run_code_tests(
    program: str,
    tests: CodeTests | Mapping[str, Any] | Sequence[CodeTests | Mapping[str, Any]],
    limits: CodeLimits | Mapping[str, Any] | None = None,
) -> list[TestResult]:
    """Runs a program, which nobody needs to trust, on its tests: one result per test, in order.

    tests: `CodeTests`, or a mapping with its fields (others are ignored, as in a data set's row), or several of these. A
    `function` test counts only if its code came to its end, in a process that the program cannot reach, with what the program
    returned; a `stdio` test only if the program ended by itself with exit code 0 and printed the expected words.

    Raises `UnmaskError` for tests or limits that are none, and where programs cannot be run at all.
    """
    several = [tests] if isinstance(tests, CodeTests | Mapping) else list(tests)
    checked = [_check_tests(each) for each in several]
    bounds = limits if isinstance(limits, CodeLimits) else check(CodeLimits, dict(limits or {}), "limits")

    shared = _shared_sandbox()

    async def run() -> list[TestResult]:
        return [result for each in checked for result in await run_tests(shared.sandbox, program, each, bounds)]

    return shared.loop.run(run())


def _check_tests(tests: CodeTests | Mapping[str, Any]) -> CodeTests:
    if isinstance(tests, CodeTests):
        return tests
    return check(CodeTests, {name: tests[name] for name in CodeTests.model_fields if name in tests}, "tests")


async def _run_function(sandbox: Sandbox, program: str, test: str, prefix: str, bounds: Bounds) -> TestResult:
    tested = await sandbox.run_test(program, test, prefix, bounds)
    if (stopped := describe_stop(tested.outcome, bounds)) is not None:
        return TestResult(False, stopped)
    return TestResult(tested.passed, _clean(tested.reason))


async def _run_stdio(
    sandbox: Sandbox, program: str, given: str, expected: str, tolerance: float | None, bounds: Bounds
) -> TestResult:
    ran = await sandbox.run_script(program, given, bounds)
    if (stopped := describe_stop(ran.outcome, bounds)) is not None:
        return TestResult(False, stopped)
    if (code := ran.outcome.exit_code) != 0:
        last = (ran.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
        how = "it ended without an exit code" if code is None else f"exit code {code}" if code > 0 else f"signal {-code}"
        return TestResult(False, _clean(f"{how}: {last}") if last else how)
    difference = find_difference(ran.stdout.decode(errors="replace"), expected, tolerance)
    return TestResult(difference is None, difference or "passed")


def _clean(reason: str) -> str:
    """As it can be written to files and terminals: it may quote the program."""
    return "".join(char if char.isprintable() else "?" for char in reason[:_LONGEST_REASON])


def describe_stop(outcome: Outcome, bounds: Bounds) -> str | None:
    """Why the program was ended from outside; None if it was not."""
    return {
        "time": f"time limit of {bounds.time_s:g} s",
        "memory": f"memory limit of {bounds.memory_mb} MB",
        "processes": f"limit of {bounds.num_processes} processes",
        "output": f"output limit of {bounds.output_mb} MB",
        "setup": "the sandbox could not run it",
    }.get(outcome.stopped_for)


def find_difference(found: str, expected: str, tolerance: float | None = None) -> str | None:
    """The first difference between the words of two outputs, white space aside; None if there is none.

    tolerance: two words that are both finite numbers are equal if they differ by at most so much, absolutely or relative to
    the larger one.
    """
    wanted = expected.split()
    words = found.split(None, len(wanted))  # and the rest in one: an output of millions of words delays nobody
    for i, (word, want) in enumerate(zip(words, wanted, strict=False)):
        if word != want and not (tolerance is not None and _are_close(word, want, tolerance)):
            return f"word {i + 1} of the output is {word[:60]!r}, expected {want[:60]!r}"
    if len(words) != len(wanted):
        return f"the output has {'more' if len(words) > len(wanted) else len(words)} words, expected {len(wanted)}"
    return None


def _are_close(word: str, want: str, tolerance: float) -> bool:
    try:
        a, b = (float(text) for text in (word, want) if len(text) <= _LONGEST_NUMBER and "_" not in text)
    except ValueError:  # no numbers, or too long to be one
        return False
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


class _Shared:
    """A sandbox, and the event loop that it lives in, for all calls of `run_code_tests` of this process."""

    def __init__(self) -> None:
        self.pid, self.loop, self.sandbox = os.getpid(), BackgroundLoop(), Sandbox()
        try:
            self.loop.run(self.sandbox.start())
        except BaseException:
            self.loop.close()
            raise
        atexit.register(self.close)

    def close(self) -> None:
        if self.pid == os.getpid():
            self.loop.run(self.sandbox.close())
            self.loop.close()


_shared: _Shared | None = None
_starting = threading.Lock()


def _shared_sandbox() -> _Shared:
    global _shared
    with _starting:
        if _shared is None or _shared.pid != os.getpid():  # a forked process has no thread of its parent's
            _shared = _Shared()
        return _shared


def describe_sandbox() -> str:
    """What protects this machine from the programs that `run_code_tests` runs. Raises `UnmaskError` where none can be run."""
    return _shared_sandbox().sandbox.describe()
