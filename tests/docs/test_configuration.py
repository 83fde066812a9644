"""docs/configuration.md: its tables are those of the code, and its examples are valid."""

from __future__ import annotations

import importlib.util

import pytest

from tests.docs.blocks import ROOT, code_blocks
from unmask.config import EvalRecipe, RlRecipe, SftRecipe, load_recipe
from unmask.config.evaluation import DEFAULT_MODES
from unmask.config.load import check, read_toml
from unmask.data.jsonl import JsonlSource
from unmask.errors import UnmaskError
from unmask.train.folder import _MAY_CHANGE
from unmask.types import SamplingParams

PAGE = ROOT / "docs" / "configuration.md"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "docs" / "generate_configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_up_to_date(script) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert script.render(page) == page, "the page is stale: run python docs/generate_configuration.py"


def test_every_table_is_on_the_page(script) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in script.TABLES if f"<!-- table: {name} -->" not in page] == []


def test_every_key_of_a_resolved_recipe_is_listed(script) -> None:
    """From the other side: each key that --dry-run prints has a row."""
    for kind, words in ((SftRecipe, ["model.path=x"]), (RlRecipe, ["model.path=x"]), (EvalRecipe, [])):
        recipe = load_recipe(kind, [], [*words, "source.name=jsonl"]).model_dump(exclude={"modes", "rollout"})
        rows = {key for key, *_ in script.rows_of(kind, None)}
        for section, table in recipe.items():
            keys = [f"{section}.{key}" for key in table] if isinstance(table, dict) else [section]
            for key in keys:
                assert key in rows or any(row.startswith(f"{key}.") for row in rows), key


def test_a_field_without_a_meaning_is_refused(script) -> None:
    info = SamplingParams.model_fields["top_p"].__class__(annotation=int, default=0)
    with pytest.raises(SystemExit, match=r"SamplingParams\.new_key has no description"):
        script.meaning_of("SamplingParams", "new_key", info)


def test_toml_examples(tmp_path) -> None:
    """Each example is a valid part of some recipe."""
    base = {"rl": {"model": {"path": "x"}, "source": {"name": "jsonl"}}, "eval": {"source": {"name": "jsonl"}}}
    for i, block in enumerate(b for b in code_blocks(PAGE) if b.language == "toml"):
        file = tmp_path / f"{i}.toml"
        file.write_text(block.text)
        if "modes" in read_toml(file):
            load_recipe(EvalRecipe, [file], base=base["eval"])
        else:
            load_recipe(RlRecipe, [file], base=base["rl"])


def test_example_of_an_error(tmp_path) -> None:
    text = next(b.text for b in code_blocks(PAGE) if b.language == "text" and "error:" in b.text)
    with pytest.raises(UnmaskError) as error:
        load_recipe(RlRecipe, [], ["optimizer.lrr=1e-6"])
    assert f"error: {error.value}" == text.splitlines()[1]


def test_example_of_a_row(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(next(b.text for b in code_blocks(PAGE) if b.language == "json"))
    example = JsonlSource(check(JsonlSource.Options, {"path": str(file)}), "train", 0)[0]
    assert example.answer == "4"
    assert example.response == "2 + 2 = \\boxed{4}"


def test_what_the_text_says_of_resuming_and_modes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    chapter = text[text.index("## Going on") : text.index("## Ending a run")]
    assert [key for key in _MAY_CHANGE if f"`{key}" not in chapter] == []
    for name, mode in DEFAULT_MODES.items():
        assert f"| `{name}` | `{mode['remasking_strategy']}` | {mode['temperature']:g} |" in text
