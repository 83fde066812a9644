"""Loading and saving: golden logits, lossless round trips, and every kind of bad folder named in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import make_model
from tests.golden import golden_cases
from unmask.attention import TokenLayout, visibility
from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model, new_model, save_model


@pytest.fixture
def saved(tmp_path):
    save_model(make_model(), tmp_path / "model")
    return tmp_path / "model"


def test_golden_logits(golden_sdar) -> None:
    model = load_model(golden_sdar)
    for case in golden_cases(golden_sdar, "logits"):
        if case["kind"] == "logits" and not case["name"].startswith("left_pad"):
            block_size = case["params"].get("block_size")
            attention = "model" if block_size else "bidirectional"
            got = model.logits(case["inputs"]["input_ids"], attention=attention, block_size=block_size)
            want = case["outputs"]["logits"]
            torch.testing.assert_close(got, want, atol=2e-4, rtol=0)  # measured 1.5e-5; float64 differs from both as much
            assert torch.equal(got.argmax(-1), want.argmax(-1))


def test_golden_training_forward(golden_sdar) -> None:
    """The published training layout (prompt | clean response | noised response) is a choice of blocks and copies."""
    model = load_model(golden_sdar)
    for case in (c for c in golden_cases(golden_sdar, "logits") if c["kind"] == "train_forward"):
        p, ids = case["params"], case["inputs"]["extended_input_ids"]
        position = case["inputs"]["position_ids"]
        num_prompt, total = p["start_pos"], ids.shape[1]
        num_response = (total - num_prompt) // 2
        # The reference counts blocks from the response start, those of the prompt backwards: the grid is a parameter.
        offset = torch.cat((torch.arange(-num_prompt, num_response), torch.arange(num_response)))
        copy = (torch.arange(total) >= num_prompt + num_response).long()
        layout = TokenLayout(torch.zeros_like(ids), (offset // p["block_size"]).expand_as(ids), copy.expand_as(ids), position)
        table = visibility(layout, layout)[0]
        assert torch.equal(table, case["outputs"]["basic_attention"][0, 0].bool()), case["name"]
        is_pad = (ids == p["pad_id"]) & (torch.arange(total) < num_prompt)
        layout = TokenLayout(-is_pad.long(), layout.block_BL, layout.copy_BL, position)
        got = model.head(model(ids, layout))
        real = ~is_pad
        torch.testing.assert_close(got[real], case["outputs"]["logits"][real], atol=2e-4, rtol=0)


def test_round_trip_is_lossless(saved, tmp_path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["a_key_we_do_not_know"] = {"kept": [1, 2]}
    (saved / "config.json").write_text(json.dumps(config))
    save_model(load_model(saved), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config
    before, after = (load_file(folder / "model.safetensors") for folder in (saved, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert "model.layers.0.self_attn.q_norm.weight" in before
    assert "lm_head.weight" not in before  # tied
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_untied_and_biased_variants(tmp_path) -> None:
    model = make_model(tie_word_embeddings=False, attention_bias=True, num_attention_heads=6, num_key_value_heads=3)
    save_model(model, tmp_path / "m")
    names = load_file(tmp_path / "m" / "model.safetensors").keys()
    assert {"lm_head.weight", "model.layers.1.self_attn.o_proj.bias"} <= names
    ids = torch.randint(0, 40, (2, 13))
    assert torch.equal(load_model(tmp_path / "m").logits(ids), model.logits(ids))


def test_sharded_checkpoint(saved) -> None:
    tensors = load_file(saved / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, saved / file)
    (saved / "model.safetensors").unlink()
    weight_map = {name: file for file, part in shards.items() for name in part}
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ids = torch.randint(0, 40, (1, 9))
    assert torch.equal(load_model(saved).logits(ids), make_model().logits(ids))
    (saved / "b.safetensors").unlink()
    with pytest.raises(UnmaskError, match=r"b.safetensors: shard named in model.safetensors.index.json is missing"):
        load_model(saved)


def test_padding_and_neighbours_are_invisible(model) -> None:
    ids = torch.randint(0, 40, (3, 17))
    lengths = torch.tensor([5, 17, 10])
    together = model.logits(ids, lengths=lengths)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[i, :n], model.logits(ids[i : i + 1, :n])[0], atol=1e-5, rtol=0)


def test_attention_kinds(model) -> None:
    ids = torch.randint(0, 40, (1, 12))
    torch.testing.assert_close(model.logits(ids, "bidirectional"), model.logits(ids, block_size=12), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.logits(ids, "causal"), model.logits(ids, block_size=1), atol=1e-6, rtol=0)
    assert (model.logits(ids, "causal") - model.logits(ids)).abs().max() > 1e-3
    with pytest.raises(UnmaskError, match="attention 'all' is unknown; known: model, bidirectional, causal"):
        model.logits(ids, "all")


def test_gradient_reaches_every_parameter(model) -> None:
    model.zero_grad()
    model.logits(torch.randint(0, 40, (2, 9))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.zero_grad()


def test_preset_is_tiny_and_seeded() -> None:
    a, b, c = (make_model(seed=s) for s in (1, 1, 2))
    assert torch.equal(a.embed_tokens.weight, b.embed_tokens.weight)
    assert not torch.equal(a.embed_tokens.weight, c.embed_tokens.weight)
    special = {"vocab_size": 24, "eos_token_id": [1], "pad_token_id": 0, "mask_token_id": 2}
    assert sum(p.numel() for p in new_model("sdar/tiny", 0, **special).parameters()) < 400_000
    with pytest.raises(UnmaskError, match="unknown model preset 'sdar/huge'; known: sdar/tiny"):
        new_model("sdar/huge", 0)


def test_bfloat16_runs(saved) -> None:
    model = load_model(saved, dtype="bfloat16")
    assert model.embed_tokens.weight.dtype == torch.bfloat16
    got, want = model.logits(torch.arange(9)[None]), make_model().logits(torch.arange(9)[None])
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 0.1 * want.abs().max()


def edit_tensors(folder, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_config(folder, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def truncate(folder) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such folder (and not a hub name"),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "config.json").write_text('{"a": 1,\n}'), "config.json:2: not valid JSON"),
        (lambda f: set_config(f, model_type="gpt9", architectures=[]), "model_type 'gpt9' is unknown; known: sdar"),
        (lambda f: set_config(f, mask_token_id=...), "config.json: key 'mask_token_id' is missing"),
        (lambda f: set_config(f, mask_token_id=9999), "config.json: mask_token_id 9999 is outside the vocabulary of 40"),
        (lambda f: set_config(f, hidden_size="96"), "config.json: hidden_size: Input should be a valid integer, found '96'"),
        (lambda f: set_config(f, block_size=0), "config.json: block_size: Input should be greater than or equal to 1"),
        (lambda f: set_config(f, eos_token_id=None), "config.json: eos_token_id"),
        (lambda f: set_config(f, rms_norm_eps=None), "config.json: rms_norm_eps: Input should be a valid number"),
        (lambda f: set_config(f, hidden_act="gelu"), "config.json: hidden_act: Input should be 'silu', found 'gelu'"),
        (lambda f: set_config(f, rope_parameters={"rope_type": "yarn"}), "config.json: rope_parameters.rope_type"),
        (
            lambda f: set_config(f, rope_scaling={"type": "yarn"}),
            "config.json: rope_scaling: Input should be None, found {'type': 'yarn'}",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors here (only safetensors are read"),
        (truncate, "not a complete safetensors file"),
        (lambda f: edit_tensors(f, lambda t: t.pop(NORM)), f"tensor '{NORM}' is missing (1 missing in all)"),
        (lambda f: edit_tensors(f, lambda t: t.update(extra=torch.ones(2))), "unexpected tensor 'extra'"),
        (lambda f: edit_tensors(f, lambda t: t.update({NORM: torch.ones(7)})), "has shape [7], expected [48]"),
    ],
)
def test_bad_folders_are_named(saved, damage, message) -> None:
    damage(saved)
    with pytest.raises(UnmaskError) as error:
        load_model(saved)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unreachable_hub_name_says_so(monkeypatch) -> None:
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UnmaskError, match="no such local folder, and the hub did not deliver it: cannot reach the hub"):
        load_model("some/model")


def test_hub_name_is_downloaded_without_code(monkeypatch, saved) -> None:
    import huggingface_hub

    asked = {}

    def download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_model("some/model", revision="v2")
    assert (asked["name"], asked["revision"]) == ("some/model", "v2")
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["patterns"])


def test_save_does_not_replace_a_folder_that_is_not_a_model(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UnmaskError, match=r"exists and is not a folder with config.json; it is not replaced"):
        save_model(make_model(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_model_type_decides_before_architectures(saved) -> None:
    set_config(saved, model_type="llada")
    with pytest.raises(UnmaskError, match="model_type 'llada' is unknown"):
        load_model(saved)
    set_config(saved, model_type=...)
    load_model(saved)  # only then by architectures


def test_failed_save_leaves_the_old_model(saved, monkeypatch) -> None:
    before = (saved / "model.safetensors").read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unmask.models.checkpoint.save_file", full_disk)
    with pytest.raises(UnmaskError, match="the disk is full"):
        save_model(make_model(seed=9), saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]
