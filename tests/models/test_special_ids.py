"""Special ids: from the config, from the tokenizer's files, and errors where they contradict."""

from __future__ import annotations

import json

import pytest

from tests.models.rows import Row, build
from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model, read_spec, save_model


@pytest.fixture
def folder(tmp_path):
    """A model folder without special ids in its config, and a tokenizer that knows them."""
    save_model(build(Row("sdar", "sdar/tiny")), tmp_path / "m")
    put(tmp_path / "m", "config.json", mask_token_id=..., pad_token_id=..., eos_token_id=3)
    tokens = {"4": "<|endoftext|>", "5": "<|im_end|>", "6": "<|MASK|>", "7": "<other>"}
    put(
        tmp_path / "m", "tokenizer_config.json", pad_token="<|endoftext|>", eos_token={"content": "<|im_end|>"},
        mask_token="<|MASK|>", added_tokens_decoder={i: {"content": text} for i, text in tokens.items()},
    )  # fmt: skip
    return tmp_path / "m"


def put(folder, name, **values) -> None:
    file = folder / name
    table = json.loads(file.read_text()) if file.exists() else {}
    table.update(values)
    file.write_text(json.dumps({key: value for key, value in table.items() if value is not ...}))


def ids(folder) -> tuple[int, int, tuple[int, ...]]:
    spec = read_spec(folder)[2]
    return spec.mask_token_id, spec.pad_token_id, spec.eos_token_ids


def test_the_tokenizer_fills_in_what_the_config_lacks(folder) -> None:
    assert ids(folder) == (6, 4, (3, 5))


def test_the_config_comes_first_and_may_agree(folder) -> None:
    put(folder, "config.json", mask_token_id=6, pad_token_id=4, eos_token_id=[4, 3])
    assert ids(folder) == (6, 4, (4, 3, 5))


def test_end_tokens_are_everybodys(folder) -> None:
    put(folder, "generation_config.json", eos_token_id=[9, 5])
    assert ids(folder)[2] == (3, 9, 5)


def test_the_family_knows_its_mask_token_by_text(folder) -> None:
    """LLaDA's tokenizer has <|mdm_mask|> but declares no mask token; the same goes for the end of a turn."""
    put(folder, "tokenizer_config.json", mask_token=None, eos_token="<|endoftext|>")
    assert ids(folder) == (6, 4, (3, 4, 5))


def test_tokens_may_stand_in_other_files(folder) -> None:
    put(folder, "tokenizer_config.json", added_tokens_decoder=..., mask_token=..., pad_token=...)
    put(folder, "special_tokens_map.json", mask_token={"content": "<m>"}, pad_token="<p>")
    put(folder, "added_tokens.json", **{"<m>": 20})
    put(folder, "tokenizer.json", model={"vocab": {"<p>": 21}}, added_tokens=[{"id": 22, "content": "<|im_end|>"}])
    assert ids(folder) == (20, 21, (3, 22))


def test_a_mask_token_known_by_its_text_may_not_differ(folder) -> None:
    put(folder, "tokenizer_config.json", mask_token=None)
    put(folder, "config.json", mask_token_id=7)
    with pytest.raises(UnmaskError, match=r"mask_token_id 7 contradicts the tokenizer, whose mask_token '<\|MASK\|>' is 6"):
        load_model(folder)


def test_added_tokens_come_before_the_vocabulary(folder) -> None:
    put(folder, "tokenizer_config.json", eos_token="<p>")  # which only the vocabulary has, so that it is read
    put(folder, "tokenizer.json", model={"vocab": {"<|im_end|>": 30, "<p>": 31}})
    assert ids(folder) == (6, 4, (3, 31, 5))


def test_without_a_pad_token_an_end_token_pads(folder) -> None:
    put(folder, "tokenizer_config.json", pad_token=None)
    assert ids(folder)[1] == 3


def test_what_was_filled_in_is_not_saved(folder, tmp_path) -> None:
    model = load_model(folder)
    assert model.spec.mask_token_id == 6
    save_model(model, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert load_model(tmp_path / "again").spec == model.spec  # the tokenizer's files came along


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"mask_token_id": 8}, "mask_token_id 8 contradicts the tokenizer, whose mask_token '<|MASK|>' is 6"),
        ("config.json", {"pad_token_id": 8}, "pad_token_id 8 contradicts the tokenizer, whose pad_token '<|endoftext|>' is 4"),
        ("config.json", {"mask_token_id": "6"}, "config.json: mask_token_id: Input should be a valid integer, found '6'"),
        ("config.json", {"eos_token_id": 6}, "config.json: mask_token_id 6 is also an end token; they must differ"),
        ("config.json", {"eos_token_id": "x"}, "config.json: eos_token_id: should be a token id or a list of them, found 'x'"),
        ("generation_config.json", {"eos_token_id": "x"}, "generation_config.json: eos_token_id: should be a token id"),
        ("config.json", {"eos_token_id": 96}, "config.json: eos_token_id 96 is outside the vocabulary of 96"),
        ("tokenizer_config.json", {"pad_token": "<|MASK|>"}, "config.json: mask_token_id 6 is also pad_token_id"),
        ("tokenizer_config.json", {"mask_token": None, "added_tokens_decoder": {}},
         "key 'mask_token_id' is missing, and no tokenizer file here declares a mask token or has '<|MASK|>'"),
    ],
)  # fmt: skip
def test_contradictions_are_named(folder, file, values, message) -> None:
    put(folder, file, **values)
    with pytest.raises(UnmaskError) as error:
        load_model(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)
