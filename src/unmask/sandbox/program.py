"""The program's process: a script that reads and writes, or functions that are called from another process.

Everything in this process belongs to the program, these lines included: it may change or fake whatever it likes. What it
sends is taken for what it is, values that it claims its functions returned.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import copy
import gc
import importlib
import io
import json
import linecache
import operator
import os
import random
import socket
import sys
import threading
import traceback
import types
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from unmask.sandbox.wire import Channel, ClosedError, decode, encode

SOURCE_FD, CHANNEL_FD = 3, 4
NAME = "program.py"
# What the other process may ask for, besides `call` and `lookup`. Comparisons and `in` with plain values are made over there.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr, "setattr": setattr, "isinstance": isinstance, "issubclass": issubclass, "iter": iter, "next": next,
    "len": len, "str": str, "repr": repr, "bool": bool, "int": int, "float": float, "abs": abs, "round": round, "hash": hash,
    "delattr": delattr, "delitem": operator.delitem, "copy": copy.copy, "deepcopy": copy.deepcopy,
    **{name: getattr(operator, name) for name in (
        "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift", "neg",
        "pos", "invert", "eq", "ne", "lt", "le", "gt", "ge", "getitem", "setitem", "index",
    )},
}  # fmt: skip
_LONGEST_PRINTED = 1 << 20
_CHANGEABLE = (list, dict, set, deque, bytearray)


def _read_source() -> Any:
    with open(SOURCE_FD, encoding="utf-8") as file:
        return json.load(file)


def _begin(module: types.ModuleType, source: str) -> types.CodeType:
    """Compiled, and all that it finds around itself as a fresh interpreter would have it."""
    random.seed(0)  # the same program does the same every time
    sys.argv = [NAME]
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    for stream, mode in ((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w")):
        setattr(stream, "mode", mode)  # noqa: B010  # as the interpreter does: fast input for contests asks for it
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.path.insert(0, os.getcwd())
    linecache.cache[NAME] = (len(source), None, source.splitlines(keepends=True), NAME)  # for `inspect` and tracebacks
    module.__file__ = NAME
    sys.modules[module.__name__] = module
    return compile(source, NAME, "exec", dont_inherit=True)


def _open_streams_by_name() -> None:
    """`open("/dev/stdin")` for programs, who do not see /proc, where these names lead."""
    real, streams = io.open, {f"/dev/{name}": number for number, name in enumerate(("stdin", "stdout", "stderr"))}

    def open(file: Any, *args: Any, **kwargs: Any) -> Any:
        number = streams.get(os.fspath(file)) if isinstance(file, str | os.PathLike) else None
        return real(file if number is None else os.dup(number), *args, **kwargs)

    io.open = builtins.open = open


def run_script() -> NoReturn:
    """Runs the program as `python program.py` would, to the end of its threads, and ends with its exit code."""
    module = types.ModuleType("__main__")

    def run() -> None:
        _open_streams_by_name()
        exec(_begin(module, _read_source()["program"]), module.__dict__)

    code = _exit_code_of(run)
    # Files that the program has not closed are written when they are forgotten; its own stream may need what is forgotten then.
    endings = (threading._shutdown, atexit._run_exitfuncs, _flush, module.__dict__.clear, gc.collect, _flush_original)  # type: ignore[attr-defined]
    for clean_up in endings:
        failed = _exit_code_of(clean_up)
        code = code or failed
    os._exit(code)


def _flush() -> None:
    stream = sys.stdout
    if stream is not None and not getattr(stream, "closed", False):
        stream.flush()
    _flush_original()


def _flush_original() -> None:
    stream = sys.__stdout__  # the program may have replaced `sys.stdout` and written to this
    if stream is not None and not stream.closed:
        stream.flush()


def _exit_code_of(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve_functions() -> NoReturn:
    """Runs the program as a module, then does what the test code's process asks for, until that ends."""
    job, channel = _read_source(), Channel(socket.socket(fileno=CHANNEL_FD))
    try:
        module = types.ModuleType("program")
        exec(_begin(module, job["program"]), module.__dict__)
        _flush()
    except BaseException as error:
        traceback.print_exc()
        channel.send({"failed": _describe(error)})
        os._exit(1)
    channel.send({"ready": True})
    with contextlib.suppress(ClosedError):
        _Server(channel, module).serve()
    os._exit(0)


def _describe(error: BaseException) -> str:
    return " ".join(traceback.format_exception_only(error)[-1].split())[:300]


def _position() -> int:
    """In what has been printed; negative where the program has closed that."""
    try:
        return os.lseek(1, 0, os.SEEK_CUR)
    except OSError:
        return -1


class _Server:
    def __init__(self, channel: Channel, module: types.ModuleType):
        self.channel, self.module = channel, module
        self.objects: list[Any] = []  # those that were sent as references
        self.numbers: dict[int, int] = {}  # by their identity, which stays theirs while the list holds them

    def serve(self) -> None:
        while True:
            self.answer(self.channel.receive())

    def answer(self, message: dict[str, Any]) -> None:
        begin = _position()
        try:
            try:
                reply = self.do(message["do"], [decode(a, self.resolve) for a in message["args"]], message.get("kwargs", {}))
            finally:
                _flush()
        except BaseException as error:
            if not isinstance(error, Exception):
                raise  # to leave is to leave
            reply = self.fail(error)
        if _position() > begin >= 0:
            reply["printed"] = os.pread(1, _LONGEST_PRINTED, begin).decode(errors="replace")
        try:
            self.channel.send(reply)
        except (ValueError, RecursionError) as error:
            self.channel.send(self.fail(error))

    def do(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        if operation == "lookup":
            return self.look_up(args[0])
        if operation != "call":
            return {"value": encode(OPERATIONS[operation](*args), self.refer)}
        function, *args = args
        result = function(*args, **{name: decode(value, self.resolve) for name, value in kwargs.items()})
        reply = {"value": encode(result, self.refer)}
        if result is None:  # by custom, what returns nothing may have changed its arguments
            reply["args"] = [encode(a, self.refer) if isinstance(a, _CHANGEABLE) else None for a in args]
        return reply

    def look_up(self, name: str) -> dict[str, Any]:
        """A global name: its value, or from where it was imported."""
        if name not in self.module.__dict__:
            return {"missing": True}
        value = self.module.__dict__[name]
        if isinstance(value, types.ModuleType):
            return {"module": value.__name__}
        home, own_name = (str(getattr(value, what, "")) for what in ("__module__", "__name__"))
        # Not what the program has made of it: a `partial` is an instance of a class that it has imported.
        if home != self.module.__name__ and getattr(sys.modules.get(home), own_name, self) is value:
            return {"module": home, "name": own_name, "value": encode(value, self.refer)}
        return {"value": encode(value, self.refer)}

    def fail(self, error: BaseException) -> dict[str, Any]:
        try:
            args = [encode(arg, self.refer) for arg in error.args]
        except Exception:
            args = []
        reference = self.refer(error.with_traceback(None))  # whose frames hold what should be forgotten
        try:
            message = str(error)
        except Exception:
            message = ""
        told = {"error": self.refer(type(error)), "args": args, "itself": reference, "message": message}
        return {**told, "text": _describe(error)}

    def refer(self, value: Any) -> Any:
        if isinstance(value, _Callback):
            return {"yours": value.number}
        name = value.__name__ if isinstance(value, type) else type(value).__name__
        if isinstance(value, type) and vars(builtins).get(name) is value:
            return {"builtin": name}
        kind, parents = "object", []
        if isinstance(value, type) and issubclass(value, BaseException):
            kind = "exception"
            parents = [self.refer(parent) for parent in value.__bases__ if issubclass(parent, BaseException)]
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return {"object": [number, kind, name, parents]}

    def resolve(self, data: dict[str, Any]) -> Any:
        ((kind, content),) = data.items()
        if kind == "object":
            return self.objects[content]
        if kind == "empty":
            return content
        if kind == "iterator":
            return iter([decode(item, self.resolve) for item in content])
        if kind == "import":
            return getattr(importlib.import_module(content[0]), content[1])
        return _Callback(self, *content)


class _Callback:
    """A function of the test code's."""

    def __init__(self, server: _Server, number: int, name: str):
        self.server, self.number, self.__name__ = server, number, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        channel, refer = self.server.channel, self.server.refer
        named = {name: encode(value, refer) for name, value in kwargs.items()}
        channel.send({"callback": self.number, "args": [encode(a, refer) for a in args], "kwargs": named})
        while "do" in (message := channel.receive()):
            self.server.answer(message)
        if "error" in message:
            raise getattr(builtins, message["error"], RuntimeError)(message["text"])
        return decode(message["value"], self.server.resolve)
