"""docs/data.md: its table of tasks and its templates are those of the code, and its examples are valid."""

from __future__ import annotations

import re
import tomllib

from tests.docs.blocks import ROOT, code_blocks
from unmask.config import Plugin, plugin_options
from unmask.data import prompts
from unmask.data.problems import _TEST_FIELDS
from unmask.data.rows import _HELD_OUT_WORDS, split_of_name
from unmask.data.sources import SOURCES
from unmask.data.tasks import TASKS, TRAINING_SHARE

PAGE = ROOT / "docs" / "data.md"
TEXT = PAGE.read_text(encoding="utf-8")


def between(name: str) -> str:
    return TEXT[TEXT.index(f"<!-- {name} -->") : TEXT.index(f"<!-- /{name} -->")]


def test_tasks() -> None:
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:4]] for line in between("tasks").splitlines()[3:]]
    assert sorted(rows) == sorted([task.name, task.train, task.held_out] for task in TASKS.values())


def test_templates() -> None:
    shown = between("templates")
    assert [t for t in (prompts.MATH, prompts.FUNCTION, prompts.STDIO) if f"\n{t}\n" not in shown] == []


def test_fields_and_words() -> None:
    assert [name for name in (*_TEST_FIELDS, "id", "response_prefix") if f"`{name}`" not in TEXT] == []
    words = re.findall(r"`(\w+)`", TEXT[TEXT.index("a word `train`, or") : TEXT.index("- In a file whose")])
    assert {split_of_name(f"{word}.json") for word in words[1:]} == {"held_out"}
    assert set(words[1:]) - {"held_out"} < _HELD_OUT_WORDS
    assert TRAINING_SHARE == 1 / 20


def test_examples() -> None:
    for block in code_blocks(PAGE):
        if block.language == "toml":
            plugin_options(SOURCES, Plugin(**tomllib.loads(block.text)["source"]), "source")
