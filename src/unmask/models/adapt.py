"""Diffusion models from autoregressive ones: the same weights under another family's config, and a mask token.

SDAR and Dream began as Qwen models (SDAR, arXiv 2510.06303; Dream, arXiv 2508.15487): their decoders have the same tensors.
What comes out computes what the autoregressive model did where attention is causal; training does the rest.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unmask.errors import UnmaskError
from unmask.files import read_json
from unmask.models import FAMILIES
from unmask.models.checkpoint import allocate, find_dtype
from unmask.models.decoder import Decoder
from unmask.models.export import with_older_names
from unmask.models.weights import check_tensors, checkpoint_tensors, read_headers, read_tensors, stored_dtype

# model_type of the autoregressive model -> the family that has its tensors
ADAPTED = {"qwen3": "sdar", "qwen3_moe": "sdar_moe", "qwen2": "dream"}
_OF_THE_OLD_MODEL = ("architectures", "model_type", "auto_map")
_RENAMED = {"num_local_experts": "num_experts"}  # newer names of transformers


def adapted_family(folder: Path) -> str:
    """The family that a folder's autoregressive model can be taken into. Raises `UnmaskError`."""
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in ADAPTED:
        known = ", ".join(f"{old} (as {new})" for old, new in ADAPTED.items())
        raise UnmaskError(f"{folder / 'config.json'}: model_type {model_type!r} cannot be adapted; known: {known}")
    return ADAPTED[model_type]


def adapt_model(folder: Path, special_ids: dict[str, Any], num_tokens: int, block_size: int | None = None) -> Decoder:
    """The autoregressive model of a folder as one of `adapted_family`, in the dtype it is stored in.

    special_ids: `mask_token_id`, `pad_token_id`, `eos_token_id` of its tokenizer, which has `num_tokens` tokens; the vocabulary
        grows where they are more than the embedding's rows.
    block_size: of block models; None = the family's.

    The mask token, and rows that are new, begin as the mean of all embeddings. Raises `UnmaskError`.
    """
    family = FAMILIES[adapted_family(folder)]
    old = read_json(folder / "config.json")
    blocks: dict[str, Any] = {}
    if "block_size" in family.presets["tiny"]:
        blocks = {"block_size": block_size or family.presets["tiny"]["block_size"]}
    elif block_size is not None:
        raise UnmaskError(f"--block-size is for block models; {family.name} has full attention")
    config = {
        "architectures": list(family.architectures), "model_type": family.model_types[0],
        **{_RENAMED.get(key, key): value for key, value in old.items() if key not in _OF_THE_OLD_MODEL},
        **special_ids, **blocks,
    }  # fmt: skip
    num_rows = old.get("vocab_size")
    if not isinstance(num_rows, int):
        raise UnmaskError(f"{folder / 'config.json'}: vocab_size should be a number, found {num_rows!r}")
    config["vocab_size"] = max(num_tokens, num_rows)
    spec = family.spec(config)
    stored = read_headers(folder)
    with torch.device("meta"):
        model = Decoder(spec)
        check_tensors(stored, Decoder(replace(spec, vocab_size=num_rows)), family, spec, folder)
    model = allocate(model, "cpu", find_dtype(stored_dtype(stored)))
    model.config, model.source_folder = with_older_names(config, spec), folder.resolve()
    wanted = checkpoint_tensors(model, family)
    tables = [family.to_checkpoint_name(f"{name}.weight") for name in ("embed_tokens", "lm_head")]
    read_tensors(stored, {name: tensor[:num_rows] if name in tables else tensor for name, tensor in wanted.items()})
    is_known = torch.arange(min(num_rows, num_tokens)) != spec.mask_token_id
    for table in (wanted[name] for name in tables if name in wanted):
        mean = table[: len(is_known)][is_known].float().mean(0).to(table.dtype)
        table[num_rows:] = mean
        table[spec.mask_token_id] = mean
    return model.eval()
