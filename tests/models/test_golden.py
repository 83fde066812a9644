"""Published logits for settings that are not ours: foreign masks, training layouts, stale caches.

The decoder takes the backend as an argument, so any published mask can be executed with it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.conftest import GOLDEN
from tests.golden import golden_cases
from unmask.attention import DenseAttention, TokenLayout, visibility
from unmask.diffusion.sequence import DecodingSequence
from unmask.engine.request import Request, Row
from unmask.engine.runner import Runner
from unmask.models.checkpoint import load_model
from unmask.models.decoder import Backbone
from unmask.types import SamplingParams

FAMILIES = ("sdar_a", "sdar_moe_a", "dream_a", "llada_a", "mmada_a")
CLOSE = {"atol": 2e-4, "rtol": 0}  # measured 3e-5; the fixtures differ from a float64 run by up to 7e-5


def golden(family: str):
    if not (GOLDEN / family).exists():
        pytest.skip(f"golden fixtures are not at {GOLDEN}")
    return load_model(GOLDEN / family), golden_cases(GOLDEN / family, "logits")


def fixed_mask(attn_mask: Tensor):
    """A backend that executes a given mask [B, 1, Q, K] in place of the rule."""

    def backend(q: TokenLayout, k: TokenLayout) -> DenseAttention:
        attend = DenseAttention(q, k)
        attend.attn_mask = attn_mask
        return attend

    return backend


def clean_layout(position_BL: Tensor) -> TokenLayout:
    zero_BL = torch.zeros_like(position_BL)
    return TokenLayout(zero_BL, zero_BL, zero_BL, position_BL)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_published_mask(family) -> None:
    model, cases = golden(family)
    done = 0
    for case in cases:
        inputs = case["inputs"]
        mask = inputs.get("attention_mask", inputs.get("attention_bias"))
        if case["kind"] not in ("logits", "dream_train_mask") or mask is None or mask.dim() != 4:
            continue
        ids = inputs["input_ids"]
        is_visible = mask.bool() if mask.dtype in (torch.bool, torch.uint8) else mask > -1e4
        is_visible = is_visible.expand(len(ids), 1, ids.shape[1], ids.shape[1])
        position = inputs.get("position_ids", torch.arange(ids.shape[1]).expand_as(ids))
        # Arbitrary positions do not tell which token comes before which: compared before the shift is undone.
        hidden = Backbone.forward(model, ids, clean_layout(position), backend=fixed_mask(is_visible))
        got = model.head(hidden)
        sees_something = is_visible.any(-1)[:, 0]
        torch.testing.assert_close(got[sees_something], case["outputs"]["logits"][sees_something], **CLOSE)
        done += 1
    assert done >= 1


@pytest.mark.parametrize("family", ["sdar_a", "sdar_moe_a"])
def test_training_layout(family) -> None:
    """The published training rows (prompt | clean response | noised response) are a choice of blocks and copies."""
    model, cases = golden(family)
    cases = [c for c in cases if c["kind"] == "train_forward"]
    assert cases
    for case in cases:
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
        torch.testing.assert_close(got[~is_pad], case["outputs"]["logits"][~is_pad], **CLOSE)


@pytest.mark.parametrize("family", ["llada_a", "mmada_a"])
def test_two_dimensional_mask_of_the_published_code_is_causal(family) -> None:
    model, cases = golden(family)
    (case,) = (c for c in cases if c["name"] == "quirk_2d_mask_becomes_causal")
    ids, is_real = case["inputs"]["input_ids"], case["inputs"]["attention_mask"].bool()
    position = torch.arange(ids.shape[1]).expand_as(ids)
    is_visible = (position[:, :, None] >= position[:, None]) & is_real[:, None]
    got = model.head(model(ids, clean_layout(position), backend=fixed_mask(is_visible[:, None])))
    sees_something = is_visible.any(-1)
    torch.testing.assert_close(got[sees_something], case["outputs"]["logits"][sees_something], **CLOSE)


@pytest.mark.parametrize("family", ["llada_a", "mmada_a"])
@torch.inference_mode()
def test_stale_caches(family) -> None:
    """Keys and values kept from a pass over the whole canvas; then the rest, or only the block, recomputed."""
    model, cases = golden(family)
    (case,) = (c for c in cases if c["name"] == "cache_forward")
    ids, (start, stop) = case["inputs"]["input_ids"][0], case["params"]["block"]
    changed, block = case["outputs"], case["inputs"]["block_ids"][0].numpy()
    for query_end, want in ((len(ids), changed["prefix_cache_logits"]), (stop, changed["dual_cache_block_logits"])):
        runner = Runner(model, num_pages=3, page_size=8, max_sequences=1)
        params = SamplingParams(max_new_tokens=1, cache="dual")
        request = Request(0, DecodingSequence(ids[:-1].tolist(), params, model.spec), 0, pages=[2, 0, 1])
        request.sequence.ids[:] = ids.numpy()
        full, _ = runner.forward([Row(request, 0, len(ids), len(ids))])
        torch.testing.assert_close(model.head(full), changed["full_logits"][0], **CLOSE)
        request.sequence.ids[start:stop] = block
        got, _ = runner.forward([Row(request, start, query_end, len(ids))])
        torch.testing.assert_close(model.head(got), want[0], **CLOSE)


def test_values() -> None:
    """The published value model: the policy's body and a scalar head, read at the masked positions."""
    if not (GOLDEN / "sdar_a").exists():
        pytest.skip(f"golden fixtures are not at {GOLDEN}")
    value = load_model(GOLDEN / "sdar_a", head="value")
    cases = [case for case in golden_cases(GOLDEN / "sdar_a", "train_value") if "old_values" in case["outputs"]]
    assert len(cases) >= 3
    for case in cases:
        with torch.no_grad():
            value.value_head.weight.copy_(case["inputs"]["value_head.weight"])
        out, p = case["outputs"], case["params"]
        ids, is_target = out["extended_input_ids"], out["p_mask"].bool()
        num_response = ids.shape[1] - is_target.shape[1]
        num_prompt = is_target.shape[1] - num_response
        is_pad = (ids == p["pad_id"]) & (torch.arange(ids.shape[1]) < num_prompt)
        is_visible = out["basic_attention"][:, 0].bool() & ~is_pad[:, None]
        got = value.head(value(ids, clean_layout(out["tok_idx_ext"]), backend=fixed_mask(is_visible[:, None])))
        got = torch.cat((got[:, :num_prompt], got[:, num_prompt + num_response :]), 1)
        torch.testing.assert_close(got[is_target], out["old_values"][is_target], **CLOSE)
