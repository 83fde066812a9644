"""Keys of config.json that several families share, typed and checked. What is not named here is preserved, not read.

A key that changes a model's numbers and is not supported is an error, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from unmask.errors import UnmaskError
from unmask.models.spec import RotarySpec

Size = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]
# "dynamic" and "longrope" depend on the length of the sequence in hand: what is cached would be wrong a moment later.
RopeType = Literal["default", "linear", "llama3", "yarn"]


def as_token_ids(value: Any) -> tuple[int, ...]:
    """One token id or a list of them. Raises `ValueError` for anything else."""
    ids = value if isinstance(value, list | tuple) else [value]
    if not ids or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ValueError(f"should be a token id or a list of them, found {value!r}")
    return tuple(ids)


class HubConfig(BaseModel):
    """What every family has."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    vocab_size: Size
    mask_token_id: TokenId
    pad_token_id: TokenId | None = None
    eos_token_id: tuple[int, ...]
    quantization_config: None = None

    @field_validator("eos_token_id", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> tuple[int, ...]:
        return as_token_ids(value)

    def special_ids(self, vocab_size: int) -> dict[str, Any]:
        """Arguments of `ModelSpec`. Without a pad token, the first end token pads. Raises `UnmaskError`."""
        eos_ids = self.eos_token_id
        pad_id = eos_ids[0] if self.pad_token_id is None else self.pad_token_id
        for name, token_id in (("mask_token_id", self.mask_token_id), ("pad_token_id", pad_id)):
            if token_id >= vocab_size:
                raise UnmaskError(f"config.json: {name} {token_id} is outside the vocabulary of {vocab_size}")
        if too_large := [i for i in eos_ids if i >= vocab_size]:
            raise UnmaskError(f"config.json: eos_token_id {too_large[0]} is outside the vocabulary of {vocab_size}")
        if self.mask_token_id in (pad_id, *eos_ids):
            what = "pad_token_id" if self.mask_token_id == pad_id else "an end token"
            raise UnmaskError(f"config.json: mask_token_id {self.mask_token_id} is also {what}; they must differ")
        return {"mask_token_id": self.mask_token_id, "pad_token_id": pad_id, "eos_token_ids": eos_ids}


class RopeScaling(BaseModel):
    """`rope_scaling`, or `rope_parameters` of newer configs."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    rope_type: RopeType = "default"
    type: RopeType | None = None  # the older name
    rope_theta: float | None = Field(None, gt=0)
    factor: float | None = Field(None, ge=1)
    original_max_position_embeddings: Size | None = Field(None, strict=False)
    attention_factor: float | None = Field(None, gt=0)
    beta_fast: float | None = Field(None, gt=0)
    beta_slow: float | None = Field(None, gt=0)
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    low_freq_factor: float | None = Field(None, gt=0)
    high_freq_factor: float | None = Field(None, gt=0)
    partial_rotary_factor: float | None = Field(None, ge=1, le=1)

    @model_validator(mode="after")
    def _complete(self) -> RopeScaling:
        if self.type is not None and "rope_type" not in self.model_fields_set:
            self.rope_type = self.type
        if self.type not in (None, self.rope_type):
            raise ValueError(f"type {self.type!r} and rope_type {self.rope_type!r} contradict each other")
        if self.rope_type == "default" and self.factor not in (None, 1.0):
            raise ValueError(f"factor {self.factor} is given without a rope_type that says how to scale")
        needed = {"linear": ("factor",), "yarn": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
        for key in needed.get(self.rope_type, ()):
            if getattr(self, key) is None:
                raise ValueError(f"rope_type {self.rope_type!r} needs the key {key!r}")
        return self

    def items(self, max_positions: int | None) -> tuple[tuple[str, Any], ...]:
        """The keys that are given, sorted, the original length completed by the config's; empty when nothing is scaled.

        Raises `UnmaskError` when nobody gives an original length that is needed.
        """
        if self.rope_type == "default":
            return ()
        given = self.model_dump(exclude_none=True, exclude={"type", "rope_theta", "partial_rotary_factor"})
        if self.rope_type in ("llama3", "yarn"):
            given.setdefault("original_max_position_embeddings", max_positions)
            if given["original_max_position_embeddings"] is None:
                raise UnmaskError(f"config.json: rope_type {self.rope_type!r} needs original_max_position_embeddings")
        return tuple(sorted({**given, "rope_type": self.rope_type}.items()))


class QwenConfig(HubConfig):
    """The keys of Qwen-like backbones under their usual names: SDAR, Dream."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size | None = None
    rms_norm_eps: float = Field(gt=0)
    rope_theta: float | None = Field(None, gt=0)
    rope_parameters: RopeScaling | None = None
    rope_scaling: RopeScaling | None = None
    partial_rotary_factor: float | None = Field(None, ge=1, le=1)
    use_sliding_window: bool | None = None
    sliding_window: int | None = None  # means something only with the key before
    layer_types: list[str] | None = None
    use_mrope: Literal[False] | None = None
    mlp_bias: Literal[False] | None = None
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool | None = None
    initializer_range: float = Field(0.02, ge=0)

    @model_validator(mode="after")
    def _full_attention(self) -> QwenConfig:
        if self.use_sliding_window and self.sliding_window is not None:
            raise ValueError(f"use_sliding_window with sliding_window {self.sliding_window} is not supported")
        if other := set(self.layer_types or ()) - {"full_attention"}:
            raise ValueError(f"layer_types {sorted(other)[0]!r} is not supported; known: 'full_attention'")
        return self

    def sizes(self) -> dict[str, Any]:
        """Arguments of `ModelSpec`. Raises `UnmaskError` for sizes that do not fit together."""
        kv_heads = self.num_key_value_heads or self.num_attention_heads
        check_heads(self.num_attention_heads, kv_heads, "num_attention_heads", "num_key_value_heads")
        head_dim = self.head_dim
        if head_dim is None:
            head_dim = divide_width(self.hidden_size, self.num_attention_heads, "hidden_size", "num_attention_heads")
        return {
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size, "intermediate_size": self.intermediate_size,
            "num_layers": self.num_hidden_layers, "num_heads": self.num_attention_heads, "num_kv_heads": kv_heads,
            "head_dim": check_even(head_dim), "rms_norm_eps": self.rms_norm_eps, "rotary": self.rotary(),
            "is_tied": bool(self.tie_word_embeddings), "init_std": self.initializer_range,
        }  # fmt: skip

    def rotary(self) -> RotarySpec:
        """theta and scaling, from where older and newer configs keep them. Raises `UnmaskError` on a contradiction."""
        new, old = self.rope_parameters or RopeScaling(), self.rope_scaling or RopeScaling()
        thetas = {theta for theta in (self.rope_theta, new.rope_theta, old.rope_theta) if theta is not None}
        if len(thetas) > 1:
            raise UnmaskError(f"config.json: rope_theta is given as {' and as '.join(map(str, sorted(thetas)))}")
        newer, older = new.items(self.max_position_embeddings), old.items(self.max_position_embeddings)
        if newer and older and newer != older:
            raise UnmaskError("config.json: rope_parameters and rope_scaling contradict each other")
        return RotarySpec(thetas.pop() if thetas else 10000.0, newer or older, self.max_position_embeddings)


def to_qwen_name(name: str) -> str:
    """Our parameter name -> the tensor's name in Qwen-like checkpoints: all but the heads are in `model`."""
    return name if name.startswith(("lm_head.", "value_head.")) else f"model.{name}"


def check_heads(heads: int, kv_heads: int, heads_key: str, kv_heads_key: str) -> None:
    """Raises `UnmaskError` when query heads cannot be shared out over key/value heads."""
    if heads % kv_heads:
        raise UnmaskError(f"config.json: {heads_key} {heads} is not a multiple of {kv_heads_key} {kv_heads}")


def divide_width(width: int, heads: int, width_key: str, heads_key: str) -> int:
    """The size of a head. Raises `UnmaskError` when it is not whole."""
    if width % heads:
        raise UnmaskError(f"config.json: {width_key} {width} is not a multiple of {heads_key} {heads}")
    return width // heads


def check_even(head_dim: int) -> int:
    """Raises `UnmaskError` for an odd size: rotary embeddings turn pairs."""
    if head_dim % 2:
        raise UnmaskError(f"config.json: a head size of {head_dim} is odd; rotary embeddings need pairs")
    return head_dim
