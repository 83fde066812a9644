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
from collections import deque
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from unmask.sandbox import arrays
from unmask.sandbox.wire import Channel, decode, encode

# From which the program may name what it has imported. Not all of the library: `unittest.mock.ANY` equals everything.
MODULES = frozenset((
    "abc", "array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "itertools", "json", "math", "numpy", "operator", "queue", "random", "re", "statistics",
    "string", "textwrap", "time", "typing",
))  # fmt: skip


_TOLD_DUNDERS = frozenset(("__name__", "__qualname__", "__dict__"))


class ProgramError(Exception):
    """The program raised what is no exception of Python's own. Its message and attributes are as the program has them."""

    _itself: Remote | None = None
    _message: str | None = None

    def __str__(self) -> str:
        return super().__str__() if self._message is None else self._message

    def __getattr__(self, name: str) -> Any:
        if self._itself is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._itself, name)


class Program:
    """The other process. Its functions may call those that were given to them, while a call of ours waits."""

    def __init__(self, channel: Channel):
        self.channel = channel
        self._functions: list[Callable[..., Any]] = []  # that were sent as callbacks
        self._exceptions: dict[int, type[Exception]] = {}
        self._remotes: dict[int, Remote] = {}  # one for each object, for `is`
        self._likes: dict[int, Like] = {}
        self._turn = threading.RLock()  # a thread of the test code's waits for the answer to another's call

    def do(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Raises what the program raised, and `ClosedError` when it has ended."""
        reply = self.ask(operation, *args, **kwargs)
        value = decode(reply["value"], self._resolve)
        if value is None:  # else `f(x) == sorted(x)` would be asked of an `x` that the program has made fit
            for arg, changed in zip(args[1:], reply.get("args", ()), strict=False):
                if changed is not None:
                    _change(arg, decode(changed, self._resolve))
        return value

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        named = {name: encode(value, self._refer) for name, value in kwargs.items()}
        message = {"do": operation, "args": [encode(a, self._refer) for a in args], "kwargs": named}
        with self._turn:
            self.channel.send(message)
            while "callback" in (reply := self.channel.receive()):
                self.channel.send(self._call_back(reply))
        if sys.stdout is not sys.__stdout__:  # the test code wants to know
            sys.stdout.write(str(reply.get("printed", "")))
        if "error" in reply:
            raise self._error(reply, operation)
        return reply

    def look_up(self, name: str) -> Any:
        """A global name of the program. Raises `NameError`. What it imported is imported here, as far as that is one of the
        usual modules; else it is one of the program's objects."""
        reply = self.ask("lookup", name)
        module, member = reply.get("module"), reply.get("name")
        if module not in MODULES or str(member).startswith("_"):
            if "value" in reply:
                return decode(reply["value"], self._resolve)
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
        if isinstance(value, Like):
            value = value._itself
        if isinstance(value, Remote):
            return {"object": object.__getattribute__(value, "_number")}
        if isinstance(value, tuple(LIKE)):
            return None
        home, name = getattr(value, "__module__", None), getattr(value, "__qualname__", ".")
        if home in sys.stdlib_module_names and getattr(sys.modules.get(home), name, None) is value:
            return {"import": [home, name]}
        if callable(value):
            self._functions.append(value)
            return {"yours": [len(self._functions) - 1, str(getattr(value, "__name__", ""))]}
        if isinstance(value, Iterator):
            return {"iterator": [encode(item, self._refer) for item in value]}
        raise TypeError(f"test code passes an object of the type {type(value).__name__} to the program; only plain values can")

    def _resolve(self, data: dict[str, Any]) -> Any:
        ((kind, content),) = data.items()
        if kind == "yours":
            return self._functions[content]
        if kind == "empty":
            return arrays.mark(content)
        if kind == "builtin":
            found = getattr(builtins, content)
            if not isinstance(found, type):
                raise ValueError(content)
            return found
        if kind == "like":
            plain, (number, *_) = content[0], content[1]["object"]
            itself = Remote(self, int(number))
            return self._likes.setdefault(int(number), LIKE[type(plain)].make(plain, itself))
        if kind != "object":
            raise ValueError(kind)
        number, kind, name, parents = content
        if kind != "exception":
            return self._remotes.setdefault(int(number), Remote(self, int(number)))
        if number not in self._exceptions:
            self._exceptions[number] = _exception(str(name), [decode(parent, self._resolve) for parent in parents])
        return self._exceptions[number]

    def _error(self, reply: dict[str, Any], operation: str) -> Exception:
        kind = decode(reply["error"], self._resolve)
        is_usable = isinstance(kind, type) and issubclass(kind, Exception)
        # Out of place it would end a loop of the test code's early, as if all were well.
        if not is_usable or (issubclass(kind, StopIteration | StopAsyncIteration) and operation != "next"):
            return ProgramError(reply["text"])
        try:
            error = kind(*(decode(arg, self._resolve) for arg in reply["args"]))
            if isinstance(error, ProgramError):
                error._itself, error._message = decode(reply["itself"], self._resolve), str(reply["message"])
        except Exception:
            return ProgramError(reply["text"])
        return error


def _exception(name: str, parents: list[Any]) -> type[Exception]:
    """A class of its own, below those that it is below in the program."""
    usable = [parent for parent in parents if isinstance(parent, type) and issubclass(parent, Exception)]
    if not any(issubclass(parent, ProgramError) for parent in usable):
        usable = [ProgramError, *usable]
    try:
        return type(name, tuple(usable), {})
    except TypeError:  # they do not go together
        return type(name, (ProgramError,), {})


def _change(arg: Any, value: Any) -> None:
    """Makes a list, dict, set, deque or bytearray what the program made of its own."""
    if type(arg) is not type(value):
        return
    if isinstance(arg, list | bytearray):
        arg[:] = value
    elif isinstance(arg, dict | set):
        arg.clear()
        arg.update(value)
    elif isinstance(arg, deque):
        arg.clear()
        arg.extend(value)


class Remote:
    """See the top of this file."""

    __slots__ = ("_number", "_program")

    def __init__(self, program: Program, number: int):
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in _TOLD_DUNDERS:
            raise AttributeError(name)  # Python looks for many on its own account
        return self._program.do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.do("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._program.do("delattr", self, name)

    def __copy__(self) -> Any:
        return self._program.do("copy", self)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._program.do("deepcopy", self)

    def __enter__(self) -> Any:
        return self._program.do("getattr", self, "__enter__")()

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Without its result: it could say that an assert that has failed does not matter."""
        is_known = kind is None or vars(builtins).get(kind.__name__) is kind
        self._program.do("getattr", self, "__exit__")(kind if is_known else RuntimeError, None, None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program.do("call", self, *args, **kwargs)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._program.do("isinstance", value, self) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._program.do("issubclass", value, self) is True

    def __iter__(self) -> Any:
        return self._program.do("iter", self)

    def __next__(self) -> Any:
        return self._program.do("next", self)

    def __contains__(self, value: Any) -> bool:
        return any(item == value for item in self)

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
    "len", "hash", "repr", "str", "bool", "int", "float", "abs", "round", "neg", "pos", "invert", "getitem", "setitem",
    "delitem", "index",
):  # fmt: skip
    setattr(Remote, f"__{_name}__", _operation(_name))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift"):
    setattr(Remote, f"__{_name.rstrip('_')}__", _binary(_name))


class Like:
    """A plain value that has more to it in the program: the fields of a named tuple, the name of an `IntEnum`. All that Python
    itself does with it is done with the plain value, here."""

    _itself: Remote | None = None

    @classmethod
    def make(cls, plain: Any, itself: Remote) -> Any:
        value = cls(plain)  # type: ignore[call-arg]
        value._itself = itself
        return value

    def __getattr__(self, name: str) -> Any:
        if self._itself is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._itself, name)


LIKE: dict[type, type[Like]] = {kind: type(kind.__name__, (Like, kind), {}) for kind in (str, int, float, tuple)}
