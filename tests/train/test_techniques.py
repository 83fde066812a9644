"""Activation checkpointing: the same numbers to the last bit, from a part of the memory."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tests.objectives.test_objectives import demonstrations
from tests.recipes import RL, SFT, unmask, write_recipe
from unmask.attention import TiledAttention
from unmask.models.checkpoint import new_model
from unmask.objectives.random_masking_sft import RandomMaskingSft
from unmask.objectives.rows import collate, score_targets
from unmask.train.techniques import apply_techniques

FAMILIES = ("sdar", "sdar_moe", "dream", "llada", "mmada")


def gradients(family: str, is_on: bool) -> tuple[list[torch.Tensor], int]:
    """Of every parameter, and the bytes that were kept for the backward pass."""
    model = new_model(f"{family}/tiny", 0, vocab_size=40, mask_token_id=2, pad_token_id=0, eos_token_id=[1]).train()
    apply_techniques(model, use_activation_checkpointing=is_on)
    objective = RandomMaskingSft(RandomMaskingSft.Options(), model.spec, 0)
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    batch = collate(objective.rows(demonstrations(6)))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = objective.loss(score_targets(model, batch, TiledAttention), batch)
    loss.backward()
    return [parameter.grad for parameter in model.parameters()], kept


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same(family: str) -> None:
    (wanted, all_bytes), (got, few_bytes) = gradients(family, False), gradients(family, True)
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
    assert few_bytes < all_bytes / 3


@pytest.mark.parametrize(("kind", "text"), [("sft", SFT), ("rl", RL)])
def test_whole_runs_are_the_same(kind: str, text: str, tmp_path) -> None:
    """With dropout of adapters, too, which has to be drawn again as it was; and a resumed run may switch."""
    words = ["eval.every_steps=0", "run.seed=1", "lora.rank=2", "lora.dropout=0.2"]
    for name, steps, is_on, more in (("off", 4, False, []), ("on", 2, True, []), ("on", 4, False, ["--resume"])):
        technique = f"train.use_activation_checkpointing={str(is_on).lower()}"
        recipe = write_recipe(tmp_path, kind, text)
        result = unmask(kind, recipe, *words, f"train.max_steps={steps}", technique, f"run.dir={tmp_path / name}", *more)
        assert result.returncode == 0, result.stderr
    on, off = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("on", "off"))
    assert on == off


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler of torch says of itself
@pytest.mark.parametrize("family", ["sdar"])
def test_compiled_layers_have_the_same_gradients(family: str) -> None:
    """To the rounding of fused operations; and nothing is compiled anew for packs of other lengths."""
    torch._dynamo.reset()
    results = []
    for use_compile in (False, True):
        model = new_model(f"{family}/tiny", 0, vocab_size=40, mask_token_id=2, pad_token_id=0, eos_token_id=[1]).train()
        apply_techniques(model, use_compile=use_compile, use_activation_checkpointing=use_compile)
        objective = RandomMaskingSft(RandomMaskingSft.Options(), model.spec, 0)
        for num in (6, 7, 9, 5):
            batch = collate(objective.rows(demonstrations(num)))
            loss, _ = objective.loss(score_targets(model, batch, TiledAttention), batch)
            loss.backward()
            if num == 7:
                torch._dynamo.config.error_on_recompile = use_compile
        torch._dynamo.config.error_on_recompile = False
        results.append([parameter.grad for parameter in model.parameters()])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
