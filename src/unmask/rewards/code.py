"""Programs, judged by their tests."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, Literal

from pydantic import Field

from unmask.errors import UnmaskError
from unmask.rewards.code_tests import CodeLimits, TestResult, run_tests
from unmask.rewards.interface import Reward, Score, is_cut, turn_text
from unmask.rewards.remote_code import RemoteSandbox
from unmask.sandbox.client import Sandbox
from unmask.types import Example, Rollout

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "py", "python3", "py3")


def extract_code(text: str) -> str | None:
    """The last block of Python between fences (of three backquotes), or of no named language; None if there is none."""
    blocks = [(language.lower(), code) for language, code in _FENCE.findall(text)]
    for languages in (_PYTHON, ("",)):
        if found := [code for language, code in blocks if language in languages]:
            return str(found[-1])
    return None


class Code(Reward):
    """The share of an example's tests that the last block of Python in the response passes."""

    class Options(CodeLimits):
        score: Literal["share", "all"] = Field(
            "share", description="share = of the tests that are passed; all = 1 only for all"
        )
        is_cut_wrong: bool = Field(True, description="a response cut at the length limit scores 0")
        num_workers: int = Field(0, ge=0, le=1024, description="programs at a time; 0 = one per processor")
        isolation: Literal["auto", "namespaces", "bubblewrap", "process"] = Field(
            "auto", description="auto = the strongest that this system grants; else no other will do"
        )
        endpoint: str = Field(
            "", description="URL of an `unmask sandbox serve` on another machine, which runs the programs instead"
        )
        endpoint_token_env: str = Field("UNMASK_SANDBOX_TOKEN", description="environment variable with that server's token")

    def __init__(self, options: Any):
        super().__init__(options)
        self.sandbox: Sandbox | RemoteSandbox | None = None

    def check(self, example: Example) -> None:
        if example.tests is None:
            raise UnmaskError(
                f"example {example.id}: has no tests; the reward `code` needs test_method and test_list or test_input"
            )

    async def start(self) -> None:
        o = self.options
        if o.endpoint:
            self.sandbox = RemoteSandbox(o.endpoint, os.environ.get(o.endpoint_token_env, ""), o.num_workers or 16)
        else:
            self.sandbox = Sandbox(o.isolation, o.num_workers or None)
        await self.sandbox.start()
        print(f"code sandbox: {self.sandbox.describe()}", file=sys.stderr, flush=True)

    async def close(self) -> None:
        if self.sandbox is not None:
            await self.sandbox.close()

    def provenance(self) -> dict[str, str]:
        """Which protections were active."""
        assert self.sandbox is not None
        return {"sandbox": self.sandbox.describe()}

    async def __call__(self, rollout: Rollout, example: Example) -> Score:
        if self.options.is_cut_wrong and is_cut(rollout):
            return Score(0.0, "cut at the length limit")
        program = extract_code(turn_text(rollout, example))
        if program is None:
            return Score(0.0, "no block of Python code")
        assert self.sandbox is not None
        assert example.tests is not None
        if isinstance(self.sandbox, RemoteSandbox):
            results = await self.sandbox.run_tests(program, example.tests, self.options)
        else:
            results = await run_tests(self.sandbox, program, example.tests, self.options)
        return self._score(results)

    def _score(self, results: list[TestResult]) -> Score:
        num_passed = sum(result.passed for result in results)
        share = num_passed / len(results)
        failed = next((result.reason for result in results if not result.passed), "")
        reason = f"{num_passed} of {len(results)} tests passed" + (f"; {failed}" if failed else "")
        return Score(share if self.options.score == "share" else float(share == 1), reason, parts={"tests_passed": share})
