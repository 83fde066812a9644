"""Rows that stay in their files: one pass finds and checks them all, then each is read when it is asked for.

What is kept of a row is where it is, about 30 bytes. Shape suffix: N rows of the split.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unmask.data.digests import question_digest
from unmask.data.parquet import ArrowRows
from unmask.data.problems import Problem
from unmask.data.rows import DataFile, begins_an_array
from unmask.errors import UnmaskError
from unmask.files import describe_os_error, locate_jsonl, read_jsonl_at

Row = dict[str, Any] | UnmaskError
_PREFIX = 16  # bytes of an id by which rows of one question are put in order before anything is read again


class RowFile:
    """A file of JSON lines or parquet whose rows can be read one by one. Raises `UnmaskError`, also for a JSON array.

    A file that is changed after it was opened here is refused: where its rows were is no longer where they are.
    """

    def __init__(self, file: DataFile):
        self.file, self.path = file, file.path
        self._stamp = _stamp(self.path)
        self._arrow: ArrowRows | None = None
        if self.path.suffix == ".parquet":
            self._arrow = ArrowRows(self.path, _copy_of(self.path, self._stamp))
        elif self.path.suffix == ".json" and begins_an_array(self.path):
            raise UnmaskError(
                f"{self.path}: an array is read as a whole; for keeps_on_disk write JSON lines: "
                f"unmask data convert {self.path} {self.path.with_suffix('.jsonl').name}"
            )

    def where(self, number: int) -> str:
        """The name of a row, as `scan_rows` has it."""
        return f"{self.path}:{number}" if self._arrow is None else f"{self.path}[{number}]"

    def scan(self) -> Iterator[tuple[int, int, Row]]:
        """Yields (number, place, row) for every row; a place is for `read`."""
        if self._arrow is None:
            yield from locate_jsonl(self.path)
        else:
            yield from ((i, i, row) for i, row in enumerate(self._arrow))
        self._check()

    def read(self, number: int, place: int) -> dict[str, Any]:
        self._check()
        row = self._arrow[place] if self._arrow is not None else read_jsonl_at(self.path, number, place)
        assert isinstance(row, dict), self.where(number)  # it was one, and the file is the same
        return row

    def _check(self) -> None:
        try:
            is_same = _stamp(self.path) == self._stamp
        except UnmaskError:
            is_same = False
        if not is_same:
            raise UnmaskError(f"{self.path}: was changed or removed since its rows were found; begin again")


class Parse(Protocol):
    def __call__(self, row: dict[str, Any], where: str, number: int, file: DataFile) -> list[Problem]: ...


Check = Callable[[Problem], object]  # raises `UnmaskError` for a problem that makes no example
Note = Callable[[UnmaskError], None]  # what is to be done about an error


class RowIndex:
    """The problems of a split by their index, read from their files. Ids, order and errors are as if all had been read.

    parse: the problems of a row, with an id where they have one of their own. is_mine: whether one belongs to the split.
    purpose: of the digest by which rows are put in order; empty = as they are.
    """

    def __init__(
        self, files: Sequence[DataFile], parse: Parse, is_mine: Callable[[Problem], bool], check: Check, note: Note,
        purpose: str = "", limit: int | None = None,
    ):  # fmt: skip
        self._files, self._parse = [RowFile(file) for file in files], parse
        self._columns = self._find(is_mine, check, note, purpose)
        self._number_same_questions()
        self._refuse_same_ids(note)
        if purpose:
            self._keep(self._in_order())
        self._keep(slice(limit))

    def finish(self, shown: Sequence[Problem], num_shots: int, check: Check, note: Note) -> None:
        """Notes what `check` has against rows, in order, and leaves these out: those that were found to make no example, and
        those that need another shot than the `shown` ones, which are the candidates for shots."""
        is_bad, question = self._columns["is_bad"], self._columns["question"]
        if len(shown) < num_shots:
            is_bad[:] = True
        elif len(shown) == num_shots:
            is_bad |= np.isin(question, [_number(question_digest(shot.question, "id")) for shot in shown])
        for index in np.flatnonzero(is_bad):
            try:
                check(self[int(index)])
            except UnmaskError as error:
                note(error)
        self._keep(is_bad == 0)
        self._columns = {name: self._columns[name] for name in ("file", "number", "place", "part", "copy", "kind")}

    def __len__(self) -> int:
        return len(self._columns["file"])

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, place, part, copy = (int(self._columns[name][index]) for name in ("number", "place", "part", "copy"))
        file = self._files[self._columns["file"][index]]
        problem = self._parse(file.read(number, place), file.where(number), number, file.file)[part]
        return problem if problem.id else replace(problem, id=nameless_id(problem, copy))

    def first_of_each_kind(self) -> list[int]:
        """Indices, ascending: the first row of each combination of response, answer and tests that there is."""
        return sorted(np.unique(self._columns["kind"], return_index=True)[1].tolist())

    def _find(self, is_mine: Callable[[Problem], bool], check: Check, note: Note, purpose: str) -> dict[str, np.ndarray]:
        """The first pass, in the order of the files."""
        columns = {name: array(code) for name, code in _COLUMNS.items()}
        prefixes = bytearray()
        for file_number, file in enumerate(self._files):
            for number, place, row in file.scan():
                try:
                    if isinstance(row, UnmaskError):
                        raise row
                    problems = self._parse(row, file.where(number), number, file.file)
                except UnmaskError as error:
                    note(error)
                    continue
                for part, problem in enumerate(problems):
                    if not is_mine(problem):
                        continue
                    question, name = question_digest(problem.question, "id"), problem.id.encode(errors="surrogatepass")
                    values = {
                        "file": file_number, "number": number, "place": place, "part": part, "copy": 0, "kind": _kind(problem),
                        "is_bad": _is_bad(problem, check), "is_named": bool(name), "question": _number(question),
                        "name": _number(hashlib.blake2b(name, digest_size=8).digest()),
                    }  # fmt: skip
                    for key, value in values.items():
                        columns[key].append(value)
                    if purpose:
                        columns["order"].append(_number(question_digest(problem.question, purpose)))
                        prefixes += (name or question.hex().encode())[:_PREFIX].ljust(_PREFIX, b"\0")
        if not purpose:
            del columns["order"]
            return {name: np.array(column) for name, column in columns.items()}
        prefix = np.frombuffer(prefixes, dtype=f"S{_PREFIX}")
        return {**{name: np.array(column) for name, column in columns.items()}, "prefix": prefix}

    def _number_same_questions(self) -> None:
        """Sets "copy": how many rows without an id have the same question before this one."""
        nameless = np.flatnonzero(self._columns["is_named"] == 0)
        nameless = nameless[np.argsort(self._columns["question"][nameless], kind="stable")]
        question = self._columns["question"][nameless]
        first = np.flatnonzero(np.diff(question, prepend=question[:1] + 1))
        self._columns["copy"][nameless] = np.arange(len(question)) - np.repeat(first, np.diff(first, append=len(question)))

    def _refuse_same_ids(self, note: Note) -> None:
        """Leaves out, and notes, every row whose own id an earlier one has. Those with equal hashes are read again to tell."""
        name = self._columns["name"]
        named = np.flatnonzero(self._columns["is_named"])
        _, inverse, count = np.unique(name[named], return_inverse=True, return_counts=True)
        where_of: dict[str, str] = {}
        is_kept = np.ones(len(name), dtype=bool)
        for index in named[count[inverse] > 1]:
            problem = self[int(index)]
            if problem.id in where_of:
                note(same_id(problem, where_of[problem.id]))
                is_kept[index] = False
            where_of.setdefault(problem.id, problem.where)
        self._keep(is_kept)

    def _in_order(self) -> np.ndarray:
        """By digest, then by id: its first bytes, and where these are equal by reading it."""
        order, prefix = self._columns["order"], self._columns["prefix"]
        index = np.lexsort((prefix, order))
        is_tie = (np.diff(order[index]) == 0) & (prefix[index][1:] == prefix[index][:-1])
        edges = np.flatnonzero(np.diff(np.concatenate(([False], is_tie, [False])).astype(np.int8)))
        for begin, end in edges.reshape(-1, 2):
            index[begin : end + 1] = sorted(index[begin : end + 1], key=lambda i: self[int(i)].id)
        return index

    def _keep(self, which: Any) -> None:
        self._columns = {name: column[which].copy() for name, column in self._columns.items()}


# By type codes of `array`. kind: bits for response, answer, tests. name, question, order: digests.
_COLUMNS = {
    "file": "i", "number": "q", "place": "q", "part": "i", "copy": "i", "kind": "B", "is_bad": "B", "is_named": "B",
    "question": "Q", "name": "Q", "order": "Q",
}  # fmt: skip


def same_id(problem: Problem, where: str) -> UnmaskError:
    return UnmaskError(f"{problem.where}: two rows have the id {problem.id!r}; ids must differ (see {where})")


def nameless_id(problem: Problem, copy: int) -> str:
    """Of a row without one: its question's hash, from the second of one question on with a number."""
    name = question_digest(problem.question, "id").hex()
    return f"{name}-{copy + 1}" if copy else name


def _kind(problem: Problem) -> int:
    has = (problem.response is not None, problem.answer is not None, problem.tests is not None)
    return sum(bit << i for i, bit in enumerate(has))


def _is_bad(problem: Problem, check: Check) -> bool:
    try:
        check(problem)
    except UnmaskError:
        return True
    return False


def _number(digest: bytes) -> int:
    return int.from_bytes(digest)


def _stamp(path: Path) -> tuple[int, int]:
    """What a file that is written anew has another of: size, time."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise UnmaskError(f"{path}: no such file") from None
    except OSError as error:
        raise describe_os_error(error, path) from error
    return found.st_size, found.st_mtime_ns


def _copy_of(path: Path, stamp: tuple[int, int]) -> Path:
    """Where the copy of a parquet file is kept, from one run to the next."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.blake2b(f"{path.resolve()} {stamp}".encode(), digest_size=8).hexdigest()
    return cache / "unmask" / "rows" / f"{path.stem}-{digest}.arrow"
