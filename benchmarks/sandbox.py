"""Short programs in the sandbox: how many a second, against a fresh interpreter for each, and how many right ones fail.

The programs read two numbers and print their sum; half of them also import a module or two. With `--busy N`, N processes spin
beside them and want the processors, too: a limit of time must then count what a program does, not what it waits for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator

from unmask.rewards.code_tests import CodeLimits, run_tests
from unmask.sandbox.client import Sandbox
from unmask.types import CodeTests

PROGRAMS = (
    "a, b = map(int, input().split())\nprint(a + b)",
    "import sys\nfrom collections import deque\nxs = deque(map(int, sys.stdin.read().split()))\nprint(sum(xs))",
    "a, b = map(int, input().split())\nx = 0\nfor i in range(20000): x += i\nprint(a + b)",
    "import heapq, math, re\na, b = map(int, re.findall('[0-9]+', input()))\nprint(a + b)",
)


@contextlib.contextmanager
def spinning(num: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def in_sandbox(num: int, isolation: str, workers: int, time_s: float) -> tuple[float, Counter[str], str]:
    """Seconds, warm; reasons of failure; the sandbox's own description."""
    limits, failures = CodeLimits(time_s=time_s), Counter[str]()
    async with Sandbox(isolation, workers) as sandbox:  # type: ignore[arg-type]

        async def run(i: int) -> None:
            tests = CodeTests(test_method="stdio", test_input=(f"{i} {i + 1}\n",), test_output=(str(2 * i + 1),))
            (result,) = await run_tests(sandbox, PROGRAMS[i % len(PROGRAMS)], tests, limits)
            if not result.passed:
                failures[result.reason] += 1

        begin = time.perf_counter()
        await asyncio.gather(*map(run, range(num)))
        return time.perf_counter() - begin, failures, sandbox.describe()


async def in_fresh_interpreters(num: int, workers: int, time_s: float) -> tuple[float, Counter[str]]:
    """One `python program.py` for each, the same number at a time, its limit by the clock."""
    slots, failures = asyncio.Semaphore(workers), Counter[str]()

    async def run(i: int, folder: str) -> None:
        async with slots:
            process = await asyncio.create_subprocess_exec(
                sys.executable, f"{folder}/{i % len(PROGRAMS)}.py", stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            try:
                out, _ = await asyncio.wait_for(process.communicate(f"{i} {i + 1}\n".encode()), time_s)
                if out.split() != [str(2 * i + 1).encode()]:
                    failures["wrong"] += 1
            except TimeoutError:
                process.kill()
                await process.wait()
                failures[f"time limit of {time_s:g} s"] += 1

    with tempfile.TemporaryDirectory() as folder:
        for i, program in enumerate(PROGRAMS):
            with open(f"{folder}/{i}.py", "w") as file:
                file.write(program)
        begin = time.perf_counter()
        await asyncio.gather(*(run(i, folder) for i in range(num)))
        return time.perf_counter() - begin, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--time-limit", type=float, default=1.0, help="seconds, of each program")
    parser.add_argument("--busy", type=int, default=0, help="processes that spin meanwhile")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="programs at a time")
    parser.add_argument("--isolation", default="auto", choices=["auto", "namespaces", "bubblewrap", "process"])
    args = parser.parse_args()
    with spinning(args.busy):
        seconds, failures, what = asyncio.run(in_sandbox(args.programs, args.isolation, args.workers, args.time_limit))
        base_s, base_failures = asyncio.run(in_fresh_interpreters(args.programs, args.workers, args.time_limit))
    print(
        f"{args.programs} right programs, {args.workers} at a time, limit {args.time_limit:g} s, {args.busy} processes spinning"
    )
    print(f"sandbox: {what}")
    for name, value, failed in (("fresh interpreter, no limits", base_s, base_failures), ("sandbox, warm", seconds, failures)):
        rate = args.programs / value
        print(
            f"  {name:<30} {value:7.1f} s   {rate:7.1f} programs/s   {base_s / value:5.2f}x   {failed.total()} false failures"
        )
        for reason, count in failed.most_common(5):
            print(f"    {count} x {reason}")


if __name__ == "__main__":
    main()
