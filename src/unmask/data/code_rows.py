"""Rows of the usual data sets of programs, in their original layouts and in the published one of Gen-Verse."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from typing import Any

from unmask.config import check
from unmask.data.problems import Problem, read_tests, read_text, require_text
from unmask.errors import UnmaskError
from unmask.types import CodeTests

_MBPP_TEST_IDS = range(11, 511)  # the published test split; 1-10 are for prompts, 511-600 for validation, 601-974 for training


def code(row: dict[str, Any], where: str) -> Problem:
    """The published layout: `question`, and tests of functions or stdio."""
    tests = read_tests(row, where)
    if tests is None:
        raise UnmaskError(f"{where}: needs tests (test_method with test_list, or with test_input and test_output)")
    return Problem(where, require_text(row, ["question"], where), tests=tests, response=read_text(row, ["response"], where))


def mbpp(row: dict[str, Any], where: str) -> Problem:
    """The published layout; or `task_id`, `prompt` (`text` in the full set), `code`, `test_list`, imports of the tests.

    The question shows the tests, as is customary; published rows are shown as they are.
    """
    if "question" in row:
        return code(row, where)
    number = require_text(row, ["task_id"], where)
    if not number.isdecimal():
        raise UnmaskError(f"{where}: task_id should be a number, found {number!r}")
    imports = row.get("test_imports") or []
    if not isinstance(imports, list) or not all(isinstance(line, str) for line in imports):
        raise UnmaskError(f"{where}: test_imports should be a list of lines")
    task = require_text(row, ["prompt", "text"], where)
    prefix = "\n".join([*imports, *filter(None, [read_text(row, ["test_setup_code"], where)])])
    tests = check(CodeTests, {"test_method": "function", "test_list": row.get("test_list") or (), "prefix": prefix}, where)
    shown = "\n".join(tests.test_list)
    program = read_text(row, ["code"], where)
    return Problem(
        where,
        f"You are an expert Python programmer, and here is your task: {task} Your code should pass these tests:\n\n{shown}\n",
        id=f"MBPP/{number}",
        tests=tests,
        response=None if program is None else _block(program),
        split="held_out" if int(number) in _MBPP_TEST_IDS else "train",
    )


def humaneval(row: dict[str, Any], where: str) -> Problem:
    """The published layout; or `task_id`, `prompt`, `canonical_solution`, `test`, `entry_point`.

    What stands before the function in the prompt (imports, helpers) is the tests' prefix, so that an answer may be the function
    alone or a whole program. Where a test calls such a helper, it gets a copy under a name of its own: an answer that defines
    the helper anew cannot change what it is tested with.
    """
    if "question" in row:
        return code(row, where)
    fields = {name: require_text(row, [name], where) for name in ("task_id", "prompt", "test", "entry_point")}
    prompt, entry = fields["prompt"].strip("\n"), fields["entry_point"]
    if not entry.isidentifier() or not (starts := [m.start() for m in re.finditer(rf"^def {entry}\b", prompt, re.MULTILINE)]):
        raise UnmaskError(f"{where}: prompt should define the entry_point {entry!r}")
    prefix = prompt[: starts[-1]].strip("\n")
    check_code = f"{_with_own_helpers(prefix, fields['test'].strip(), where)}\n\ncheck({entry})"
    tests = {"test_method": "function", "test_list": (check_code,), "prefix": prefix}
    solution = read_text(row, ["canonical_solution"], where)
    return Problem(
        where,
        f"Complete this Python function.\n\n```python\n{prompt}\n```\n",
        id=fields["task_id"],
        tests=check(CodeTests, tests, where),
        response=None if solution is None else _block(f"{prompt}\n{solution}"),
    )


def _block(program: str) -> str:
    return f"```python\n{program.strip(chr(10)).rstrip()}\n```"


def _with_own_helpers(prefix: str, test: str, where: str) -> str:
    """The test, after copies of the prefix's functions that it calls (and those that they call), all under other names."""
    try:
        helpers = [node for node in _parse(prefix).body if isinstance(node, ast.FunctionDef)]
        names, called = {helper.name for helper in helpers}, _names(test)
        sources = {helper.name: ast.get_source_segment(prefix, helper) or "" for helper in helpers}
        while more := {n for name in names & called for n in _names(sources[name]) & names} - called:
            called |= more
        new_names = {name: f"given_{name}" for name in names & called}
        copies = [_rename(sources[helper.name], new_names) for helper in helpers if helper.name in new_names]
        return "\n\n\n".join([*copies, _rename(test, new_names)])
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise UnmaskError(f"{where}: prompt and test should be Python ({error})") from None


def _names(program: str) -> set[str]:
    return {node.id for node in ast.walk(_parse(program)) if isinstance(node, ast.Name)}


def _parse(program: str) -> ast.Module:
    with warnings.catch_warnings(action="ignore"):  # of an invalid escape in somebody's string, say
        return ast.parse(program)


def _rename(program: str, new_names: dict[str, str]) -> str:
    """The program with other names in the place of these; strings and comments stay as they are."""
    lines = io.StringIO(program).readlines()
    tokens = list(tokenize.generate_tokens(iter(lines).__next__))
    for token in reversed(tokens):
        if token.type == tokenize.NAME and token.string in new_names:
            row, column = token.start
            line = lines[row - 1]
            lines[row - 1] = line[:column] + new_names[token.string] + line[column + len(token.string) :]
    return "".join(lines)
