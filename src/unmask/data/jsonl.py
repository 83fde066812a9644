"""Rows of one's own, as JSON lines, JSON arrays or parquet: `messages` or `question`, with an answer, tests, a response."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from unmask.config import check
from unmask.data.problems import Problem, read_tests, read_text
from unmask.data.row_source import Location, RowOptions, RowSource
from unmask.data.rows import DataFile, NoRowsError, Split, on_hub
from unmask.errors import UnmaskError
from unmask.types import Example


class JsonlSource(RowSource):
    """All rows of the files, in order. A row without an `id` has the number of its line (or its index)."""

    class Options(RowOptions):
        path: str = Field(description="training rows: file, folder, or data set on the hub (owner/name, owner/name:PATTERN)")
        question_key: str = Field("question", description="field that holds the user's turn")
        answer_key: str = Field("ground_truth_answer", description="field that holds the verifiable answer")
        response_key: str = Field("response", description="field that holds the demonstration")
        trained_turns: Literal["all", "last"] = Field(
            "all", description="of messages that end with the assistant's turn: which of its turns are demonstrations"
        )

    unnamed_split: Split = "train"

    def locations(self) -> list[Location]:
        path, held_out = self.options.path, self.options.held_out_path
        if held_out:
            return [(path, "train"), (held_out, "held_out")]
        return [(path, None if on_hub(path) or Path(path).is_dir() else "train")]  # names tell what is for training

    def refuse_empty(self, split: Split) -> None:
        o = self.options
        [(_, of), *_] = self.locations()
        if o.held_out_share is None and of is None:
            raise NoRowsError(f"{o.path}: no rows of the split {split}, as the names of the files tell")
        if split == "held_out" and not o.held_out_path and not o.held_out_share:
            raise NoRowsError("source.options.held_out_path is missing; evaluation needs it (or held_out_share)")
        if o.held_out_share is not None:
            raise NoRowsError(f"{o.path}: no rows of the split {split} with held_out_share {o.held_out_share}")
        raise NoRowsError(f"{o.path if split == 'train' else o.held_out_path}: no rows")

    def default_id(self, number: int, file: DataFile, is_only: bool) -> str:
        return str(number) if is_only else f"{file.name}-{number}"

    def parse_all(self, row: dict[str, Any], where: str) -> list[Problem]:
        """A conversation that ends with the assistant's turn is a problem for each of these turns, given what stands before."""
        problem = self.parse(row, where)
        turns = problem.messages
        if not turns or turns[-1].role != "assistant":
            return [problem]
        if problem.response is not None:
            raise UnmaskError(
                f"{where}: messages end with the assistant's turn, and there is a {self.options.response_key}, too"
            )
        places = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        if places[0] == 0:
            raise UnmaskError(f"{where}: messages begin with the assistant's turn; it has nothing to answer")
        question = "\n".join(turn.content for turn in turns[: places[0]])  # all on the same side of a split
        problems = []
        for number, place in enumerate(places, 1):
            is_last = place == places[-1]
            if is_last or self.options.trained_turns == "all":
                of = problem if is_last else replace(problem, answer=None, tests=None, step_map=None)
                part = f"/{number}" if len(places) > 1 else ""
                response = turns[place].content
                problems.append(replace(of, question=question, messages=turns[:place], response=response, part=part))
        return problems

    def parse(self, row: dict[str, Any], where: str) -> Problem:
        o = self.options
        fields: dict[str, Any] = {
            "id": read_text(row, ["id"], where) or "",
            "answer": read_text(row, [o.answer_key], where),
            "response": read_text(row, [o.response_key], where),
            "response_prefix": read_text(row, ["response_prefix"], where),
            "tests": read_tests(row, where),
            "step_map": check(Example, {"id": "", "messages": [_NO_TURN], "step_map": row.get("step_map")}, where).step_map,
        }
        if row.get("messages") is not None:
            turns = check(Example, {"id": "", "messages": _plain_turns(row["messages"])}, where).messages
            return Problem(where, "\n".join(turn.content for turn in turns), messages=turns, **fields)
        is_prompt = o.question_key == "question" and row.get("question") is None and "prompt" in row
        key = "prompt" if is_prompt else o.question_key
        if not isinstance(row.get(key), str):
            raise UnmaskError(f"{where}: needs the text field {o.question_key!r} (or messages); found {', '.join(row)}")
        return Problem(where, row[key], **fields)


_NO_TURN = {"role": "user", "content": ""}


def _plain_turns(turns: Any) -> Any:
    """Turns of role and content: thoughts in a field of their own are put before the answer, as models write them; parts
    that are text are joined; a field without a value (of a table, where other rows have one) is none."""
    if not isinstance(turns, list):
        return turns
    plain = []
    for turn in turns:
        if isinstance(turn, dict):
            turn = {name: value for name, value in turn.items() if value is not None or name in ("role", "content")}
            if isinstance(parts := turn.get("content"), list) and all(map(_is_text_part, parts)):
                turn["content"] = "".join(part["text"] for part in parts)
            if isinstance(thoughts := turn.get("reasoning_content"), str):
                del turn["reasoning_content"]
                if thoughts and isinstance(turn.get("content"), str):  # else that is what is wrong with it
                    turn["content"] = f"<think>\n{thoughts.strip()}\n</think>\n\n{turn['content']}"
        plain.append(turn)
    return plain


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.keys() == {"type", "text"} and isinstance(part["text"], str)


def to_row(example: Example) -> dict[str, Any]:
    """The row that `JsonlSource` by default reads as this example. Raises `UnmaskError` for a recorded trace."""
    if example.trace is not None:
        raise UnmaskError(
            f"example {example.id}: a recorded trace has no place in a row; the source `traces` reads it as it is"
        )
    row = example.model_dump(include={"id", "messages"})
    fields = {"response": example.response, "ground_truth_answer": example.answer}
    row |= {name: value for name, value in fields.items() if value is not None}
    if example.step_map is not None:
        row["step_map"] = list(example.step_map)
    if example.response_prefix:
        row["response_prefix"] = example.response_prefix
    return row | (example.tests.model_dump(exclude_defaults=True) if example.tests else {})
