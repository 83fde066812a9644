"""What a row of a data set says, before it becomes a prompt, and how the fields that many data sets share are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unmask.config import check
from unmask.data.rows import Split
from unmask.errors import UnmaskError
from unmask.types import CodeTests, Message

_TEST_FIELDS = ("test_method", "test_list", "prefix", "test_input", "test_output", "test_time_limit", "float_tolerance")


@dataclass(frozen=True, slots=True)
class Problem:
    """A row. `question`: the task's text alone; for a row of turns, all of them.

    messages: turns that are used as they are, without a template. id: empty = the row has none; part is put behind it, or
    behind what stands for it, where a row is several problems. response_prefix: None = as the options say. step_map: at which
    step each token of the response is unmasked. split: the published split that the row itself tells of.
    """

    where: str
    question: str
    messages: tuple[Message, ...] = ()
    id: str = ""
    part: str = ""
    answer: str | None = None
    response: str | None = None
    response_prefix: str | None = None
    tests: CodeTests | None = None
    step_map: tuple[int, ...] | None = None
    split: Split | None = None


def read_text(row: dict[str, Any], names: Sequence[str], where: str) -> str | None:
    """The first of these fields that the row has a value in; numbers as they are written. Raises `UnmaskError`."""
    for name in names:
        value = row.get(name)
        if isinstance(value, list | dict | bool):
            raise UnmaskError(f"{where}: {name} must be text or a number, found {type(value).__name__}")
        if isinstance(value, float) and not math.isfinite(value):  # where another tool had no value
            raise UnmaskError(f"{where}: {name} is {value}, which is no number")
        if value is not None:
            return str(value)
    return None


def require_text(row: dict[str, Any], names: Sequence[str], where: str) -> str:
    """The same; raises `UnmaskError` for a row that has none of them, or no words in it."""
    text = read_text(row, names, where)
    if text is None or not text.strip():
        wanted = " or ".join(repr(name) for name in names)
        raise UnmaskError(f"{where}: needs the field {wanted}; found {', '.join(k for k, v in row.items() if v is not None)}")
    return text


def read_tests(row: dict[str, Any], where: str) -> CodeTests | None:
    """A program's tests in the published layout; None for a row without any. Fields that are null or empty are none.

    Without `test_method`, `test_list` means functions and `test_input` stdio. Raises `UnmaskError`.
    """
    fields = {name: row[name] for name in _TEST_FIELDS if row.get(name) not in (None, "", [], ())}
    if not fields.keys() & {"test_method", "test_list", "test_input", "test_output"}:
        return None
    fields.setdefault("test_method", "function" if "test_list" in fields else "stdio")
    return check(CodeTests, fields, where)
