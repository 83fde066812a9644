"""The carriers that cross package boundaries. No torch here: the command line and the viewer import this file.

| type | made by | read by |
|---|---|---|
| `SamplingParams` | user, recipes | samplers |
| `Example` | `data` | training loops, rewards, evaluation |
| `Trace` | every sampler | trainer, evaluation, viewer |
| `Demonstration` | `train` | SFT objectives |
| `Rollout`, `RolloutGroup` | `rl` | rewards, advantages, objectives |
| `TraceRecord` | evaluation, `unmask generate` | viewer (one line of `traces.jsonl`) |
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.functional_validators import SkipValidation, field_validator, model_validator

from unmask.errors import UnmaskError

FinishReason = Literal["stop", "length", "abort"]
Count = Annotated[int, Strict(), Field(ge=0)]
Number = Annotated[float, Strict()]
_CLOSED = ConfigDict(extra="forbid")


def _read(kind: type[Trace] | type[TraceRecord], data: Any, where: str) -> Any:
    """A dataclass from parsed JSON. Raises `UnmaskError` for the first thing that is wrong."""
    if not isinstance(data, dict):
        raise UnmaskError(f"{where}: expected a JSON object, found {type(data).__name__}")
    try:
        return _ADAPTERS[kind].validate_python(data)
    except ValidationError as error:
        problem = min(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")  # it often explains the rest
    name = ".".join(map(str, problem["loc"]))
    known = ", ".join(f.name for f in fields(kind))
    said = {"missing": f"field {name!r} is missing", "unexpected_keyword_argument": f"unknown field {name!r}; known: {known}"}
    raise UnmaskError(f"{where}: " + said.get(problem["type"], f"{name}: {problem['msg']}, found {problem['input']!r:.60}"))


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
    denoising_steps_per_block: int | None = Field(None, ge=1, description="None = block_size (at least one token a step)")
    denoising_steps: int | None = Field(
        None, ge=1, description="of the whole response, instead: shared by its blocks, the first ones take the remainder"
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
    top_k: int = Field(0, ge=0, description="0 = all")
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
        None, ge=0, description="with cache prefix: tokens after the block that are recomputed and seen; None = all"
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


@dataclass(slots=True)
class Trace:
    """The record of one decoded sequence: which token was unmasked where, when, and how probable it was.

    The canvas starts right after the prompt. Block models: all positions of whole blocks, also those after the stop
    token in the last block. Full attention: all `max_new_tokens` positions, which the model saw from the first step on.

    Attributes:
        prompt_ids: token ids of the prompt.
        canvas_ids: token ids after the prompt; positions never unmasked hold the mask token.
        step_map: for each canvas position the denoising step, counted from 0 over the sequence, at which it was
            unmasked; -1 = never.
        logprobs: natural log of the probability of each canvas token under the distribution it was drawn from
            (temperature, top-k, top-p and the exclusion of the mask token applied); 0.0 where step_map is -1.
        confidences: the model's probability of each token at its step, before temperature and filtering.
        num_response_tokens: how many leading canvas tokens count as the response (the stop token included).
        block_size: block models: block size of the grid, on absolute positions. Full attention: size of the window in which
            tokens are unmasked; windows begin with the canvas.
        num_forwards: denoising steps, each of which is a forward pass, shared by the commit of a block and the end of the
            prefill. Passes that only prefill depend on the neighbours and are counted by the engine, not here.
        finish_reason: "stop" (a stop token or string), "length" (the limit) or "abort" (taken out by the caller).
        seed: seed of this sequence's own random numbers.
        settings: the decode settings, as `SamplingParams.model_dump()`.
        policy_version: optimizer steps the weights had seen.
    """

    __pydantic_config__ = _CLOSED

    prompt_ids: list[Count]
    canvas_ids: list[Count]
    step_map: list[Annotated[int, Strict(), Field(ge=-1)]]
    logprobs: list[Number]
    confidences: list[Number]
    num_response_tokens: Count
    block_size: Annotated[int, Strict(), Field(ge=1)]
    num_forwards: Count
    finish_reason: FinishReason
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    policy_version: int = 0

    @property
    def num_tokens(self) -> int:  # of prompt and canvas
        return len(self.prompt_ids) + len(self.canvas_ids)

    @property
    def response_ids(self) -> list[int]:
        return self.canvas_ids[: self.num_response_tokens]

    @property
    def tokens_per_forward(self) -> float:
        """Response tokens per forward pass (TPF)."""
        return self.num_response_tokens / max(1, self.num_forwards)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "trace") -> Trace:
        """Inverse of `to_dict`. Raises `UnmaskError` naming the field that is missing, unknown or inconsistent."""
        trace = _read(cls, data, where)
        for name in ("step_map", "logprobs", "confidences"):
            if (num := len(getattr(trace, name))) != len(trace.canvas_ids):
                raise UnmaskError(f"{where}: {name} has {num} entries for {len(trace.canvas_ids)} canvas tokens")
        if trace.num_response_tokens > len(trace.canvas_ids):
            raise UnmaskError(f"{where}: num_response_tokens {trace.num_response_tokens} is not within the canvas")
        return trace


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: str
    content: str


class Example(BaseModel):
    """One training or evaluation item in chat form.

    `messages` ends with the user's turn; `response` is the demonstration (SFT), `answer` the verifiable result (RL, eval).
    `trace`, where there is one, is how the response was decoded: its token ids are used instead of the texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    messages: tuple[Message, ...] = Field(strict=False, min_length=1)
    response: str | None = None
    answer: str | None = None
    trace: SkipValidation[Trace] | None = None


@dataclass(slots=True)
class TraceRecord:
    """A trace with what a reader wants to see beside it: one line of `traces.jsonl`.

    `prompt_pieces` and `canvas_pieces` are the tokens as text, one piece per id, so that the file can be shown
    without the tokenizer.
    """

    __pydantic_config__ = _CLOSED

    id: str
    trace: SkipValidation[Trace]  # checked by itself
    prompt_text: str = ""
    response_text: str = ""
    prompt_pieces: list[str] = field(default_factory=list)
    canvas_pieces: list[str] = field(default_factory=list)
    answer: str | None = None
    reward: Annotated[Number, Field(allow_inf_nan=False)] | None = None
    checkpoint: str = ""  # name and fingerprint of the model folder that decoded it

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "record") -> TraceRecord:
        """Inverse of `to_dict`; a bare trace object is accepted too. Raises `UnmaskError`."""
        if isinstance(data, dict) and "trace" not in data and "canvas_ids" in data:
            data = {"id": where, "trace": data}
        record = _read(cls, data, where)
        record.trace = Trace.from_dict(data["trace"], where)
        for name, ids in (("prompt_pieces", record.trace.prompt_ids), ("canvas_pieces", record.trace.canvas_ids)):
            pieces = getattr(record, name)
            if pieces and len(pieces) != len(ids):
                raise UnmaskError(f"{where}: {name} has {len(pieces)} entries for {len(ids)} tokens")
        return record


_ADAPTERS = {kind: TypeAdapter(kind) for kind in (Trace, TraceRecord)}


@dataclass(slots=True)
class Rollout:
    """One sampled response, its reward (0 to 1 for verifiable tasks; None = not scored) and the reason for it.

    pieces: response tokens as text, where the reward asked for them. token_rewards: process rewards, one per response token.
    advantage: of the whole response. token_advantages: float [canvas], of each token, instead.
    """

    trace: Trace
    text: str
    reward: float | None = None
    reward_reason: str = ""
    pieces: list[str] = field(default_factory=list)
    token_rewards: list[float] | None = None
    advantage: float = 0.0
    token_advantages: Any = None


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A tokenised example for SFT.

    `key` (its index in the source) and `epoch` name it in the random numbers: its masks are the same in any batch, on any
    rank and after resumption. `response_ids` ends with the turn's stop token. `trace`: how they were decoded, if recorded.
    """

    key: int
    epoch: int
    prompt_ids: list[int]
    response_ids: list[int]
    trace: Trace | None = None


@dataclass(slots=True)
class RolloutGroup:
    """All responses sampled for one example in one RL step (`group_size` of them)."""

    example: Example
    rollouts: list[Rollout]
