"""The same networks built from transformers' own models: an independent route to a checkpoint's logits.

Configs and tensors are read from the saved folder, by the checkpoint's names and keys, with nothing of unmask's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

_OLMO_TO_LLAMA = (
    (r"^model\.transformer\.blocks\.(\d+)\.", r"model.layers.\1."),
    (r"\.(q|k|v)_proj\.", r".self_attn.\1_proj."),
    (r"\.attn_out\.", ".self_attn.o_proj."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ff_norm\.", ".post_attention_layernorm."),
    (r"\.ff_proj\.", ".mlp.gate_proj."),
    (r"\.up_proj\.", ".mlp.up_proj."),
    (r"^model\.transformer\.wte\.", "model.embed_tokens."),
    (r"^model\.transformer\.ln_f\.", "model.norm."),
    (r"^model\.transformer\.ff_out\.", "lm_head."),
    (r"(layers\.\d+)\.ff_out\.", r"\1.mlp.down_proj."),
)


def peer_logits(folder: Path, input_ids_BL: Tensor, is_visible_BLL: Tensor) -> Tensor:
    """Logits [B, L, V] as published: not shifted. `is_visible_BLL`: bool, query by key."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
    model, head_bias = _olmo(config, tensors) if "d_model" in config else (_qwen(config, tensors), None)
    model.eval()
    attention_mask = torch.where(is_visible_BLL[:, None], 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits = model(input_ids_BL, attention_mask=attention_mask, use_cache=False).logits
    return logits if head_bias is None else logits + head_bias


def _rope(config: dict) -> dict:
    scaling = dict(config.get("rope_scaling") or {})
    scaling.setdefault("rope_type", scaling.pop("type", "default"))
    return {**scaling, "rope_theta": config["rope_theta"]}


def _qwen(config: dict, tensors: dict[str, Tensor]) -> torch.nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    kinds = {
        "sdar": (Qwen3Config, Qwen3ForCausalLM), "sdar_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
        "Dream": (Qwen2Config, Qwen2ForCausalLM), "toy": (Qwen3Config, Qwen3ForCausalLM),
    }  # fmt: skip
    config_class, model_class = kinds[config["model_type"]]
    unused = ("rope_scaling", "rope_theta", "model_type", "architectures", "torch_dtype", "block_size")
    keys = {k: v for k, v in config.items() if k not in unused}
    model = model_class(config_class(**keys, rope_parameters=_rope(config), attn_implementation="eager"))
    if config["model_type"] == "toy":
        tensors = {name.removeprefix("toy."): tensor for name, tensor in tensors.items()}
    _load(model, _stack_experts(tensors, config))
    return model


def _stack_experts(tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """transformers keeps gate and up of all experts in one tensor [E, 2F, D] and down in another."""
    if "num_experts" not in config:
        return tensors
    plain = {name: t for name, t in tensors.items() if ".experts." not in name}
    for layer in {name.split(".mlp.experts.")[0] for name in tensors if ".experts." in name}:

        def expert(kind: str, layer: str = layer) -> Tensor:
            names = [f"{layer}.mlp.experts.{e}.{kind}_proj.weight" for e in range(config["num_experts"])]
            return torch.stack([tensors[name] for name in names])

        plain[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat((expert("gate"), expert("up")), 1)
        plain[f"{layer}.mlp.experts.down_proj"] = expert("down")
    return plain


def _olmo(config: dict, tensors: dict[str, Tensor]) -> tuple[torch.nn.Module, Tensor | None]:
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab_size = config["embedding_size"] or config["vocab_size"]
    has_bias = config["include_bias"] or config["include_qkv_bias"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=config["d_model"], num_hidden_layers=config["n_layers"],
            intermediate_size=config.get("mlp_hidden_size") or config["mlp_ratio"] * config["d_model"],
            num_attention_heads=config["n_heads"],
            num_key_value_heads=1 if config["multi_query_attention"] else config["n_kv_heads"],
            rms_norm_eps=config["rms_norm_eps"], rope_parameters=_rope(config), attention_bias=has_bias,
            mlp_bias=config["include_bias"], tie_word_embeddings=config["weight_tying"], attn_implementation="eager",
        )
    )  # fmt: skip
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _OLMO_TO_LLAMA:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    renamed = {name: tensor for name, tensor in renamed.items() if not name.endswith("norm.bias")}
    head_bias = renamed.pop("lm_head.bias", None)
    if has_bias and not config["include_bias"]:  # Llama's switch covers the output projection, too
        renamed |= {
            f"model.layers.{i}.self_attn.o_proj.bias": torch.zeros(config["d_model"]) for i in range(config["n_layers"])
        }
    _load(model, renamed)
    return model, head_bias


def _load(model: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # tied
    model.tie_weights()
