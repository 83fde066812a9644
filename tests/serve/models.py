"""Tiny random models with a tokenizer of single characters."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path

from unmask.data.chat import ChatTokenizer
from unmask.models import Decoder
from unmask.models.checkpoint import load_model, new_model, save_model

KINDS = ("sdar", "llada", "dream")
_WIDTHS = {
    "sdar": {
        "hidden_size": 48, "head_dim": 12, "intermediate_size": 96, "num_hidden_layers": 2,
        "max_position_embeddings": 4096,
    },
    "llada": {"d_model": 48, "mlp_hidden_size": 96, "n_layers": 2},
    "dream": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2},
}  # fmt: skip


@cache
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.tiny([*string.ascii_lowercase, *string.digits, *" .,?!+=-*", "the", "an", "é", "\n"])


def tiny(kind: str, seed: int = 0) -> Decoder:
    """Weights large enough for opinions."""
    special = tokenizer().special_ids
    if kind != "sdar":
        special["eos_token_id"] = special["eos_token_id"][0]
    std = "init_std" if kind == "llada" else "initializer_range"
    return new_model(f"{kind}/tiny", seed, **special, **_WIDTHS[kind], vocab_size=len(tokenizer().tokenizer), **{std: 0.2})


def save_tiny(folder: Path, kind: str = "sdar", seed: int = 0) -> Path:
    save_model(tiny(kind, seed), folder)
    tokenizer().save(folder)
    return folder


@cache
def loaded(folder: Path) -> Decoder:
    return load_model(folder, dtype="float32")
