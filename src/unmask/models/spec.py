"""What a model is: `ModelSpec` (facts derived from a config) and `ModelFamily` (how a family writes those facts down)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

AttentionKind = Literal["block_causal", "bidirectional"]


@dataclass(frozen=True)
class RotarySpec:
    """Rotary embeddings. `scaling` holds the config's own keys (`rope_type`, `factor`, ...), sorted; empty = unscaled."""

    theta: float
    scaling: tuple[tuple[str, Any], ...] = ()
    max_positions: int | None = None  # the longest sequence the config speaks of; nothing is computed from it


@dataclass(frozen=True)
class ExpertSpec:
    """Which layers route their tokens to experts, and how: softmax over all, the best `num_active`, renormalised."""

    num_experts: int
    num_active: int
    intermediate_size: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """Everything the decoder and the samplers derive from a checkpoint's config; no behaviour.

    `vocab_size` is the number of rows of the embedding and of the head (unused rows at the end included), `block_size`
    what is decoded together by default: for bidirectional models an unmasking window, not an attention boundary.
    `shift_logits`: the output at position i - 1 is the prediction for token i (the decoder takes care of it).
    """

    family: str
    attention: AttentionKind
    block_size: int
    mask_token_id: int
    pad_token_id: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rotary: RotarySpec
    is_tied: bool
    shift_logits: bool = False
    has_qk_norm: bool = False
    has_qkv_bias: bool = False
    has_out_bias: bool = False  # of the attention's output projection
    has_mlp_bias: bool = False
    has_norm_bias: bool = False
    has_head_bias: bool = False
    experts: ExpertSpec | None = None
    init_std: float = 0.02


class ModelFamily(Protocol):
    """One file per family implements this; `unmask.models.FAMILIES` lists them.

    `config` is always the parsed config.json of a checkpoint, with special ids that only the tokenizer knows filled in.
    """

    name: str
    model_types: Sequence[str]  # values of config["model_type"]
    architectures: Sequence[str]  # values in config["architectures"]
    mask_token: str  # the mask token's text, for checkpoints whose config does not give its id
    turn_end_token: str  # the text of the token that ends an assistant's turn
    presets: Mapping[str, dict[str, Any]]  # size name -> config of a randomly initialised model

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        """Reads a config. Raises `UnmaskError` naming the key that is missing or unsupported."""
        ...

    def to_checkpoint_name(self, name: str) -> str:
        """Our parameter name -> the tensor's name in the family's checkpoints.

        A name with `{}` stands for as many tensors as the parameter has rows (experts), numbered from 0.
        """
        ...
