"""Runs that train adapters (LoRA): what changes, what is kept, and that the adapters alone are a model."""

from __future__ import annotations

import shutil

import pytest
import torch

import unmask as library
from tests.recipes import RL, SFT, unmask, write_recipe
from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model, new_model
from unmask.models.lora import load_adapter
from unmask.train.checkpoint import list_checkpoints

pytest.importorskip("peft", reason="the extra `lora` is not installed")

FAMILIES = ("sdar", "sdar_moe", "dream", "llada", "mmada")
LORA = ["lora.rank=4", "lora.alpha=8", "eval.every_steps=0", "train.max_steps=4", "run.seed=1"]
IDS = torch.arange(3, 15)[None]


def sft(folder, *words, family: str = "sdar", name: str = "run"):
    recipe = write_recipe(folder, "sft", SFT)
    objective = "semi_ar" if family.startswith("sdar") else "random_masking"
    result = unmask(
        "sft", recipe, *LORA, f"model.preset={family}/tiny", f"objective.name={objective}", f"run.dir={folder / name}", *words
    )
    assert result.returncode == 0, result.stderr
    return list_checkpoints(folder / name / "checkpoints")[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapters_change_and_merged_they_are_the_model(family, tmp_path) -> None:
    checkpoint = sft(tmp_path, family=family)
    assert not list(checkpoint.glob("model*.safetensors"))
    base = load_model(tmp_path / "run" / "base")
    first = new_model(f"{family}/tiny", 1, **{k: v for k, v in base.config.items() if k.endswith("_id") or k == "vocab_size"})
    for (name, mine), (_, wanted) in zip(base.named_parameters(), first.named_parameters(), strict=True):
        assert torch.equal(mine, wanted), name
    merged = load_model(checkpoint)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    changed = {
        name for (name, a), (_, b) in zip(merged.named_parameters(), base.named_parameters(), strict=True) if a.ne(b).any()
    }
    assert changed
    assert not [name for name in changed if "proj" not in name]
    load_adapter(base, checkpoint)
    with torch.no_grad():
        apart, together, before = base.logits(IDS), merged.logits(IDS), first.logits(IDS)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert (together - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options", [[], ["lora.dropout=0.3"], ["lora.use_dora=true", "lora.target_modules=['q_proj','up_proj']"]]
)
def test_resumed_is_uninterrupted(options, tmp_path) -> None:
    whole = sft(tmp_path, *options, name="whole")
    sft(tmp_path, *options, "train.max_steps=2", name="torn")
    torn = sft(tmp_path, *options, "--resume", name="torn")
    assert (tmp_path / "torn" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (torn / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
    if options == ["lora.dropout=0.3"]:
        other = sft(tmp_path, name="other")
        assert (other / "adapter_model.safetensors").read_bytes() != (whole / "adapter_model.safetensors").read_bytes()


def rl(folder, *words, name: str = "rl"):
    text = RL if any("preset" in word for word in words) else RL.replace('[model]\npreset = "sdar/tiny"\n', "")
    result = unmask("rl", write_recipe(folder, "rl", text), *LORA, f"run.dir={folder / name}", *words)
    assert result.returncode == 0, result.stderr
    return list_checkpoints(folder / name / "checkpoints")[-1]


@pytest.mark.parametrize("family", ["sdar", "dream"])
def test_rl_with_value_model_and_reference_resumes_exactly(family, tmp_path) -> None:
    """The critic and the reference are of the model without adapters."""
    words = [f"model.preset={family}/tiny", "value.enabled=true", "objective.options.kl_to=reference"]
    whole = rl(tmp_path, *words, name="whole")
    rl(tmp_path, *words, "train.max_steps=2", name="torn")
    torn = rl(tmp_path, *words, "--resume", name="torn")
    assert (tmp_path / "torn" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    for file in ("adapter_model.safetensors", "value_model/model.safetensors"):
        assert (torn / file).read_bytes() == (whole / file).read_bytes()
    assert "lora" not in str(load_model(torn / "value_model", head="value").state_dict().keys())


def test_adapters_alone_are_a_model(tmp_path) -> None:
    """For every command, for adapters on adapters, and after the run folder was moved."""
    first = sft(tmp_path)
    second = rl(tmp_path, f"model={{path='{tmp_path / 'run'}'}}")
    assert load_model(second).source_folder == second.resolve()
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    logits = {}
    for name, folder in {"run": tmp_path / "run", "checkpoint": first, "moved": tmp_path / "moved"}.items():
        found = unmask("generate", folder, "--prompt", "1+2=?", "max_new_tokens=4")
        assert found.returncode == 0, found.stderr
        logits[name] = found.stdout
    assert len(set(logits.values())) == 1
    exported = unmask("checkpoint", "export", second, tmp_path / "plain")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "plain" / "model.safetensors").exists()
    assert not (tmp_path / "plain" / "adapter_config.json").exists()
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "plain").logits(IDS), load_model(second).logits(IDS))
    shown = unmask("inspect", second)
    assert (shown.returncode, "adapters for" in shown.stdout) == (0, True), shown.stderr
    evaluated = unmask("eval", tmp_path / "moved", "num_examples=2", "modes.static.max_new_tokens=4", "--sampling", "static")
    assert evaluated.returncode == 0, evaluated.stderr
    library.Engine(load_model(first))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lora.base_bits=4"], "lora.base_bits 4 needs a GPU (the kernels of bitsandbytes); the model is on cpu"),
        (["lora.base_bits=4", "lora.rank=0"], "lora.base_bits 4 needs adapters: four bits cannot be trained; set lora.rank"),
        (["lora.use_dora=true", "lora.rank=0"], "lora.use_dora is about adapters, and there are none; set lora.rank"),
        (["lora.target_modules=['nobody']"], "LoRA target 'nobody' is no linear layer of this model; known: down_proj"),
        (["lora.rank=-1"], "lora.rank"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path) -> None:
    recipe = write_recipe(tmp_path, "sft", SFT)
    result = unmask("sft", recipe, *LORA, f"run.dir={tmp_path / 'run'}", *words)
    assert (result.returncode, result.stderr.count("\n"), (tmp_path / "run").exists()) == (2, 1, False), result.stderr
    assert message in result.stderr


def test_a_base_that_is_gone_is_named(tmp_path) -> None:
    checkpoint = sft(tmp_path)
    shutil.rmtree(tmp_path / "run" / "base")
    result = unmask("generate", checkpoint, "--prompt", "1+2=?")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert (
        f"{checkpoint / 'adapter_config.json'}: the adapter's model is not there: ../../base: no such folder" in result.stderr
    )


def test_adapters_of_another_family_are_refused(tmp_path) -> None:
    """Though every shape fits."""
    checkpoint = sft(tmp_path)
    model = new_model("llada/tiny", 0)
    with pytest.raises(UnmaskError, match="are for a model of type 'sdar'; this one is of type 'llada'"):
        load_adapter(model, checkpoint)
    assert not model.adapters


def test_what_a_run_without_a_step_left_is_not_the_base(tmp_path) -> None:
    """A run that dies before its first step leaves its preset's model; another seed has another one."""
    sft(tmp_path, "run.seed=2", name="other")
    shutil.copytree(tmp_path / "other" / "base", tmp_path / "run" / "base")
    checkpoint = sft(tmp_path, "run.seed=3")
    sft(tmp_path, "run.seed=3", name="clean")
    with torch.no_grad():
        mine, wanted = (load_model(tmp_path / run).logits(IDS) for run in ("run/base", "clean/base"))
    assert torch.equal(mine, wanted), checkpoint
