"""What a model is: `ModelSpec` (facts derived from a config) and `ModelFamily` (how a family writes those facts down)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

AttentionKind = Literal["block_causal", "bidirectional"]


@dataclass(frozen=True)
class ModelSpec:
    """Everything the decoder and the samplers derive from a checkpoint's config; no behaviour."""

    family: str
    attention: AttentionKind
    block_size: int
    mask_token_id: int
    pad_token_id: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    shift_logits: bool
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    is_tied: bool
    has_qk_norm: bool
    has_attention_bias: bool
    init_std: float = 0.02


class ModelFamily(Protocol):
    """One file per family implements this; `unmask.models.FAMILIES` lists them.

    `config` is always the parsed config.json of a checkpoint.
    """

    name: str
    model_types: Sequence[str]  # values of config["model_type"]
    architectures: Sequence[str]  # values in config["architectures"]
    presets: Mapping[str, dict[str, Any]]  # size name -> config of a randomly initialised model

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        """Reads a config. Raises `UnmaskError` naming the key that is missing or unsupported."""
        ...

    def to_checkpoint_name(self, name: str) -> str:
        """Our parameter name -> the tensor's name in the family's checkpoints (one to one)."""
        ...
