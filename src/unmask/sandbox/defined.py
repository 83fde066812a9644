"""Tests that test code defines and leaves to a runner, as `unittest` and pytest are: without one they would all pass."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
from collections.abc import Callable
from typing import Any


def leave_to_us() -> None:
    """`unittest.main` would look for tests elsewhere, and end this process."""
    unittest: Any = importlib.import_module("unittest")
    unittest.main = lambda *args, **kwargs: None


def run(tree: ast.Module, namespace: dict[str, Any]) -> None:
    """Runs what `tree` has defined in `namespace`: `TestCase`s, functions `test...` that it does not name again, and these
    methods of classes `Test...`. Raises what the first of them raises that fails, and `TypeError` for one that needs arguments.
    """
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test") and node.name not in named:
                _call(namespace[node.name])
        elif isinstance(node, ast.ClassDef) and isinstance(kind := namespace[node.name], type):
            if any(parent.__module__ == "unittest.case" for parent in kind.__mro__):
                _run_case(kind)
            elif node.name.startswith("Test") and node.name not in named:
                for name in [name for name in dir(kind) if name.startswith("test") and callable(getattr(kind, name))]:
                    instance = kind()
                    getattr(instance, "setup_method", lambda: None)()
                    _call(getattr(instance, name))


def _call(function: Callable[[], Any]) -> None:
    result = function()
    if inspect.iscoroutine(result):
        asyncio.run(result)


def _run_case(kind: type) -> None:
    unittest: Any = importlib.import_module("unittest")
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(kind).run(result)
    for _, text in result.errors + result.failures:
        raise AssertionError(text.strip().splitlines()[-1])
    if result.unexpectedSuccesses:
        raise AssertionError("a test that should fail has passed")
