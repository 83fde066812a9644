"""How to decode one sequence."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.functional_validators import field_validator, model_validator


class SamplingParams(BaseModel):
    """How to decode one sequence. Immutable; `params.model_copy(update={"seed": 1})` makes a variant.

    Drawing: logits are divided by `temperature` (0 = argmax), cut to the `top_k` largest (0 = all), then to the
    smallest set whose probability reaches `top_p`. The mask token is never drawn.
    Unmasking: `remasking_strategy` chooses which drawn tokens stay; `confidence_threshold` belongs to
    `low_confidence_dynamic` (block models: strictly greater passes; full attention: at least), `entropy_bound` (nats) to
    `entropy_bounded`. `score` says by what the two low-confidence strategies rank.
    Ending: a stop token, a stop string, or `max_new_tokens`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_new_tokens: int = Field(256, ge=1, le=2**20, description="limit on response tokens")
    block_size: int | None = Field(None, ge=1, le=2**14, description="tokens denoised together; None = the model's")
    denoising_steps_per_block: int | None = Field(
        None, ge=1, le=2**20, description="None = block_size (at least one token a step)"
    )
    denoising_steps: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="of the whole response, instead: shared by its blocks, the first ones take the remainder",
    )
    quota_schedule: Literal["even", "dream"] = Field(
        "even", description="tokens per step: even = as many in each; dream = by Dream's timesteps, which may give 0"
    )
    remasking_strategy: str = Field("low_confidence_dynamic", description="which drawn tokens stay unmasked")
    score: Literal["confidence", "margin", "neg_entropy"] = Field(
        "confidence",
        description="what the low_confidence strategies rank by: probability of the drawn token; of the best minus the "
        "second best; sum of p log p",
    )
    confidence_threshold: float = Field(
        0.9, description="for low_confidence_dynamic; block models: strictly greater passes, full attention: at least"
    )
    alg_temp: float = Field(
        0.0, ge=0.0, description="0 = best score first; else positions are drawn by softmax(score / alg_temp)"
    )
    pad_penalty: float = Field(1.0, gt=0.0, description="a drawn pad token's confidence is divided by this")
    unmask_block_start: bool = Field(
        False, description="full attention: a block's first step unmasks its first position and nothing else"
    )
    entropy_bound: float = Field(0.5, ge=0.0, description="nats, for entropy_bounded")
    temperature: float = Field(1.0, ge=0.0, le=100.0, description="0 = argmax; else at least 0.001")
    top_k: int = Field(0, ge=0, lt=2**31, description="0 = all")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="smallest set of tokens with this probability; 1 = all")
    stop_token_ids: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None = Field(
        None, strict=False, description="None = the model's eos_token_ids"
    )
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), strict=False, description="texts that end the response, which keeps them; needs a tokenizer"
    )
    ignore_eos: bool = Field(False, description="the model's own end tokens do not stop")
    min_tokens: int = Field(0, ge=0, description="stop tokens are not drawn for so many first response tokens")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the sequence's own random numbers")
    cache: Literal["auto", "none", "prefix", "dual"] = Field(
        "auto",
        description="auto = exact: block models keep K/V of committed blocks, full attention keeps none; prefix, dual = "
        "approximate, full attention only: K/V before the block, or all around it, kept during the block's steps",
    )
    further_horizon: int | None = Field(
        None, ge=0, lt=2**31, description="with cache prefix: tokens after the block that are recomputed and seen; None = all"
    )

    @field_validator("stop_token_ids", "stop_strings", mode="before")
    @classmethod
    def _one_is_a_tuple_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | str) else value

    @field_validator("temperature")
    @classmethod
    def _no_vanishing_temperature(cls, value: float) -> float:
        if 0 < value < 1e-3:
            raise ValueError("should be 0 (argmax) or at least 0.001")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> SamplingParams:
        if self.denoising_steps is not None and self.denoising_steps_per_block is not None:
            raise ValueError("give denoising_steps (of the response) or denoising_steps_per_block, not both")
        if self.confidence_threshold < 0 and self.score != "neg_entropy":
            raise ValueError("confidence_threshold should be at least 0 (only the score neg_entropy is negative)")
        if self.min_tokens > self.max_new_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than max_new_tokens {self.max_new_tokens}")
        if self.further_horizon is not None and self.cache != "prefix":
            raise ValueError('further_horizon belongs to cache "prefix"')
        return self


def without_other_steps(base: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Defaults without the one way of giving a number of steps where the other one is given."""
    other = {"denoising_steps": "denoising_steps_per_block", "denoising_steps_per_block": "denoising_steps"}
    dropped = {other[name] for name in given if name in other}
    return {name: value for name, value in base.items() if name not in dropped}
