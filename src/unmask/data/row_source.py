"""What sources made of rows have in common: which rows are in a split, ids, shots, and going on after a malformed row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from pydantic import Field

from unmask.data.digests import hash_examples, normalized, question_digest
from unmask.data.on_disk import RowIndex, nameless_id, same_id
from unmask.data.problems import Problem
from unmask.data.prompts import PromptOptions, make_example, pick_shots, shot_candidates
from unmask.data.rows import DataFile, NoRowsError, Split, find_files, on_hub, scan_rows, split_of_name
from unmask.errors import UnmaskError
from unmask.types import Example

Location = tuple[str, Split | None]  # where files are, for `find_files`, and the split of all rows there, if it is known


class RowOptions(PromptOptions):
    """Options of every source that is made of rows."""

    held_out_path: str = Field("", description="held-out rows, named like those of path")
    revision: str = Field("", description="branch, tag or commit of a data set on the hub")
    held_out_share: float | None = Field(
        None, ge=0, le=1, description="all rows are put together and this share of them is held out, by a hash of the question"
    )
    shuffle_seed: int | None = Field(None, ge=0, lt=2**31, description="rows in the order of a seeded hash; None = as they are")
    limit: int | None = Field(None, ge=1, description="so many rows of the split, the first ones")
    keeps_on_disk: bool = Field(
        False,
        description="rows stay in their files (JSON lines, parquet) and are read as they are needed; memory holds some tens "
        "of bytes for each",
    )


def is_held_out(question: str, share: float) -> bool:
    """By a hash of the question's words: the same question is on the same side, in whatever order or file the rows are."""
    return int.from_bytes(question_digest(question, "split")) < share * 2**64


class RowSource:
    """Examples of one split, read once and checked row by row; errors name file and line (or index).

    errors: a list in which malformed rows are collected; without it the first one is raised.
    """

    vocabulary: tuple[str, ...] | None = None  # free text needs a real tokenizer
    dataset_hash = property(hash_examples)
    default_share = 0.0  # is held out of rows that are all for training
    unnamed_split: Split | None = None  # of files whose names do not tell; None = of rows that do, else held out

    def __init__(self, options: Any, split: Split, seed: int, errors: list[UnmaskError] | None = None):
        self.options, self._errors = options, errors
        if options.revision and not any(on_hub(location) for location, _ in self.locations()):
            raise UnmaskError(f"source.options.revision {options.revision!r} is for data sets on the hub; all files are local")
        purpose = "" if options.shuffle_seed is None else f"shuffle {options.shuffle_seed}"
        self._shots: list[Problem] | None = None  # candidates, once they are known
        self._index: RowIndex | None = None
        self._examples: list[Example] = []
        files, is_mine = self._plan(split)
        self.files = [file.path for file in files]
        if options.keeps_on_disk:
            parse = partial(self._problems, is_only=len(files) == 1)
            self._index = RowIndex(files, parse, is_mine, self._example, self._note, purpose, options.limit)
            self._shots = self._find_shots(None)
            self._index.finish(self._shots, options.num_shots, self._example, self._note)
        else:
            problems = self._with_ids(self._read(files, is_mine))
            self._shots = self._find_shots(problems if split == "train" else None)
            if purpose:
                problems.sort(key=lambda p: (question_digest(p.question, purpose), p.id))
            for problem in problems[: options.limit]:
                try:
                    self._examples.append(self._example(problem))
                except UnmaskError as error:
                    self._note(error)
        if not len(self) and not errors:
            self.refuse_empty(split)

    def parse(self, row: dict[str, Any], where: str) -> Problem:
        """Raises `UnmaskError` for a malformed row."""
        raise NotImplementedError

    def parse_all(self, row: dict[str, Any], where: str) -> list[Problem]:
        """The problems of a row, most often one. Raises `UnmaskError`."""
        return [self.parse(row, where)]

    def locations(self) -> list[Location]:
        raise NotImplementedError

    def default_id(self, number: int, file: DataFile, is_only: bool) -> str:
        """The id of a row that has none, from the number of its line or index; empty = a hash of its question."""
        return ""

    def refuse_empty(self, split: Split) -> None:
        """Raises `NoRowsError`."""
        where = ", ".join(location for location, _ in self.locations())
        raise NoRowsError(f"{where}: no rows of the split {split}")

    def __len__(self) -> int:
        return len(self._examples if self._index is None else self._index)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index] if self._index is None else self._example(self._index[index])

    def to_check(self) -> Sequence[int]:
        """Indices of examples that stand for all of them when a run asks whether they have what it needs."""
        return range(len(self)) if self._index is None else self._index.first_of_each_kind()

    def _example(self, problem: Problem) -> Example:
        shots = [] if self._shots is None else pick_shots(problem, self._shots, self.options.num_shots)
        return make_example(problem, self.options, shots)

    def _note(self, error: UnmaskError) -> None:
        if self._errors is None:
            raise error
        self._errors.append(error)

    def _plan(self, split: Split) -> tuple[list[DataFile], Callable[[Problem], bool]]:
        """The files with the rows of a split, and which of their rows these are: the published ones; a share by hash where the
        options say so, or where none are held out."""
        share, locations = self.options.held_out_share, self.locations()
        is_published = share is None and any(of == "held_out" for _, of in locations)
        if split == "held_out" and share is None and not self.default_share and all(of == "train" for _, of in locations):
            return [], lambda problem: False
        files = [f for location, of in locations if not is_published or of == split for f in self._files(location, of)]
        if share is None and not is_published and all(file.split == "train" for file in files):
            share = self.default_share
        if share is not None:
            limit = share
            return files, lambda problem: is_held_out(problem.question, limit) == (split == "held_out")
        return [f for f in files if f.split in (split, None)], lambda problem: problem.split == split

    def _files(self, location: str, split: Split | None) -> list[DataFile]:
        revision = self.options.revision if on_hub(location) else ""
        files = find_files(location, revision)
        return [replace(file, split=split or split_of_name(file.name) or self.unnamed_split) for file in files]

    def _read(self, files: Sequence[DataFile], is_mine: Callable[[Problem], bool]) -> Iterator[Problem]:
        for file in files:
            for number, where, row in scan_rows(file.path):
                try:
                    if isinstance(row, UnmaskError):
                        raise row
                    problems = self._problems(row, where, number, file, is_only=len(files) == 1)
                except UnmaskError as error:
                    self._note(error)
                    continue
                yield from filter(is_mine, problems)

    def _problems(self, row: dict[str, Any], where: str, number: int, file: DataFile, is_only: bool) -> list[Problem]:
        """Those of a row, with an id where they have one that is not made of the question."""
        problems = []
        for problem in self.parse_all(row, where):
            name = problem.id or self.default_id(number, file, is_only)
            split = file.split or problem.split or "held_out"
            problems.append(replace(problem, id=f"{name}{problem.part}" if name else "", split=split))
        return problems

    def _with_ids(self, problems: Iterable[Problem]) -> list[Problem]:
        """All with an id: the question's hash for those without one, with a number from the second of one question on.

        Ids of the rows' own that are there twice are refused, once all rows were read.
        """
        first: dict[str, str] = {}
        named = []
        for problem in list(problems):
            name, copy = problem.id or nameless_id(problem, 0), 0
            if not problem.id:
                while name in first:
                    copy += 1
                    name = nameless_id(problem, copy)
            elif name in first:
                self._note(same_id(problem, first[name]))
                continue
            first[name] = problem.where
            named.append(replace(problem, id=name))
        return named

    def _find_shots(self, training: Sequence[Problem] | None) -> list[Problem]:
        """Candidates, one more than are shown: rows with a response, no question twice. `training`: those rows, if read."""
        num = self.options.num_shots + 1
        if num == 1:
            return []
        if path := self.options.shots_path:
            by_question: dict[str, Problem] = {}
            for problem in self._read(self._files(path, None), lambda problem: True):
                if problem.response is not None and len(by_question) < num:
                    by_question.setdefault(normalized(problem.question), problem)
            return list(by_question.values())
        rows = iter(self._read(*self._plan("train")) if training is None else training)
        if (first := next(rows, None)) is None:
            raise UnmaskError("source.options.num_shots: there are no training rows to take them from; give shots_path")
        return shot_candidates(chain([first], rows), num)
