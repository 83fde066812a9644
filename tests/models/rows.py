"""The table that the conformance suite runs: one row per family (or variant of one)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tests.conftest import SPECIAL
from unmask.models import Decoder, find_family
from unmask.models.checkpoint import new_model


@dataclass(frozen=True)
class Row:
    """A preset with keys of its config changed; `golden`: the folder of published numbers for it."""

    name: str
    preset: str
    changes: dict[str, Any] = field(default_factory=dict)
    golden: str | None = None

    def __str__(self) -> str:
        return self.name


ROWS = (
    Row("sdar", "sdar/tiny", golden="sdar_a"),
    Row("sdar-variant", "sdar/tiny", {
        "attention_bias": True, "tie_word_embeddings": False, "num_attention_heads": 6, "num_key_value_heads": 3,
        "head_dim": 10, "rope_theta": 500.0, "block_size": 8, "vocab_size": 61, "hidden_size": 40,
    }),
    Row("sdar-yarn", "sdar/tiny", {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    }),
    Row("sdar_moe", "sdar_moe/tiny", golden="sdar_moe_a"),
    Row("sdar_moe-variant", "sdar_moe/tiny", {
        "decoder_sparse_step": 2, "num_hidden_layers": 4, "num_experts": 5, "num_experts_per_tok": 3, "attention_bias": True,
        "moe_intermediate_size": 20, "tie_word_embeddings": False, "mlp_only_layers": [3],
    }),
    Row("dream", "dream/tiny", golden="dream_a"),
    Row("dream-variant", "dream/tiny", {
        "tie_word_embeddings": False, "num_attention_heads": 6, "num_key_value_heads": 1, "vocab_size": 61,
        "rope_scaling": {"type": "linear", "factor": 2.0}, "hidden_size": 60,
    }),
    Row("llada", "llada/tiny", golden="llada_a"),
    Row("llada-variant", "llada/tiny", {
        "include_qkv_bias": True, "weight_tying": True, "vocab_size": 61, "embedding_size": 64, "n_heads": 6,
        "n_kv_heads": 1, "d_model": 60, "mlp_hidden_size": None, "mlp_ratio": 2, "rope_theta": 77.0,
    }),
    Row("llada-biased", "llada/tiny", {
        "include_bias": True, "bias_for_layer_norm": None, "weight_tying": False, "n_kv_heads": 4,
    }),
    Row("mmada", "mmada/tiny", golden="mmada_a"),
    Row("mmada-variant", "mmada/tiny", {
        "weight_tying": False, "vocab_size": 61, "embedding_size": 64, "multi_query_attention": True, "n_kv_heads": None,
    }),
    Row("toy", "toy/tiny"),
)  # fmt: skip


def build(row: Row, seed: int = 0) -> Decoder:
    """A random model of the row whose distributions are far from uniform, and whose norms and biases do something."""
    model = new_model(row.preset, seed, **row.changes)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(0.12 / model.spec.init_std)
    assert find_family(model.config).name == model.spec.family
    return model


def random_ids(model: Decoder, rows: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 60, (rows, length), generator=generator)


def opinionated(family: str) -> Decoder:
    """A tiny random model whose distributions are far from uniform."""
    return build(Row(family, f"{family}/tiny", {**SPECIAL, "eos_token_id": 1} if family in ("llada", "mmada") else SPECIAL))
