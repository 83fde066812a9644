"""`unmask inspect` and `unmask checkpoint`: what is printed and written, and one line for every mistake."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import GOLDEN
from tests.models.rows import Row, build, random_ids
from tests.recipes import unmask
from unmask.models import ValueModel
from unmask.models.checkpoint import load_model, save_model
from unmask.models.lora import add_lora, merge_adapter, save_adapter

MOE = Row("moe", "sdar_moe/tiny")


@pytest.fixture
def folder(tmp_path):
    save_model(build(MOE), tmp_path / "m")
    return tmp_path / "m"


def facts(*words) -> dict:
    result = unmask("inspect", *words, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_inspect_shows_what_a_checkpoint_is(folder) -> None:
    text = unmask("inspect", folder).stdout
    for shown in (
        "sdar_moe",
        "block-causal, blocks of 4",
        "266,272",
        "8, 2 active, 48 wide, in all layers",
        "complete",
        "theta 10000",
    ):
        assert shown in text, text
    got = facts(folder)
    assert got["parameters"] == sum(p.numel() for p in load_model(folder).parameters())
    experts = sum(t.numel() for name, t in load_file(folder / "model.safetensors").items() if ".experts." in name)
    assert got["active parameters"] == got["parameters"] - experts * 6 // 8
    assert (got["mask token"], got["pad token"], got["end tokens"]) == (2, 0, "1")


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"golden fixtures are not at {GOLDEN}")
@pytest.mark.parametrize(
    ("name", "attention", "shifted"),
    [("sdar_a", "block-causal, blocks of 4", "no"), ("dream_a", "bidirectional, decoded in blocks of 32", "yes"),
     ("llada_a", "bidirectional, decoded in blocks of 32", "no"), ("mmada_a", "bidirectional, decoded in blocks of 32", "no")],
)  # fmt: skip
def test_inspect_published_folders(name, attention, shifted) -> None:
    got = facts(GOLDEN / name)
    assert (got["attention"], got["shifted logits"]) == (attention, shifted)
    assert got["weights"].endswith("complete")


def test_inspect_needs_no_weights(folder) -> None:
    (folder / "model.safetensors").unlink()
    assert facts(folder)["weights"] == "not here"
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')  # as fetched
    assert facts(folder)["weights"] == "not here"
    assert facts("llada/8b")["parameters"] == 8_015_581_184


def test_inspect_says_what_will_not_load(folder) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")
    result = unmask("inspect", folder, "--json")
    assert (result.returncode, json.loads(result.stdout)["weights"]) == (2, "will not load")
    assert "tensors do not fit family sdar_moe: 1 missing ('model.norm.weight' [64])" in result.stderr
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    result = unmask("inspect", folder)
    assert (result.returncode, "will not load" in result.stdout) == (2, True)
    assert "offers its weights only as pickles" in result.stderr


def test_inspect_knows_a_value_model(folder, tmp_path) -> None:
    save_model(ValueModel.from_policy(load_model(folder)), tmp_path / "value")
    got = facts(tmp_path / "value")
    assert (got["head"], got["weights"].endswith("complete")) == ("value", True)


def test_new_writes_a_model_that_loads(tmp_path) -> None:
    result = unmask("checkpoint", "new", "llada/tiny", tmp_path / "m", "d_model=48", "n_heads=3", "n_kv_heads=3", "--seed", 4)
    assert result.returncode == 0, result.stderr
    model = load_model(tmp_path / "m")
    assert (model.spec.hidden_size, model.spec.num_heads, model.spec.family) == (48, 3, "llada")


def test_export_changes_dtype_and_shards(folder, tmp_path) -> None:
    words = ("--dtype", "bfloat16", "--max-shard-gb", 0.0002)
    result = unmask("checkpoint", "export", folder, tmp_path / "out", *words)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    got, want = load_model(tmp_path / "out", dtype="auto"), load_model(folder)
    assert torch.equal(got.embed_tokens.weight, want.embed_tokens.weight.bfloat16())
    again = unmask("checkpoint", "export", tmp_path / "out", tmp_path / "again")
    assert "266,272 parameters as bfloat16" in again.stderr


def test_export_merges_an_adapter(folder, tmp_path) -> None:
    model = load_model(folder)
    adapter = add_lora(model, rank=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    ids = random_ids(model, 2, 9)
    want = model.logits(ids)
    save_adapter(adapter, tmp_path / "adapter")
    result = unmask("checkpoint", "export", folder, tmp_path / "out", "--adapter", tmp_path / "adapter")
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(load_model(tmp_path / "out").logits(ids), want, atol=5e-5, rtol=1e-5)


def test_export_merges_in_float32_and_rounds_once(folder, tmp_path) -> None:
    """An adapter on a bfloat16 checkpoint: the sum of both is rounded, not the sum of roundings."""
    save_model(load_model(folder, dtype="bfloat16"), tmp_path / "half")
    model = load_model(tmp_path / "half")
    adapter = add_lora(model, rank=2, target_modules=["q_proj"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(adapter, tmp_path / "adapter")
    merged = merge_adapter(adapter).layers[0].self_attn.q_proj.weight
    assert (
        unmask("checkpoint", "export", tmp_path / "half", tmp_path / "out", "--adapter", tmp_path / "adapter").returncode == 0
    )
    got = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(got, merged.bfloat16())


def test_export_of_a_value_model(folder, tmp_path) -> None:
    save_model(ValueModel.from_policy(load_model(folder)), tmp_path / "value")
    assert unmask("checkpoint", "export", tmp_path / "value", tmp_path / "out").returncode == 0
    assert "value_head.weight" in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inspect", "nowhere"), "nowhere: no such folder"),
        (("inspect", "sdar/giant"), "unknown model preset 'sdar/giant'; known: sdar/tiny, sdar/small, sdar/1.7b"),
        (("inspect", "."), "config.json: no such file"),
        (("inspect", "m", "--revision", "v2"), "m: is a local folder; a revision ('v2') belongs to a name on the hub"),
        (("checkpoint", "new", "gpt/tiny", "out"), "unknown model preset 'gpt/tiny'"),
        (("checkpoint", "new", "sdar/tiny", "out", "hidden_size"), "'hidden_size': an override has the form"),
        (
            ("checkpoint", "new", "sdar/tiny", "out", "hidden=5"),
            "unknown config key 'hidden'; the nearest known key is 'hidden_",
        ),
        (
            ("checkpoint", "new", "sdar/tiny", "out", "hidden_size=x"),
            "config.json: hidden_size: Input should be a valid integer",
        ),
        (("checkpoint", "new", "sdar/tiny", "out", "--dtype", "int8"), "dtype 'int8' is not a floating point type"),
        (("checkpoint", "new", "sdar/tiny", "taken"), "taken: exists and is not a folder with config.json"),
        (("checkpoint", "export", "nowhere", "out"), "nowhere: no such folder"),
        (("checkpoint", "export", "m", "out", "--dtype", "int4"), "dtype 'int4' is not a floating point type"),
        (("checkpoint", "export", "m", "out", "--max-shard-gb", "0"), "--max-shard-gb 0.0 must be a number above 0"),
        (("checkpoint", "export", "m", "out", "--max-shard-gb", "nan"), "--max-shard-gb nan must be a number above 0"),
        (
            ("checkpoint", "new", "sdar/tiny", "out", "dtype=bfloat16"),
            "unknown config key 'dtype'; the nearest known key is '",
        ),
        (("checkpoint", "new", "sdar/tiny", "out", "--seed", "-1"), "Invalid value for '--seed'"),
        (("checkpoint", "new", "sdar/tiny", "out", "hidden_size=99999999"), "device 'cpu' cannot hold the model"),
        (("checkpoint", "export", "m", "out", "--adapter", "m"), "adapter_config.json: no such file"),
        (("checkpoint", "export", "m", "taken"), "taken: exists and is not a folder with config.json"),
        (("checkpoint", "import", "m"), "No such command 'import'"),
        (
            ("generate", "m", "--prompt", "x"),
            "m: no usable tokenizer here (neither tokenizer.json nor vocab.json with merges.txt)",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words, message, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    before = set(tmp_path.rglob("*"))
    result = unmask(*words)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before
