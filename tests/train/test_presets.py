"""A preset with a tokenizer of somebody else's: what it is made with, and which mistakes are named."""

from __future__ import annotations

import json

import pytest

from tests.recipes import SFT, unmask, write_recipe
from unmask.data.chat import ChatTokenizer
from unmask.models.checkpoint import load_model
from unmask.train.checkpoint import list_checkpoints

ROWS = [{"question": f"what is {i} plus 1?", "response": f"it is {i + 1}."} for i in range(10)]


@pytest.fixture
def files(tmp_path):
    """Rows of text, and a tokenizer of characters that knows nothing of masks and pads."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tokenizer = ChatTokenizer.tiny(sorted(set("abcdefghijklmnopqrstuvwxyz ?.0123456789")))
    tokenizer.tokenizer.mask_token = tokenizer.tokenizer.pad_token = None
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path


def train(files, *words):
    source = f"source={{name='jsonl', options={{path='{files / 'rows.jsonl'}'}}}}"
    recipe = write_recipe(files, "sft", SFT.replace('[source]\nname = "chained_arithmetic"\n', ""))
    recipe.write_text(recipe.read_text().replace("options = { min_operations = 1, max_operations = 2 }\n", ""))
    words = [source, "eval.every_steps=0", "train.max_steps=2", f"run.dir={files / 'run'}", *words]
    return unmask("sft", recipe, *words)


@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_a_preset_takes_a_given_tokenizer(family, files) -> None:
    """It gets a mask token, the end of a turn pads, and the checkpoint has both."""
    result = train(files, f"model={{preset='{family}/tiny', tokenizer='{files / 'tokenizer'}'}}")
    assert result.returncode == 0, result.stderr
    folder = list_checkpoints(files / "run" / "checkpoints")[-1]
    tokenizer, spec = ChatTokenizer.load(folder), load_model(folder).spec
    given = ChatTokenizer.load(files / "tokenizer")
    assert spec.vocab_size == len(tokenizer.tokenizer)
    assert spec.mask_token_id == tokenizer.tokenizer.mask_token_id
    assert spec.pad_token_id == tokenizer.turn_end_id == given.turn_end_id
    assert tokenizer.encode("is 3?") == given.encode("is 3?")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model={preset='', path='x', tokenizer='y'}"], "model.tokenizer is for presets; the model of model.path has one"),
        (["model.tokenizer=nowhere"], "nowhere: no such folder"),
        ([], "model.preset needs a source with a vocabulary of its own, and jsonl has none: give model.tokenizer"),
    ],
)
def test_mistakes_are_one_line(words, message, files) -> None:
    result = train(files, *words)
    assert (result.returncode, result.stderr.count("\n"), (files / "run").exists()) == (2, 1, False), result.stderr
    assert message in result.stderr
