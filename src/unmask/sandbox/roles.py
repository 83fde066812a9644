"""The last steps before a program, or test code, runs: rights are given up, and the server's modules forgotten."""

from __future__ import annotations

import json
import os
import sys
import time

from unmask.sandbox import evaluator, jail, program
from unmask.sandbox.jail import Bounds

ROLES = {"script": program.run_script, "functions": program.serve_functions, "tests": evaluator.run_tests}


def begin(
    role: str, report: int, bounds: Bounds, isolation: str, readable: list[str], writable: list[str], memory: int,
    has_own_count: bool,
) -> None:  # fmt: skip
    """Does not return, but for errors of the set-up. report: descriptor that is told that the program begins; those before it
    are the role's. memory: address space in use. has_own_count: the user's number of processes is that of this job."""
    run = ROLES[role]
    os.environ["HOME"] = os.environ["TMPDIR"] = os.getcwd()
    jail.limit(bounds, memory, has_own_count)
    missing = jail.close(isolation, readable, writable)
    for name in [name for name in sys.modules if name.partition(".")[0] == "unmask"]:
        del sys.modules[name]  # the functions below stay alive, out of sight
    os.write(report, json.dumps({"missing": missing, "started_at": time.monotonic()}).encode() + b"\n")
    os.close(report)
    run()


def begin_cold(words: list[str]) -> None:
    """The same in an interpreter of its own, which bubblewrap has started. words: after the first, the role, the number of its
    descriptors, and the bounds."""
    _, role, num, bounds = words
    begin(role, int(num), Bounds(**json.loads(bounds)), "bubblewrap", [], [], 0, True)
