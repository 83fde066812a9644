"""What the 200 answers look like, for the API's description: OpenAI's objects, with a field `unmask` of our own.

The answers are written by `answers` without these models; tests hold one against the other.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Usage(_Object):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    num_forwards: int = Field(description="forward passes that the answers took")
    tokens_per_forward: float


class Facts(_Object):
    """How an answer was decoded."""

    num_forwards: int
    tokens_per_forward: float
    seed: int
    policy_version: int
    checkpoint: str = Field(description="folder and fingerprint of the weights")
    trace: dict[str, Any] | None = Field(None, description="as a line of traces.jsonl; where return_trace was set")


class TokenLogprob(_Object):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[Any]


class ChatLogprobs(_Object):
    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(_Object):
    role: Literal["assistant"]
    content: str
    refusal: None


class _Choice(_Object):
    index: int
    finish_reason: Literal["stop", "length"]
    unmask: Facts


class ChatChoice(_Choice):
    message: AssistantMessage
    logprobs: ChatLogprobs | None


class CompletionLogprobs(_Object):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None
    text_offset: list[int]


class CompletionChoice(_Choice):
    text: str
    logprobs: CompletionLogprobs | None


class _Answer(_Object):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class ChatCompletion(_Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Completion(_Answer):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelFacts(_Object):
    checkpoint: str
    family: str
    attention: str
    block_size: int
    max_context: int


class ModelObject(_Object):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    unmask: ModelFacts


class ModelList(_Object):
    object: Literal["list"]
    data: list[ModelObject]


class Reloaded(_Object):
    model: str
    checkpoint: str
    policy_version: int


class Status(_Object):
    status: Literal["ok", "ready"]
