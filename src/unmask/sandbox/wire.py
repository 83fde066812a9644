"""Plain values as JSON, and messages over a socket. Nothing that is read here can run code.

What comes over is a value of Python's own types or of a few plain ones of its library. The other process may claim any
value, as it may compute any, but not an object that behaves as it likes.
"""

from __future__ import annotations

import datetime
import json
import socket
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

LARGEST_MESSAGE = 1 << 26
_SMALL = 1 << 62
_ARRAYS = "biufcUS"  # kinds of NumPy arrays that are sent
_DATES = {kind.__name__: kind for kind in (datetime.datetime, datetime.date, datetime.time)}
_MAPPINGS: tuple[tuple[str, type], ...] = (("counter", Counter), ("ordered", OrderedDict), ("dict", dict))
_KEYS, _ITEMS = type(dict[str, str]().keys()), type(dict[str, str]().items())
_ATOMS = (str, int, float, tuple)
Refer = Callable[[Any], Any]  # an object that is not plain -> what stands for it in JSON; None = it has nothing to add


class ClosedError(Exception):
    """The other process has ended, or what it sent is no message."""


def encode(value: Any, refer: Refer) -> Any:
    """Subclasses of plain types are sent as these; what is not plain as `refer` says.

    With a reference, where they cannot change: a named tuple has its fields over there, and is compared as a tuple.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, _ATOMS) and type(value) not in _ATOMS and type(value).__module__ != "numpy":
        reference = refer(value)
        if reference is not None:  # a number: of an object that is the other side's
            is_theirs = isinstance(reference["object"], int)
            return reference if is_theirs else {"like": [_encode_plain(value, refer), reference]}
    return _encode_plain(value, refer)


def _encode_plain(value: Any, refer: Refer) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -_SMALL < number < _SMALL else {"int": hex(number)}  # not decimal: that takes time squared
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list):
        return [encode(item, refer) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [encode(item, refer) for item in tuple.__iter__(value)]}
    for name, kind in _MAPPINGS:
        if isinstance(value, dict) and isinstance(value, kind):
            return {name: [[encode(key, refer), encode(item, refer)] for key, item in dict.items(value)]}
    if isinstance(value, set | frozenset):
        items = set.__iter__(value) if isinstance(value, set) else frozenset.__iter__(value)
        return {"set" if isinstance(value, set) else "frozenset": [encode(item, refer) for item in items]}
    return _encode_rare(value, refer)


def _encode_rare(value: Any, refer: Refer) -> Any:
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes" if isinstance(value, bytes) else "bytearray": bytes(value).hex()}
    if isinstance(value, slice):
        return {"slice": [encode(n, refer) for n in (value.start, value.stop, value.step)]}
    if isinstance(value, range):
        return {"range": [encode(n, refer) for n in (value.start, value.stop, value.step)]}
    if isinstance(value, deque):
        return {"deque": [[encode(item, refer) for item in value], value.maxlen]}
    if isinstance(value, Decimal):
        return {"decimal": str(value)}
    if isinstance(value, Fraction):
        return {"fraction": [encode(value.numerator, refer), encode(value.denominator, refer)]}
    if type(value) is _KEYS:
        return {"keys": [encode(key, refer) for key in value]}
    if type(value) is _ITEMS:
        return {"items": [[encode(key, refer), encode(item, refer)] for key, item in value]}
    if type(value) is _DATES.get(type(value).__name__):
        return {type(value).__name__: value.isoformat()}
    if isinstance(value, datetime.timedelta):
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    numpy: Any = sys.modules.get("numpy")  # whose values exist only where it has been imported
    for kind, plain in (("bool_", bool), ("integer", int), ("floating", float), ("complexfloating", complex)):
        if numpy is not None and isinstance(value, getattr(numpy, kind)):
            return encode(plain(value), refer)
    if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in _ARRAYS:
        return {"ndarray": [value.dtype.str, list(value.shape), encode(value.ravel().tolist(), refer)]}
    return refer(value)


def decode(data: Any, resolve: Callable[[Any], Any]) -> Any:
    """Inverse of `encode`. resolve: what a reference stands for. Raises `ClosedError` for what is no value."""
    if isinstance(data, list):
        return [decode(item, resolve) for item in data]
    if not isinstance(data, dict):
        return data
    try:
        ((name, content),) = data.items()
        if name == "int":
            return int(content, 16)
        if name == "tuple":
            return tuple(decode(item, resolve) for item in content)
        for known, kind in _MAPPINGS:
            if name == known:
                return kind({decode(k, resolve): decode(v, resolve) for k, v in content})
        if name in ("set", "frozenset"):
            items = [decode(item, resolve) for item in content]
            return set(items) if name == "set" else frozenset(items)
        return _decode_rare(name, content, resolve)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ClosedError(f"sent what is no value ({type(error).__name__})") from None


def _decode_rare(name: str, content: Any, resolve: Callable[[Any], Any]) -> Any:
    if name == "complex":
        return complex(*content)
    if name in ("bytes", "bytearray"):
        return bytes.fromhex(content) if name == "bytes" else bytearray.fromhex(content)
    if name == "slice":
        return slice(*(decode(n, resolve) for n in content))
    if name == "range":
        return range(*(decode(n, resolve) for n in content))
    if name == "deque":
        return deque([decode(item, resolve) for item in content[0]], content[1])
    if name == "decimal":
        return Decimal(content)
    if name == "fraction":
        return Fraction(*(decode(n, resolve) for n in content))
    if name == "keys":
        return dict.fromkeys(decode(key, resolve) for key in content).keys()
    if name == "items":
        return {decode(key, resolve): decode(item, resolve) for key, item in content}.items()
    if name in _DATES:
        return _DATES[name].fromisoformat(content)
    if name == "timedelta":
        return datetime.timedelta(*content)
    if name == "ndarray":
        import numpy

        kind, shape, items = content
        if numpy.dtype(kind).kind not in _ARRAYS:
            raise ValueError(kind)
        array = numpy.array(decode(items, resolve), dtype=kind).reshape(shape)
        return array if array.size else resolve({"empty": array})
    if name == "like":
        return resolve({"like": [decode(content[0], resolve), content[1]]})
    return resolve({name: content})


class Channel:
    """Messages, each a JSON value after its length in 4 bytes."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._file = connection.makefile("rb")
        self.is_broken = False  # once it is, for good

    def send(self, message: Any) -> None:
        """Raises `ClosedError`, and `ValueError` for a message that is too large or nested too deep."""
        try:
            data = json.dumps(message).encode()
        except RecursionError:
            raise ValueError("nested too deep") from None
        if len(data) > LARGEST_MESSAGE:
            raise ValueError(f"larger than {LARGEST_MESSAGE >> 20} MB")
        try:
            self._socket.sendall(len(data).to_bytes(4, "big") + data)
        except OSError:
            raise self._break("has ended") from None

    def receive(self) -> Any:
        """Raises `ClosedError`."""
        try:
            size = int.from_bytes(self._read(4), "big")
            if size > LARGEST_MESSAGE:
                raise self._break("sent what is too large")
            return json.loads(self._read(size))
        except (ValueError, RecursionError):
            raise self._break("sent what is no message") from None

    def _read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError:
            data = b""
        if len(data) < size:
            raise self._break("has ended")
        return data

    def _break(self, what: str) -> ClosedError:
        self.is_broken = True
        return ClosedError(what)
