"""Adapters: what they are put on, and what is refused. Training, saving and merging: test_conformance.py."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.rows import Row, build, random_ids
from unmask.errors import UnmaskError
from unmask.models import lora
from unmask.models.lora import add_lora, load_adapter, merge_adapter, save_adapter

DENSE, MOE = Row("dense", "sdar/tiny"), Row("moe", "sdar_moe/tiny")


def trainable(model) -> set[str]:
    return {name.split(".lora_")[0].replace(".base_layer", "") for name, p in model.named_parameters() if p.requires_grad}


def test_targets_are_our_names() -> None:
    model = build(DENSE)
    add_lora(model, target_modules=["q_proj", "layers.1.mlp.down_proj"])
    assert trainable(model) == {f"layers.{i}.self_attn.q_proj" for i in range(3)} | {"layers.1.mlp.down_proj"}


def test_mlp_targets_are_the_experts_matrices() -> None:
    model = build(MOE)
    add_lora(model, rank=2, target_modules=["up_proj"])
    assert trainable(model) == {f"layers.{i}.mlp.experts" for i in range(3)}
    (a,) = [p for name, p in model.named_parameters() if name.startswith("layers.0") and "lora_A" in name]
    assert a.shape[0] == 2 * 8  # rank 2 for each of 8 experts


def test_dora_merges_to_the_same_model() -> None:
    model = build(DENSE)
    adapter = add_lora(model, rank=2, use_dora=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    ids = random_ids(model, 2, 9)
    want = model.logits(ids)
    merged = merge_adapter(adapter)
    torch.testing.assert_close(merged.logits(ids), want, atol=5e-5, rtol=1e-5)
    add_lora(merged)  # an ordinary model again


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (DENSE, {"target_modules": ["query"]}, "LoRA target 'query' is no linear layer of this model; known: down_proj"),
        (DENSE, {"target_modules": ["lm_head"]}, "LoRA target 'lm_head' is tied to the embedding"),
        (MOE, {"use_dora": True}, "DoRA is not available for experts"),
        (MOE, {"dropout": 0.1}, "LoRA dropout is not available for experts"),
        (DENSE, {"target_modules": "q_proj"}, "target_modules 'q_proj' is one name; give a list"),
        (DENSE, {"target_modules": []}, "LoRA needs rank >= 1, 0 <= dropout < 1 and targets"),
        (DENSE, {"rank": 0}, "LoRA needs rank >= 1"),
        (DENSE, {"dropout": 2.0}, "LoRA needs rank >= 1"),
    ],
)
def test_bad_targets_are_named(row, options, message) -> None:
    with pytest.raises(UnmaskError, match=message):
        add_lora(build(row), **options)


@pytest.fixture
def saved(tmp_path):
    save_adapter(add_lora(build(DENSE), rank=2), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("values", [{"task_type": "CAUSAL_LM"}, {"init_lora_weights": "pissa"}], ids=str)
def test_published_adapters_load_and_leave_the_base_alone(saved, values) -> None:
    set_key(saved, **values)
    model = build(DENSE)
    before = model.layers[0].self_attn.q_proj.weight.clone()
    load_adapter(model, saved)
    assert torch.equal(model.layers[0].self_attn.q_proj.base_layer.weight, before)


def test_saving_over_an_adapter_keeps_the_rest(saved) -> None:
    (saved / "notes.md").write_text("mine")
    save_adapter(add_lora(build(DENSE), rank=3), str(saved))
    assert sorted(p.name for p in saved.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "notes.md"]


def test_folder_has_the_adapter_alone(saved) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all("lora_" in name for name in load_file(saved / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json: no such file"),
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "only safetensors are read"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"1234567890"), "not a complete safetensors file"),
        (lambda f: edit(f, lambda t: t.pop(sorted(t)[0])), "is missing (1 such in all)"),
        (lambda f: edit(f, lambda t: t.update({"base_model.model.x.weight": torch.ones(1)})), "has no place in the model"),
        (lambda f: edit(f, lambda t: t.update({sorted(t)[0]: torch.ones(3, 3)})), "adapter does not fit the model"),
        (lambda f: set_key(f, target_modules=["nobody"]), "adapter does not fit the model"),
        (lambda f: set_key(f, peft_type="MAGIC"), "peft_type 'MAGIC' is not supported; known: 'LORA'"),
        (lambda f: set_key(f, peft_type="PREFIX_TUNING"), "peft_type 'PREFIX_TUNING' is not supported"),
        (lambda f: set_key(f, trainable_token_indices=[1, 2]), "adapter does not fit the model"),
    ],
)
def test_bad_adapters_are_named(saved, damage, message) -> None:
    damage(saved)
    model = build(DENSE)
    with pytest.raises(UnmaskError) as error:
        load_adapter(model, saved)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert [name for name, p in model.named_parameters() if not p.requires_grad or "lora" in name] == []  # as it was
    add_lora(model)


def test_adapters_are_not_put_on_adapters(saved) -> None:
    model = build(DENSE)
    add_lora(model)
    for again in (lambda: add_lora(model), lambda: load_adapter(model, saved)):
        with pytest.raises(UnmaskError, match="the model has adapters in it already"):
            again()


def edit(folder, change) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def set_key(folder, **values) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **values}))


def test_without_peft_the_extra_is_named(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UnmaskError, match=r"pip install 'unmask\[lora\]'"):
        lora.add_lora(build(DENSE))
