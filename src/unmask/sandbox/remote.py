"""Stand-ins for objects that live in the program's process, and what is believed of them.

Plain values come over as such. Any other object is a `Remote`: to call it, take its attributes, iterate or add happens in its
own process, and what it gives is again plain or a `Remote`. It is never equal to a plain value, not smaller or larger, and
cannot be added to one: otherwise an object that calls itself equal to everything would pass every test.
"""

from __future__ import annotations

import builtins
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from unmask.sandbox.wire import Channel, decode, encode

# From which the program may name what it has imported. Not all of the library: `unittest.mock.ANY` equals everything.
MODULES = frozenset((
    "abc", "array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "itertools", "json", "math", "numpy", "operator", "queue", "random", "re", "statistics",
    "string", "textwrap", "time", "typing",
))  # fmt: skip


class ProgramError(Exception):
    """The program raised what is no exception of Python's own."""


class Program:
    """The other process. Its functions may call those that were given to them, while a call of ours waits."""

    def __init__(self, channel: Channel):
        self.channel = channel
        self._functions: list[Callable[..., Any]] = []  # that were sent as callbacks
        self._exceptions: dict[int, type[Exception]] = {}
        self._remotes: dict[int, Remote] = {}  # one for each object, for `is`
        self._turn = threading.RLock()  # a thread of the test code's waits for the answer to another's call

    def do(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Raises what the program raised, and `ClosedError` when it has ended."""
        reply = self.ask(operation, *args, **kwargs)
        for arg, changed in zip(args[1:], reply.get("args", ()), strict=False):
            if changed is not None:
                _change(arg, decode(changed, self._resolve))
        return decode(reply["value"], self._resolve)

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        named = {name: encode(value, self._refer) for name, value in kwargs.items()}
        message = {"do": operation, "args": [encode(a, self._refer) for a in args], "kwargs": named}
        with self._turn:
            self.channel.send(message)
            while "callback" in (reply := self.channel.receive()):
                self.channel.send(self._call_back(reply))
        if "error" in reply:
            raise self._error(reply, operation)
        return reply

    def look_up(self, name: str) -> Any:
        """A global name of the program. Raises `NameError`. What it imported is imported here, not taken from it."""
        reply = self.ask("lookup", name)
        if "value" in reply:
            return decode(reply["value"], self._resolve)
        module, member = reply.get("module"), reply.get("name")
        if module not in MODULES or str(member).startswith("_"):
            raise NameError(f"name {name!r} is not defined")
        found = importlib.import_module(module)
        if member is not None and isinstance(found := getattr(found, str(member), found), ModuleType):
            raise NameError(f"name {name!r} is not defined")
        return found

    def defines(self, name: str) -> bool:
        return "missing" not in self.ask("lookup", name)

    def _call_back(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            args = [decode(arg, self._resolve) for arg in message["args"]]
            kwargs = {name: decode(value, self._resolve) for name, value in message["kwargs"].items()}
            return {"value": encode(self._functions[message["callback"]](*args, **kwargs), self._refer)}
        except Exception as error:
            return {"error": type(error).__name__, "text": str(error)}

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return {"object": object.__getattribute__(value, "_number")}
        home, name = getattr(value, "__module__", None), getattr(value, "__qualname__", ".")
        if home in sys.stdlib_module_names and getattr(sys.modules.get(home), name, None) is value:
            return {"import": [home, name]}
        if callable(value):
            self._functions.append(value)
            return {"yours": len(self._functions) - 1}
        if isinstance(value, Iterator):
            return {"iterator": [encode(item, self._refer) for item in value]}
        raise TypeError(f"test code passes an object of the type {type(value).__name__} to the program; only plain values can")

    def _resolve(self, data: dict[str, Any]) -> Any:
        ((kind, content),) = data.items()
        if kind == "yours":
            return self._functions[content]
        if kind == "builtin":
            found = getattr(builtins, content)
            if not isinstance(found, type):
                raise ValueError(content)
            return found
        if kind != "object":
            raise ValueError(kind)
        number, kind, name, base = content
        if kind != "exception":
            return self._remotes.setdefault(int(number), Remote(self, int(number), str(name)))
        if number not in self._exceptions:
            parent = getattr(builtins, str(base), None)
            parents = (ProgramError, parent) if isinstance(parent, type) and issubclass(parent, Exception) else (ProgramError,)
            self._exceptions[number] = type(str(name), parents, {})
        return self._exceptions[number]

    def _error(self, reply: dict[str, Any], operation: str) -> Exception:
        kind = decode(reply["error"], self._resolve)
        is_usable = isinstance(kind, type) and issubclass(kind, Exception)
        # Out of place it would end a loop of the test code's early, as if all were well.
        if not is_usable or (issubclass(kind, StopIteration | StopAsyncIteration) and operation != "next"):
            return ProgramError(reply["text"])
        try:
            return kind(*(decode(arg, self._resolve) for arg in reply["args"]))
        except Exception:
            return ProgramError(reply["text"])


def _change(arg: Any, value: Any) -> None:
    """Makes a list, dict, set or bytearray what the program made of its own."""
    if type(arg) is not type(value):
        return
    if isinstance(arg, list | bytearray):
        arg[:] = value
    elif isinstance(arg, dict | set):
        arg.clear()
        arg.update(value)


class Remote:
    """See the top of this file."""

    __slots__ = ("_number", "_program", "_type_name")

    def __init__(self, program: Program, number: int, type_name: str):
        for name, value in (("_program", program), ("_number", number), ("_type_name", type_name)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # Python looks for many on its own account
        return self._program.do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.do("setattr", self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program.do("call", self, *args, **kwargs)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._program.do("isinstance", value, self) is True

    def __iter__(self) -> Any:
        return self._program.do("iter", self)

    def __next__(self) -> Any:
        return self._program.do("next", self)

    def __contains__(self, value: Any) -> bool:
        return any(item == value for item in self)

    def __hash__(self) -> int:
        return hash((id(self._program), self._number))

    def __repr__(self) -> str:
        return f"<{self._type_name} object of the program>"

    def _compare(self, operation: str, other: Any) -> Any:
        return self._program.do(operation, self, other) is True if isinstance(other, Remote) else NotImplemented

    def __eq__(self, other: object) -> Any:
        return self._compare("eq", other)

    def __ne__(self, other: object) -> Any:
        return self._compare("ne", other)


def _comparison(operation: str) -> Any:
    return lambda self, other: self._compare(operation, other)


def _operation(operation: str) -> Any:
    return lambda self, *args: self._program.do(operation, self, *args)


def _binary(operation: str) -> Any:
    # Not with plain values: `abs(result - 3.5) < 1e-6` would ask the result's own minus how near it is to 3.5.
    return lambda self, other: self._program.do(operation, self, other) if isinstance(other, Remote) else NotImplemented


for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _comparison(_name))
for _name in (
    "len",
    "str",
    "bool",
    "int",
    "float",
    "abs",
    "round",
    "neg",
    "pos",
    "invert",
    "getitem",
    "setitem",
    "delitem",
    "index",
):
    setattr(Remote, f"__{_name}__", _operation(_name))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift"):
    setattr(Remote, f"__{_name.rstrip('_')}__", _binary(_name))
