"""SDAR and TraDo (dense): Qwen3 backbone, block-causal attention over prompt and response alike.

Per-head RMSNorm on queries and keys, explicit head_dim, grouped-query attention, tied or untied head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unmask.errors import UnmaskError
from unmask.models.spec import ModelSpec


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
        for key, supported in (("hidden_act", ("silu",)), ("rope_scaling", (None,)), ("use_sliding_window", (False,))):
            if config.get(key, supported[0]) not in supported:
                raise UnmaskError(f"config.json: {key} = {config[key]!r} is not supported (supported: {supported[0]!r})")
        try:
            num_heads = config["num_attention_heads"]
            eos = config["eos_token_id"]
            eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
            pad = config.get("pad_token_id")
            rope = config.get("rope_parameters") or {}
            if rope.get("rope_type", "default") != "default":
                raise UnmaskError(f"config.json: rope_type {rope['rope_type']!r} is not supported (supported: 'default')")
            return ModelSpec(
                family=self.name,
                attention="block_causal",
                block_size=config.get("block_size", 4),
                mask_token_id=config["mask_token_id"],
                pad_token_id=eos_ids[0] if pad is None else pad,
                eos_token_ids=eos_ids,
                vocab_size=config["vocab_size"],
                shift_logits=False,
                hidden_size=config["hidden_size"],
                intermediate_size=config["intermediate_size"],
                num_layers=config["num_hidden_layers"],
                num_heads=num_heads,
                num_kv_heads=config.get("num_key_value_heads", num_heads),
                head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
                rms_norm_eps=config["rms_norm_eps"],
                rope_theta=float(config.get("rope_theta") or rope.get("rope_theta", 10000.0)),
                is_tied=config.get("tie_word_embeddings", False),
                has_qk_norm=True,
                has_attention_bias=config.get("attention_bias", False),
                init_std=config.get("initializer_range", 0.02),
            )
        except KeyError as error:
            raise UnmaskError(f"config.json: key {error.args[0]!r} is missing (family sdar needs it)") from None

    def to_checkpoint_name(self, name: str) -> str:
        return name if name.startswith("lm_head.") else f"model.{name}"
