"""LLaDA 8B and 1.5: LLaMA-like backbone under OLMo's names, full attention."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from unmask.config import check
from unmask.errors import UnmaskError
from unmask.models.config_keys import HubConfig, Size, check_even, check_heads, divide_width
from unmask.models.spec import ModelSpec, RotarySpec


class _Config(HubConfig):
    """OLMo's keys. Those that would change the model in a way no published checkpoint uses allow one value."""

    d_model: Size
    n_heads: Size
    n_kv_heads: Size | None = None
    multi_query_attention: bool | None = None
    n_layers: Size
    mlp_ratio: Size = 4
    mlp_hidden_size: Size | None = None
    embedding_size: Annotated[int, Field(ge=0)] | None = None  # 0 or nothing: the vocabulary's
    max_sequence_length: Size | None = None
    rms_norm_eps: float = Field(1e-5, gt=0)
    rope_theta: float = Field(10000.0, gt=0)
    weight_tying: bool = True
    include_bias: bool = False
    include_qkv_bias: bool = False
    bias_for_layer_norm: bool | None = None
    init_std: float = Field(0.02, ge=0)

    activation_type: Literal["silu"] = "silu"
    block_type: Literal["llama"] = "llama"
    layer_norm_type: Literal["rms"] = "rms"
    layer_norm_with_affine: Literal[True] = True
    attention_layer_norm: Literal[False] = False
    rope: Literal[True] = True
    alibi: Literal[False] = False
    input_emb_norm: Literal[False] = False
    scale_logits: Literal[False] = False
    block_group_size: Literal[1] = 1
    clip_qkv: None = None
    rope_scaling: None = None


# Read by the published code, whose own defaults (dropout!) are others; they change nothing here.
_UNUSED = {
    "alibi": False, "alibi_bias_max": 8.0, "attention_dropout": 0.0, "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True, "block_group_size": 1, "embedding_dropout": 0.0, "flash_attention": False,
    "init_cutoff_factor": None, "init_device": "meta", "init_fn": "mitchell", "input_emb_norm": False,
    "layer_norm_with_affine": True, "precision": "amp_bf16", "residual_dropout": 0.0, "rope_full_precision": True,
    "scale_logits": False, "use_cache": False,
}  # fmt: skip
_LLADA = {
    **_UNUSED,
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "activation_type": "silu", "block_type": "llama",
    "layer_norm_type": "rms", "rope": True, "multi_query_attention": None, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "include_bias": False, "include_qkv_bias": False, "bias_for_layer_norm": False, "weight_tying": False,
    "init_std": 0.02, "mlp_ratio": 4, "vocab_size": 126464, "embedding_size": 126464, "max_sequence_length": 4096,
    "mask_token_id": 126336, "pad_token_id": 126081, "eos_token_id": 126081, "torch_dtype": "bfloat16",
}  # fmt: skip
_SMALL = {
    "vocab_size": 32768, "embedding_size": None, "mask_token_id": 2, "pad_token_id": 0, "eos_token_id": [1],
    "rope_theta": 10000.0, "torch_dtype": "float32", "weight_tying": True,
}  # fmt: skip

# Our names -> the checkpoint's, within a layer and outside.
_LAYER = {
    "self_attn.q_proj": "q_proj", "self_attn.k_proj": "k_proj", "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out", "input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out",
}  # fmt: skip
_OUTSIDE = {"embed_tokens": "wte", "norm": "ln_f", "lm_head": "ff_out"}


class LLaDA:
    name = "llada"
    model_types: Sequence[str] = ("llada",)
    architectures: Sequence[str] = ("LLaDAModelLM",)
    mask_token = "<|mdm_mask|>"
    turn_end_token = "<|eot_id|>"
    presets: Mapping[str, dict[str, Any]] = {
        "tiny": {
            **_LLADA, **_SMALL, "vocab_size": 96, "max_sequence_length": 512, "d_model": 96, "mlp_hidden_size": 256,
            "n_layers": 3, "n_heads": 4, "n_kv_heads": 2,
        },
        "small": {
            **_LLADA, **_SMALL, "d_model": 768, "mlp_hidden_size": 2304, "n_layers": 11, "n_heads": 12, "n_kv_heads": 4,
        },
        "8b": {**_LLADA, "d_model": 4096, "mlp_hidden_size": 12288, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32},
    }  # fmt: skip

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        c = check(_Config, config, "config.json")
        kv_heads = c.n_kv_heads or (1 if c.multi_query_attention else c.n_heads)
        if c.multi_query_attention is not None and c.n_heads > 1 and c.multi_query_attention != (kv_heads == 1):
            raise UnmaskError(f"config.json: multi_query_attention {c.multi_query_attention} contradicts n_kv_heads {kv_heads}")
        check_heads(c.n_heads, kv_heads, "n_heads", "n_kv_heads")
        vocab_size = c.embedding_size or c.vocab_size
        if vocab_size < c.vocab_size:
            raise UnmaskError(f"config.json: embedding_size {vocab_size} is smaller than vocab_size {c.vocab_size}")
        return ModelSpec(
            family=self.name,
            attention="bidirectional",
            block_size=32,
            **c.special_ids(vocab_size),
            vocab_size=vocab_size,
            hidden_size=c.d_model,
            intermediate_size=c.mlp_hidden_size or c.mlp_ratio * c.d_model,
            num_layers=c.n_layers,
            num_heads=c.n_heads,
            num_kv_heads=kv_heads,
            head_dim=check_even(divide_width(c.d_model, c.n_heads, "d_model", "n_heads")),
            rms_norm_eps=c.rms_norm_eps,
            rotary=RotarySpec(c.rope_theta, max_positions=c.max_sequence_length),
            is_tied=c.weight_tying,
            has_qkv_bias=c.include_bias or c.include_qkv_bias,
            has_out_bias=c.include_bias,
            has_mlp_bias=c.include_bias,
            has_norm_bias=c.include_bias if c.bias_for_layer_norm is None else c.bias_for_layer_norm,
            has_head_bias=c.include_bias and not c.weight_tying,
            init_std=c.init_std,
        )

    def to_checkpoint_name(self, name: str) -> str:
        module, _, kind = name.rpartition(".")
        if match := re.fullmatch(r"layers\.(\d+)\.(.+)", module):
            return f"model.transformer.blocks.{match[1]}.{_LAYER[match[2]]}.{kind}"
        return f"model.transformer.{_OUTSIDE[module]}.{kind}" if module in _OUTSIDE else name
