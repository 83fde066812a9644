"""Examples from JSON lines: `messages`, or `question` with `ground_truth_answer` and/or `response`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from unmask.config import check
from unmask.errors import UnmaskError
from unmask.files import read_jsonl
from unmask.types import Example


class JsonlSource:
    """All rows of a file, in order; read once, checked row by row (errors name file and line)."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        path: str = Field(description="file of the training split")
        held_out_path: str = Field("", description="file of the held-out split; needed for evaluation")
        question_key: str = Field("question", description="field that holds the user's turn")
        answer_key: str = Field("ground_truth_answer", description="field that holds the verifiable answer")
        response_key: str = Field("response", description="field that holds the demonstration")
        prompt_template: str = Field("{question}", description="the user's turn; {question} is replaced")

    vocabulary: tuple[str, ...] | None = None  # free text needs a real tokenizer

    def __init__(self, options: Options, split: Literal["train", "held_out"], seed: int):
        path = options.path if split == "train" else options.held_out_path
        if not path:
            raise UnmaskError("source.options.held_out_path is missing; evaluation needs it")
        self.options = options
        self._examples = [self._parse(where, row) for where, row in read_jsonl(Path(path))]
        if not self._examples:
            raise UnmaskError(f"{path}: no rows")

    def _parse(self, where: str, row: dict) -> Example:
        o = self.options
        example = {"id": str(row.get("id", where.rpartition(":")[2]))}
        for field, key in (("answer", o.answer_key), ("response", o.response_key)):
            value = row.get(key)
            if isinstance(value, list | dict | bool):
                raise UnmaskError(f"{where}: {key} must be text or a number, found {type(value).__name__}")
            if value is not None:
                example[field] = str(value)
        if "messages" in row:
            return check(Example, {**example, "messages": row["messages"]}, where)
        if not isinstance(row.get(o.question_key), str):
            raise UnmaskError(f"{where}: needs the text field {o.question_key!r} (or messages); found {', '.join(row)}")
        content = o.prompt_template.replace("{question}", row[o.question_key])
        return check(Example, {**example, "messages": [{"role": "user", "content": content}]}, where)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]
