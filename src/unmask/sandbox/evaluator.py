"""The test code's process. Expected values are here and nowhere near the program, which is called over a pipe."""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import socket
import traceback
from typing import Any, NoReturn

from unmask.sandbox.remote import Program
from unmask.sandbox.wire import Channel, ClosedError

SOURCE_FD, CHANNEL_FD, RESULT_FD = 3, 4, 5
NAME = "test code"


def run_tests() -> NoReturn:
    """Runs one piece of test code. Only when it comes to its end has the test passed, and the result says so."""
    with open(SOURCE_FD, encoding="utf-8") as file:
        job = json.load(file)
    try:
        _run(job["test"], job["prefix"], Channel(socket.socket(fileno=CHANNEL_FD)))
        result = {"passed": True, "reason": "passed"}
    except BaseException as error:
        result = {"passed": False, "reason": _describe(error, job["test"])}
    os.write(RESULT_FD, json.dumps(result).encode())
    os._exit(0)


def _run(test: str, prefix: str, channel: Channel) -> None:
    greeting = channel.receive()
    if "failed" in greeting:
        raise ClosedError(f"does not run: {greeting['failed']}")
    code = compile(test, NAME, "exec")
    namespace = _trusted(prefix)
    _add_names(namespace, test, Program(channel))
    exec(code, namespace)


def _trusted(prefix: str) -> dict[str, Any]:
    """The functions and imports that stand before the program, from here and not from a program that may have replaced them.

    Without classes, whose objects are the program's, and functions without a body, which the program should write.
    """
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        body = ast.parse(prefix).body
        exec(compile(prefix, "prefix", "exec"), namespace)
    except Exception:
        return {"__name__": "tests"}  # the beginning of a program that is not complete by itself
    for node in body:
        if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and _has_no_body(node)):
            namespace.pop(node.name, None)
    return namespace


def _has_no_body(function: ast.FunctionDef) -> bool:
    return all(
        isinstance(line, ast.Pass | ast.Raise) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        for line in function.body
    )


def _add_names(namespace: dict[str, Any], test: str, program: Program) -> None:
    """The program's globals that the test code speaks of. What has a meaning without the program keeps it, unless nothing in
    the test is the program's: then a function is tested that is called like a builtin."""
    words = {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    own = sorted(word for word in words if word not in namespace and not hasattr(builtins, word))
    found = {}
    for word in own:
        with contextlib.suppress(NameError):
            found[word] = program.look_up(word)
    if not found:
        for word in sorted(word for word in words if hasattr(builtins, word)):
            with contextlib.suppress(NameError):
                found[word] = program.look_up(word)
    namespace.update(found)


def _describe(error: BaseException, test: str) -> str:
    if isinstance(error, ClosedError):
        return f"the program {error}"
    text = " ".join(traceback.format_exception_only(error)[-1].split())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == NAME and frame.lineno]
    where = f" in {test.splitlines()[lines[-1] - 1].strip()}" if lines else ""
    return f"{text[:200]}{where[:200]}"
