"""Dream, Dream-Coder and DiffuCoder: Qwen2.5 backbone, full attention, shifted logits.

Biases on queries, keys and values, none on the output; the output at position i - 1 predicts token i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unmask.config import check
from unmask.models.config_keys import QwenConfig, to_qwen_name
from unmask.models.spec import ModelSpec


class _Config(QwenConfig):
    block_size: None = None  # block-causal descendants with this key are other models


_QWEN2 = {
    "architectures": ["DreamModel"], "model_type": "Dream", "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": None,
    "use_sliding_window": False, "vocab_size": 152064, "mask_token_id": 151666, "pad_token_id": 151643,
    "eos_token_id": 151643, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
_SMALL = {
    "vocab_size": 32768, "mask_token_id": 2, "pad_token_id": 0, "eos_token_id": [1], "max_position_embeddings": 4096,
    "rope_theta": 10000.0, "torch_dtype": "float32", "tie_word_embeddings": True,
}  # fmt: skip


class Dream:
    name = "dream"
    model_types: Sequence[str] = ("Dream", "dream")
    architectures: Sequence[str] = ("DreamModel",)
    mask_token = "<|mask|>"
    turn_end_token = "<|im_end|>"
    presets: Mapping[str, dict[str, Any]] = {
        "tiny": {
            **_QWEN2, **_SMALL, "vocab_size": 96, "max_position_embeddings": 512, "hidden_size": 96,
            "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        },
        "small": {
            **_QWEN2, **_SMALL, "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 11,
            "num_attention_heads": 12, "num_key_value_heads": 4,
        },
        "7b": {
            **_QWEN2, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
    }  # fmt: skip

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        c = check(_Config, config, "config.json")
        return ModelSpec(
            family=self.name,
            attention="bidirectional",
            block_size=32,
            **c.special_ids(c.vocab_size),
            **c.sizes(),
            shift_logits=True,
            has_qkv_bias=True,
        )

    def to_checkpoint_name(self, name: str) -> str:
        return to_qwen_name(name)
