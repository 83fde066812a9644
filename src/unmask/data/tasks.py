"""The field's usual tasks by name: where their rows are, and how a row is read and shown. See docs/data.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from unmask.data import prompts
from unmask.data.code_rows import code, humaneval, mbpp
from unmask.data.math_rows import gsm8k, math
from unmask.data.problems import Problem
from unmask.data.row_source import Location, RowOptions, RowSource
from unmask.data.rows import NoRowsError, Split
from unmask.errors import UnmaskError

TRAINING_SHARE = 0.05  # is held out of a data set that has training rows alone


class TaskOptions(RowOptions):
    """Options of every task. `reward`: the name of the one that scores its answers."""

    reward: ClassVar[str]

    path: str = Field(
        "",
        description="in place of the task's own rows: file, folder, or data set on the hub (owner/name, owner/name:PATTERN)",
    )


class MathOptions(TaskOptions):
    """Mathematics: questions with an answer that is compared ([docs/data.md](data.md))."""

    reward = "math"
    prompt_template: str = Field(prompts.MATH, description="the user's turn; {question} is replaced")


class CodeOptions(TaskOptions):
    """Programs: questions with tests, of functions or of what is written for some input ([docs/data.md](data.md))."""

    reward = "code"
    prompt_template: str = Field(
        prompts.FUNCTION, description="the user's turn of a function; {question} is replaced, and {tests} by its tests"
    )
    stdio_template: str = Field(prompts.STDIO, description="the user's turn of a program that reads and writes, likewise")

    def template_of(self, problem: Problem) -> str:
        is_stdio = problem.tests is not None and problem.tests.test_method == "stdio"
        return self.stdio_template if is_stdio else self.prompt_template


@dataclass(frozen=True, slots=True)
class Task:
    """A data set of the field: its name, how a row is read, and where its rows are on the hub (`find_files`).

    train, held_out: empty = not published. Called like the class of a source, it opens the task.
    """

    name: str
    parse: Callable[[dict[str, Any], str], Problem]
    Options: type[TaskOptions]
    train: str = ""
    held_out: str = ""

    @property
    def reward(self) -> str:
        return self.Options.reward

    def __call__(self, options: TaskOptions, split: Split, seed: int, errors: list[UnmaskError] | None = None) -> TaskSource:
        return TaskSource(self, options, split, seed, errors)


class TaskSource(RowSource):
    """The rows of a task: its own, or those at `path`, where the names of files tell the splits apart."""

    default_share = TRAINING_SHARE

    def __init__(self, task: Task, options: TaskOptions, split: Split, seed: int, errors: list[UnmaskError] | None = None):
        self.task = task
        self.unnamed_split = None if task.held_out else "train"
        super().__init__(options, split, seed, errors)

    def parse(self, row: dict[str, Any], where: str) -> Problem:
        return self.task.parse(row, where)

    def locations(self) -> list[Location]:
        path, held_out = self.options.path, self.options.held_out_path
        if path and not held_out:
            return [(path, None)]
        both: list[Location] = [(path or self.task.train, "train"), (held_out or self.task.held_out, "held_out")]
        return [(location, split) for location, split in both if location]

    def refuse_empty(self, split: Split) -> None:
        where = ", ".join(location for location, _ in self.locations())
        hint = "give path and held_out_path, or held_out_share" if split == "train" else "give held_out_path, or held_out_share"
        raise NoRowsError(f"source {self.task.name}: no rows of the split {split} at {where}; {hint}")


def _gen_verse(name: str, folder: str) -> str:
    return f"Gen-Verse/{name}:{folder}/{name}.json"


_TASKS = (
    Task("gsm8k", gsm8k, MathOptions, train="openai/gsm8k:main/train-*.parquet", held_out=_gen_verse("GSM8K", "test")),
    Task("math500", math, MathOptions, held_out=_gen_verse("MATH500", "test")),
    Task("aime2024", math, MathOptions, held_out=_gen_verse("AIME2024", "test")),
    Task("math_train", math, MathOptions, train=_gen_verse("MATH_train", "train")),
    Task("humaneval", humaneval, CodeOptions, held_out=_gen_verse("HumanEval", "test")),
    Task(
        "mbpp", mbpp, CodeOptions,
        train="google-research-datasets/mbpp:full/train-*.parquet", held_out=_gen_verse("MBPP", "test"),
    ),
    Task("livecodebench", code, CodeOptions, held_out=_gen_verse("LiveCodeBench", "test")),
    Task("livebench", code, CodeOptions, held_out=_gen_verse("LiveBench", "test")),
    Task("primeintellect", code, CodeOptions, train=_gen_verse("PrimeIntellect", "train")),
)  # fmt: skip
TASKS = {task.name: task for task in _TASKS}
