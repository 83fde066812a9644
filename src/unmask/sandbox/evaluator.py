"""The test code's process. Expected values are here and nowhere near the program, which is called over a pipe."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import json
import os
import re
import socket
import symtable
import traceback
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, NoReturn

from unmask.sandbox import arrays, defined
from unmask.sandbox.remote import MODULES, Program
from unmask.sandbox.wire import Channel, ClosedError

SOURCE_FD, CHANNEL_FD, RESULT_FD = 3, 4, 5
NAME = "test code"
_ARRAYS = re.compile(r"\b(numpy|np|allclose)\b")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# What test code may use without importing it, because programs do: name -> (module, member; None = itself). A program that
# says what `isclose` or `Counter` is passes every test that compares with it.
_COMMON: dict[str, list[tuple[str, str | None]]] = {
    "np": [("numpy", None)], "sys": [("sys", None)], "approx": [("pytest", "approx")],
    **{name: [("numpy", name)] for name in ("allclose", "array_equal")},
    **{name: [("math", name)] for name in ("isclose", "isnan", "isinf", "isfinite", "fabs", "sqrt", "nan", "inf", "pi")},
    "deepcopy": [("copy", "deepcopy")], "Decimal": [("decimal", "Decimal")], "Fraction": [("fractions", "Fraction")],
    **{name: [("collections", name)] for name in ("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple")},
    **{name: [(name, None)] for name in MODULES},
    **{name: [("datetime", name)] for name in ("date", "timedelta", "timezone")},
    "datetime": [("datetime", None), ("datetime", "datetime")],
}  # fmt: skip
# What tests compare and repeat with, besides types: hardly ever itself what is tested.
_MEANS = frozenset((
    "abs", "all", "any", "approx", "allclose", "array_equal", "callable", "fabs", "getattr", "hasattr", "isclose", "isfinite",
    "isinf", "isinstance", "isnan", "issubclass", "iter", "len", "max", "min", "next", "print", "repr", "round", "sorted",
))  # fmt: skip


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
    code = compile(test, NAME, "exec", dont_inherit=True)
    if _ARRAYS.search(f"{prefix}\n{test}"):  # only then: to import it takes its time
        arrays.compare_no_empty_ones()
    if "unittest" in test:
        defined.leave_to_us()
    namespace, unfinished = _trusted(prefix)
    program = Program(channel)
    _add_names(namespace, test, program)
    namespace |= _look_up(program, unfinished - namespace.keys())
    namespace["__name__"] = "__main__"
    exec(code, namespace)
    defined.run(ast.parse(test), namespace)
    if channel.is_broken:
        raise ClosedError("ended while it was called, which the test code took for an exception of the program's")


def _trusted(prefix: str) -> tuple[dict[str, Any], set[str]]:
    """The functions and imports that stand before the program, from here and not from a program that may have replaced them.

    Without classes, whose objects are the program's, and functions without a body, which the program should write: the names
    of these, which the others may use, too.
    """
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        body = ast.parse(prefix).body
        exec(compile(prefix, "prefix", "exec", dont_inherit=True), namespace)
    except Exception:
        return {"__name__": "tests"}, set()  # the beginning of a program that is not complete by itself
    unfinished = set()
    for node in body:
        if isinstance(node, ast.ClassDef) or (isinstance(node, _FUNCTIONS) and _has_no_body(node)):
            namespace.pop(node.name, None)
            unfinished.add(node.name)
    return namespace, unfinished


def _has_no_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return all(
        isinstance(line, ast.Pass | ast.Raise) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        for line in function.body
    )


def _add_names(namespace: dict[str, Any], test: str, program: Program) -> None:
    """The program's globals that the test code speaks of. What has a meaning without the program keeps it, unless all in the
    test has: then a function is tested that is called like a builtin. Raises `NameError` if the program defines nothing of it.
    """
    tree = ast.parse(test)
    words = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id not in namespace})
    known = {word: value for word in words if (value := _find_known(tree, word)) is not None}
    unknown = [word for word in words if word not in known and not hasattr(builtins, word)]
    outside = _names_from_outside(test)
    found = _look_up(program, unknown)
    if found.keys() & outside:
        found |= {word: value for word, value in known.items() if program.defines(word)}
    elif not outside.intersection(unknown):
        tested = _named_like_builtin([word for word in words if word in outside], known)
        found |= known | _look_up(program, tested)
        outside &= set(tested)
    if not found.keys() & outside:
        raise NameError("the program defines nothing that the test uses")
    namespace.update(found)


def _named_like_builtin(words: list[str], known: dict[str, Any]) -> list[str]:
    """Which of them is tested. Only one: a program that also said what `zip` is would end the test's loops unseen."""
    words = [word for word in words if not isinstance(known.get(word), ModuleType)]
    telling = [word for word in words if word not in _MEANS]
    functions = [word for word in telling if word not in known and not isinstance(getattr(builtins, word), type)]
    choice = functions or [word for word in telling if word in known] or words
    return choice if len(choice) == 1 else []


def _look_up(program: Program, words: Iterable[str]) -> dict[str, Any]:
    found = {}
    for word in words:
        with contextlib.suppress(NameError):
            found[word] = program.look_up(word)
    return found


def _find_known(tree: ast.AST, word: str) -> Any:
    """What the test code must mean by this word, from how it uses it; None if that may be something of the program's."""
    attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_name(node.value, word)]
    num_uses = sum(_is_name(node, word) for node in ast.walk(tree))
    for module, member in _COMMON.get(word, ()):
        with contextlib.suppress(ImportError):
            value = importlib.import_module(module)
            value = value if member is None else getattr(value, member)
            if all(hasattr(value, name) for name in attributes) and (member is not None or num_uses == len(attributes)):
                return value
    return None


def _is_name(node: ast.AST, word: str) -> bool:
    return isinstance(node, ast.Name) and node.id == word


def _names_from_outside(test: str) -> set[str]:
    """Global names that the test code uses and does not itself bind."""
    top = symtable.symtable(test, NAME, "exec")
    used = {name for table in _tables(top) for name in table.get_identifiers() if table.lookup(name).is_global()}
    used |= {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    return used - {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _describe(error: BaseException, test: str) -> str:
    if isinstance(error, ClosedError):
        return f"the program {error}"
    text = " ".join(traceback.format_exception_only(error)[-1].split())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == NAME and frame.lineno]
    where = f" in {test.splitlines()[lines[-1] - 1].strip()}" if lines else ""
    return f"{text[:200]}{where[:200]}"
