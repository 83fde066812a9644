"""Facts about a checkpoint from its JSON files and the headers of its weights, for `unmask inspect`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal

from unmask.errors import UnmaskError
from unmask.models.checkpoint import read_spec
from unmask.models.decoder import Backbone, Decoder, ValueModel
from unmask.models.lora import base_of, is_adapter
from unmask.models.spec import ModelSpec
from unmask.models.weights import StoredTensor, check_tensors, find_pickles, read_headers


def describe_checkpoint(folder: Path) -> tuple[dict[str, Any], UnmaskError | None]:
    """What `unmask inspect` shows, and why it would not load if so. No weight is read, but names and shapes are checked.

    A folder without any weights (only its JSON was fetched) is described by its config. Raises `UnmaskError`.
    """
    config, family, spec = read_spec(folder)
    adapts = base_of(folder) if is_adapter(folder) else ""
    has_weights = not adapts and (any(folder.glob("*.safetensors")) or bool(find_pickles(folder)))
    stored, problem = {}, None
    try:
        stored = read_headers(folder) if has_weights else {}
    except UnmaskError as error:
        problem = error
    is_value_model = family.to_checkpoint_name("value_head.weight") in stored
    with torch.device("meta"):
        model: Backbone = ValueModel(spec) if is_value_model else Decoder(spec)
    facts = {"model_type": config.get("model_type"), **describe_spec(spec), **describe_size(model)}
    facts["head"] = "value" if is_value_model else f"vocabulary ({'tied' if spec.is_tied else 'untied'})"
    facts["config dtype"] = str(config.get("dtype") or config.get("torch_dtype") or "not given").removeprefix("torch.")
    if stored:
        try:
            check_tensors(stored, model, family, spec, folder)
        except UnmaskError as error:
            problem = error
    facts["weights"] = "not here" if not has_weights else "will not load" if problem else _describe_weights(stored)
    if adapts:
        facts["weights"] = f"adapters for {adapts}"
    tokenizer = [name for name in ("tokenizer.json", "vocab.json", "tokenizer.model") if (folder / name).exists()]
    facts["tokenizer"] = tokenizer[0] if tokenizer else "none"
    if "auto_map" in config:
        facts["remote code"] = "named in the config, not used"
    return facts, problem


def describe_spec(spec: ModelSpec) -> dict[str, Any]:
    """Family, attention, sizes and special ids."""
    blocks = f"blocks of {spec.block_size}"
    attention = f"block-causal, {blocks}" if spec.attention == "block_causal" else f"bidirectional, decoded in {blocks}"
    rotary = f"theta {spec.rotary.theta:g}"
    if spec.rotary.scaling:
        rotary += ", " + ", ".join(f"{key} {value}" for key, value in spec.rotary.scaling)
    biases = [name for name, has in (
        ("query, key, value", spec.has_qkv_bias), ("attention output", spec.has_out_bias), ("MLP", spec.has_mlp_bias),
        ("norms", spec.has_norm_bias), ("head", spec.has_head_bias),
    ) if has]  # fmt: skip
    facts: dict[str, Any] = {
        "family": spec.family, "attention": attention, "shifted logits": "yes" if spec.shift_logits else "no",
        "layers": spec.num_layers, "width": spec.hidden_size, "MLP width": spec.intermediate_size,
        "heads": f"{spec.num_heads} query, {spec.num_kv_heads} key/value, {spec.head_dim} wide",
        "query/key norm": "yes" if spec.has_qk_norm else "no", "biases": ", ".join(biases) or "none",
        "rotary": rotary, "longest sequence": spec.rotary.max_positions, "vocabulary": spec.vocab_size,
        "mask token": spec.mask_token_id, "pad token": spec.pad_token_id,
        "end tokens": ", ".join(map(str, spec.eos_token_ids)),
    }  # fmt: skip
    if spec.experts is not None:
        e = spec.experts
        where = "all layers" if len(e.layers) == spec.num_layers else f"{len(e.layers)} of {spec.num_layers} layers"
        facts["experts"] = f"{e.num_experts}, {e.num_active} active, {e.intermediate_size} wide, in {where}"
    return facts


def describe_size(model: Backbone) -> dict[str, Any]:
    """Parameters in all, and how many of them work on one token. A model on the "meta" device will do."""
    experts = model.spec.experts
    total = sum(p.numel() for p in model.parameters())
    if experts is None:
        return {"parameters": total}
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return {"parameters": total, "active parameters": total - routed + routed * experts.num_active // experts.num_experts}


def _describe_weights(stored: dict[str, StoredTensor]) -> str:
    files = {tensor.file for tensor in stored.values()}
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in Counter(tensor.dtype for tensor in stored.values()).most_common())
    size = decimal(sum(file.stat().st_size for file in files))
    return f"{kinds} in {len(files)} file{'s' if len(files) > 1 else ''}, {size}, complete"
