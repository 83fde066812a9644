"""What sources made of rows have in common: which rows are in a split, ids, shots, and going on after a malformed row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from unmask.data.digests import hash_examples, normalized, question_digest
from unmask.data.problems import Problem
from unmask.data.prompts import PromptOptions, make_example, pick_shots
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
        problems = self._with_ids(self._select(split))
        shots = self._shots(problems if split == "train" else None) if options.num_shots else []
        if options.shuffle_seed is not None:
            purpose = f"shuffle {options.shuffle_seed}"
            problems.sort(key=lambda p: (question_digest(p.question, purpose), p.id))
        self._examples: list[Example] = []
        for problem in problems[: options.limit]:
            try:
                self._examples.append(make_example(problem, options, pick_shots(problem, shots, options.num_shots)))
            except UnmaskError as error:
                self._note(error)
        if not self._examples and not errors:
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
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def _note(self, error: UnmaskError) -> None:
        if self._errors is None:
            raise error
        self._errors.append(error)

    def _select(self, split: Split) -> list[Problem]:
        """The rows of a split: the published ones; a share by hash where the options say so, or where none are held out."""
        share, locations = self.options.held_out_share, self.locations()
        is_published = share is None and any(of == "held_out" for _, of in locations)
        if split == "held_out" and share is None and not self.default_share and all(of == "train" for _, of in locations):
            return []
        files = [f for location, of in locations if not is_published or of == split for f in self._files(location, of)]
        if share is None and not is_published and all(file.split == "train" for file in files):
            share = self.default_share
        if share is not None:
            return [p for p in self._read(files) if is_held_out(p.question, share) == (split == "held_out")]
        return [p for p in self._read([f for f in files if f.split in (split, None)]) if p.split == split]

    def _files(self, location: str, split: Split | None) -> list[DataFile]:
        revision = self.options.revision if on_hub(location) else ""
        files = find_files(location, revision)
        return [replace(file, split=split or split_of_name(file.name) or self.unnamed_split) for file in files]

    def _read(self, files: Sequence[DataFile]) -> list[Problem]:
        problems = []
        for file in files:
            for number, where, row in scan_rows(file.path):
                try:
                    if isinstance(row, UnmaskError):
                        raise row
                    found = self.parse_all(row, where)
                except UnmaskError as error:
                    self._note(error)
                    continue
                for problem in found:
                    name = problem.id or self.default_id(number, file, is_only=len(files) == 1)
                    split = file.split or problem.split or "held_out"
                    problems.append(replace(problem, id=f"{name}{problem.part}" if name else "", split=split))
        return problems

    def _with_ids(self, problems: list[Problem]) -> list[Problem]:
        """All with an id: the question's hash for those without one, with a number from the second of one question on.

        Ids of the rows' own that are there twice are refused.
        """
        first: dict[str, str] = {}
        named = []
        for problem in problems:
            name = problem.id or question_digest(problem.question, "id").hex()
            if not problem.id:
                base, number = name, 2
                while name in first:
                    name, number = f"{base}-{number}", number + 1
            elif name in first:
                self._note(UnmaskError(f"{problem.where}: two rows have the id {name!r}; ids must differ (see {first[name]})"))
                continue
            first[name] = problem.where
            named.append(replace(problem, id=name))
        return named

    def _shots(self, training: Sequence[Problem] | None) -> list[Problem]:
        """Candidates, one more than are shown: rows with a response, no question twice. `training`: those rows, if read."""
        if path := self.options.shots_path:
            rows = self._read(self._files(path, None))
        else:
            if training is None:
                training = self._select("train")
            if not training:
                raise UnmaskError("source.options.num_shots: there are no training rows to take them from; give shots_path")
            rows = sorted(training, key=lambda p: (question_digest(p.question, "shots"), p.where))
        by_question: dict[str, Problem] = {}
        for problem in rows:
            if problem.response is not None and len(by_question) <= self.options.num_shots:
                by_question.setdefault(normalized(problem.question), problem)
        return list(by_question.values())
