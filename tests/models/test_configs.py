"""Configs: the presets, and what keys of config.json mean or why they are refused."""

from __future__ import annotations

import pytest
import torch

from tests.models.rows import Row, build
from unmask.errors import UnmaskError
from unmask.models import FAMILIES, Decoder, preset_config
from unmask.models.checkpoint import new_model


def test_presets() -> None:
    """Three sizes for each family; a seed is a model, on any device and in any dtype."""
    for family in FAMILIES.values():
        sizes = []
        for size, config in family.presets.items():
            spec = family.spec(preset_config(f"{family.name}/{size}"))
            assert config["model_type"] in family.model_types
            with torch.device("meta"):
                sizes.append(sum(p.numel() for p in Decoder(spec).parameters()))
        assert sizes[0] < 400_000
        assert 80e6 < sizes[1] < 120e6
        assert min(sizes[2:]) > 1e9
    a, b, c = (new_model("llada/tiny", seed) for seed in (1, 1, 2))
    assert torch.equal(a.embed_tokens.weight, b.embed_tokens.weight)
    assert not torch.equal(a.embed_tokens.weight, c.embed_tokens.weight)
    residual, other = (getattr(a.layers[0].mlp, f"{name}_proj").weight.std().item() for name in ("down", "up"))
    assert residual / other == pytest.approx((2 * 3) ** -0.5, rel=0.05)  # three layers of two residual additions each
    half = new_model("llada/tiny", 1, dtype="bfloat16")
    assert torch.equal(half.embed_tokens.weight, a.embed_tokens.weight.bfloat16())
    with pytest.raises(UnmaskError, match="unknown model preset 'sdar/huge'; known: sdar/tiny"):
        new_model("sdar/huge", 0)
    with pytest.raises(UnmaskError, match="unknown config key 'hidden_sise'; the nearest known key is 'hidden_size'"):
        new_model("sdar/tiny", 0, hidden_sise=3)


def test_published_sizes() -> None:
    """Parameters of the published models, as their names (and hub pages) say."""
    for preset, low, high in (
        ("sdar/1.7b", 1.7e9, 1.8e9), ("sdar/4b", 4.0e9, 4.1e9), ("sdar/8b", 8.1e9, 8.2e9), ("sdar_moe/30b-a3b", 30.5e9, 30.6e9),
        ("dream/7b", 7.6e9, 7.7e9), ("llada/8b", 8.0e9, 8.1e9), ("mmada/8b", 8.0e9, 8.2e9),
    ):  # fmt: skip
        with torch.device("meta"):
            model = Decoder(FAMILIES[preset.split("/")[0]].spec(preset_config(preset)))
        assert low < sum(p.numel() for p in model.parameters()) < high, preset


def test_norm_bias_is_added() -> None:
    model = build(Row("llada-biased", "llada/tiny", {"include_bias": True, "bias_for_layer_norm": None}))
    x = torch.randn(2, 96)
    want = x / x.square().mean(-1, keepdim=True).add(1e-5).sqrt() * model.norm.weight + model.norm.bias
    torch.testing.assert_close(model.norm(x), want)
    assert read_spec_biases({"include_bias": True, "bias_for_layer_norm": None}) == (True, True, True)
    assert read_spec_biases({"include_bias": True, "bias_for_layer_norm": False}) == (True, True, False)
    assert read_spec_biases({"include_qkv_bias": True}) == (True, False, False)


def read_spec_biases(keys) -> tuple[bool, bool, bool]:
    spec = FAMILIES["llada"].spec({**preset_config("llada/tiny"), **keys})
    return spec.has_qkv_bias, spec.has_mlp_bias, spec.has_norm_bias


@pytest.mark.parametrize(
    ("preset", "keys", "fact", "value"),
    [
        ("sdar", {"block_size": ...}, "block_size", 4),
        ("sdar", {"head_dim": ...}, "head_dim", 128),
        ("sdar", {"head_dim": None}, "head_dim", 24),
        ("sdar", {"attention_bias": None, "tie_word_embeddings": None}, "is_tied", False),
        ("sdar", {"use_sliding_window": True, "sliding_window": None}, "num_layers", 3),
        ("sdar", {"eos_token_id": 7}, "eos_token_ids", (7,)),
        ("sdar", {"pad_token_id": None, "eos_token_id": [7, 8]}, "pad_token_id", 7),
        ("dream", {"num_key_value_heads": ...}, "num_kv_heads", 4),
        ("llada", {"embedding_size": 128, "weight_tying": False}, "vocab_size", 128),
        ("llada", {"embedding_size": 0}, "vocab_size", 96),
        ("llada", {"n_kv_heads": None, "multi_query_attention": True}, "num_kv_heads", 1),
        ("llada", {"n_kv_heads": None}, "num_kv_heads", 4),
        ("llada", {"include_bias": True, "weight_tying": True}, "has_head_bias", False),
        ("llada", {"include_bias": True, "weight_tying": False}, "has_head_bias", True),
        ("llada", {"mlp_hidden_size": None, "mlp_ratio": 3}, "intermediate_size", 288),
    ],
)  # fmt: skip
def test_what_a_key_or_its_absence_means(preset, keys, fact, value) -> None:
    config = {key: v for key, v in {**preset_config(f"{preset}/tiny"), **keys}.items() if v is not ...}
    assert getattr(FAMILIES[preset].spec(config), fact) == value


@pytest.mark.parametrize(
    ("preset", "keys", "message"),
    [
        ("sdar", {"rope_theta": float("inf")}, "rope_theta should be a finite number"),
        ("sdar", {"eos_token_id": [1, -1]}, "eos_token_id: should be a token id or a list of them, found [1, -1]"),
        ("sdar", {"eos_token_id": []}, "eos_token_id: should be a token id or a list of them, found []"),
        ("sdar_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok 9 is above num_experts 8"),
        (
            "sdar",
            {"layer_types": ["sliding_attention"]},
            "layer_types 'sliding_attention' is not supported; known: 'full_attention'",
        ),
        ("dream", {"block_size": 32}, "block_size: Input should be None, found 32"),
        ("llada", {"multi_query_attention": True}, "multi_query_attention True contradicts n_kv_heads 2"),
        ("llada", {"embedding_size": 90}, "embedding_size 90 is smaller than vocab_size 96"),
        ("llada", {"block_group_size": 2}, "block_group_size: Input should be 1, found 2"),
        ("llada", {"alibi": True}, "alibi: Input should be False, found True"),
        ("llada", {"clip_qkv": 8.0}, "clip_qkv: Input should be None, found 8.0"),
        ("mmada", {"layer_norm_type": "default"}, "layer_norm_type: Input should be 'rms', found 'default'"),
    ],
)
def test_configs_that_are_refused(preset, keys, message) -> None:
    with pytest.raises(UnmaskError) as error:
        FAMILIES[preset].spec({**preset_config(f"{preset}/tiny"), **keys})
    assert str(error.value) == f"config.json: {message}"
