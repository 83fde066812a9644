"""The record of one decoded sequence, alone and as a line of a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.functional_validators import SkipValidation

from unmask.errors import UnmaskError
from unmask.types.html import record_html, trace_html

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

    def __repr__(self) -> str:
        """In one line: the thousands of numbers of a trace are not for reading."""
        return (
            f"<Trace: {len(self.prompt_ids)} prompt and {len(self.canvas_ids)} canvas tokens, response of "
            f"{self.num_response_tokens}, {self.num_forwards} forwards, {self.finish_reason}, seed {self.seed}>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the canvas, coloured by confidence, ids for tokens."""
        return trace_html(self)

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


@dataclass(slots=True)
class TraceRecord:
    """A trace with what a reader wants to see beside it: one line of `traces.jsonl`.

    `member` numbers several responses to one example. `prompt_pieces` and `canvas_pieces` are the tokens as text, one piece per
    id, so that the file can be shown without the tokenizer.
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
    reason: str = ""
    parts: dict[str, Number] = field(default_factory=dict)  # sub-scores of the reward
    member: Count = 0
    checkpoint: str = ""  # name and fingerprint of the model folder that decoded it

    def __repr__(self) -> str:
        reward = "" if self.reward is None else f", reward {self.reward:g}"
        return f"<TraceRecord {self.id!r}: {self.response_text[:60]!r}{reward}, {self.trace!r}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the prompt, and the canvas coloured by confidence."""
        return record_html(self)

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
