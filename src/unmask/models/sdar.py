"""SDAR and TraDo (dense): Qwen3 backbone, block-causal attention over prompt and response alike.

Per-head RMSNorm on queries and keys, explicit head_dim, grouped-query attention, tied or untied head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unmask.config import check
from unmask.errors import UnmaskError
from unmask.models.spec import ModelSpec

_Size = Annotated[int, Field(ge=1)]
_TokenId = Annotated[int, Field(ge=0)]


class _Rope(BaseModel):
    model_config = ConfigDict(strict=True)

    rope_type: Literal["default"] = "default"
    rope_theta: float | None = Field(None, gt=0)


class _Config(BaseModel):
    """The keys of config.json that matter, with the values that are supported; others are preserved, not read."""

    model_config = ConfigDict(strict=True)

    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    block_size: _Size = 4
    mask_token_id: _TokenId
    pad_token_id: _TokenId | None = None
    eos_token_id: _TokenId | Annotated[tuple[_TokenId, ...], Field(strict=False, min_length=1)]
    rms_norm_eps: float = Field(gt=0)
    rope_theta: float | None = Field(None, gt=0)
    rope_parameters: _Rope | None = None
    rope_scaling: None = None
    use_sliding_window: Literal[False] = False
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    initializer_range: float = Field(0.02, ge=0)


class SDAR:
    name = "sdar"
    model_types: Sequence[str] = ("sdar",)
    architectures: Sequence[str] = ("SDARForCausalLM",)
    presets: Mapping[str, dict[str, Any]] = {
        "tiny": {
            "architectures": ["SDARForCausalLM"], "model_type": "sdar", "block_size": 4,
            "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 24, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "max_position_embeddings": 512, "tie_word_embeddings": True, "attention_bias": False,
            "initializer_range": 0.02, "torch_dtype": "float32",
        },
    }  # fmt: skip

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        c = check(_Config, config, "config.json")
        eos_ids = c.eos_token_id if isinstance(c.eos_token_id, tuple) else (c.eos_token_id,)
        for name, token_id in (("mask_token_id", c.mask_token_id), ("pad_token_id", c.pad_token_id or 0)):
            if token_id >= c.vocab_size:
                raise UnmaskError(f"config.json: {name} {token_id} is outside the vocabulary of {c.vocab_size}")
        return ModelSpec(
            family=self.name,
            attention="block_causal",
            block_size=c.block_size,
            mask_token_id=c.mask_token_id,
            pad_token_id=eos_ids[0] if c.pad_token_id is None else c.pad_token_id,
            eos_token_ids=eos_ids,
            vocab_size=c.vocab_size,
            shift_logits=False,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_layers=c.num_hidden_layers,
            num_heads=c.num_attention_heads,
            num_kv_heads=c.num_key_value_heads or c.num_attention_heads,
            head_dim=c.head_dim or c.hidden_size // c.num_attention_heads,
            rms_norm_eps=c.rms_norm_eps,
            rope_theta=c.rope_theta or (c.rope_parameters.rope_theta if c.rope_parameters else None) or 10000.0,
            is_tied=c.tie_word_embeddings,
            has_qk_norm=True,
            has_attention_bias=c.attention_bias,
            init_std=c.initializer_range,
        )

    def to_checkpoint_name(self, name: str) -> str:
        return name if name.startswith("lm_head.") else f"model.{name}"
