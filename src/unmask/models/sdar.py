"""SDAR and TraDo, dense and mixture of experts: Qwen3 backbone, block-causal attention over prompt and response alike.

Per-head RMSNorm on queries and keys, explicit head_dim, grouped-query attention, tied or untied head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from unmask.config import check
from unmask.errors import UnmaskError
from unmask.models.config_keys import QwenConfig, Size, to_qwen_name
from unmask.models.spec import ExpertSpec, ModelSpec


class _Config(QwenConfig):
    block_size: Size = 4
    head_dim: Size | None = 128
    attention_bias: bool | None = None


class _MoeConfig(_Config):
    num_experts: Size
    num_experts_per_tok: Size
    moe_intermediate_size: Size
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[int, ...] | None = Field(None, strict=False)


_QWEN3 = {
    "architectures": ["SDARForCausalLM"], "model_type": "sdar", "block_size": 4,
    "attention_bias": False, "hidden_act": "silu", "head_dim": 128, "num_key_value_heads": 8,
    "initializer_range": 0.02, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "rope_scaling": None, "use_sliding_window": False,
    "vocab_size": 151936, "mask_token_id": 151669, "pad_token_id": 151643, "eos_token_id": [151643, 151645],
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
_SMALL = {
    "vocab_size": 32768, "mask_token_id": 2, "pad_token_id": 0, "eos_token_id": [1], "max_position_embeddings": 4096,
    "rope_theta": 10000.0, "torch_dtype": "float32",
}  # fmt: skip
_TINY = {**_SMALL, "vocab_size": 96, "max_position_embeddings": 512}


class SDAR:
    name = "sdar"
    model_types: Sequence[str] = ("sdar",)
    architectures: Sequence[str] = ("SDARForCausalLM",)
    mask_token = "<|MASK|>"
    turn_end_token = "<|im_end|>"
    presets: Mapping[str, dict[str, Any]] = {
        "tiny": {
            **_QWEN3, **_TINY, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": True,
        },
        "small": {
            **_QWEN3, **_SMALL, "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 11,
            "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": True,
        },
        "1.7b": {
            **_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
            "tie_word_embeddings": True,
        },
        "4b": {
            **_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
            "tie_word_embeddings": True,
        },
        "8b": {
            **_QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        },
    }  # fmt: skip
    _config: type[_Config] = _Config

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        c = check(self._config, config, "config.json")
        return ModelSpec(
            family=self.name,
            attention="block_causal",
            block_size=c.block_size,
            **c.special_ids(c.vocab_size),
            **c.sizes(),
            has_qk_norm=True,
            has_qkv_bias=bool(c.attention_bias),
            has_out_bias=bool(c.attention_bias),
            experts=self._experts(c),
        )

    def _experts(self, c: _Config) -> ExpertSpec | None:
        return None

    def to_checkpoint_name(self, name: str) -> str:
        return to_qwen_name(name)


class SDARMoE(SDAR):
    name = "sdar_moe"
    model_types = ("sdar_moe",)
    architectures = ("SDARMoeForCausalLM",)
    presets = {  # noqa: RUF012
        size: {**config, "model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"], "norm_topk_prob": True,
               "decoder_sparse_step": 1, "mlp_only_layers": []}
        for size, config in {
            "tiny": {
                **SDAR.presets["tiny"], "hidden_size": 64, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2,
                "moe_intermediate_size": 48,
            },
            "small": {
                **SDAR.presets["small"], "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
                "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 192,
            },
            "30b-a3b": {
                **_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
                "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
                "moe_intermediate_size": 768,
            },
        }.items()
    }  # fmt: skip
    _config = _MoeConfig

    def _experts(self, c: _Config) -> ExpertSpec | None:
        assert isinstance(c, _MoeConfig)
        if c.num_experts_per_tok > c.num_experts:
            raise UnmaskError(f"config.json: num_experts_per_tok {c.num_experts_per_tok} is above num_experts {c.num_experts}")
        dense = c.mlp_only_layers or ()
        step = c.decoder_sparse_step
        layers = tuple(i for i in range(c.num_hidden_layers) if (i + 1) % step == 0 and i not in dense)
        return ExpertSpec(c.num_experts, c.num_experts_per_tok, c.moe_intermediate_size, layers)

    def to_checkpoint_name(self, name: str) -> str:
        name = super().to_checkpoint_name(name).replace(".mlp.router.", ".mlp.gate.")
        before, found, matrix = name.partition(".mlp.experts.")
        return f"{before}.mlp.experts.{{}}.{matrix}.weight" if found else name
