"""The requests and answers of the API: OpenAI's, and what a diffusion model has besides, in a field named `unmask`.

Fields that OpenAI knows and that are not supported may stand at the values that ask for nothing, since many programs send
them always. Fields that nobody knows are errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.functional_validators import field_validator, model_validator

from unmask.types import SamplingParams
from unmask.types.sampling import without_other_steps

# Sampling parameters that have a name of their own in OpenAI's requests.
RENAMED = ("temperature", "top_p", "max_new_tokens", "stop_strings", "seed")
_MAX_STOPS, _MAX_STOP_LENGTH = 16, 256
_MAX_FIELDS = 100
Nothing = Annotated[None, Field(description="not supported")]
Zero = Annotated[Literal[0] | None, Field(description="not supported but as 0")]
Place = Annotated[str, Field(min_length=1, max_length=4096)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]  # of a million errors the first one


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        """Not a hundred thousand errors about as many fields, which would take a second to say."""
        if isinstance(value, dict) and len(value) > _MAX_FIELDS:
            raise ValueError(f"{len(value)} fields; there are not as many")
        return value


def _extension() -> Any:
    """`SamplingParams` without those that have a name of OpenAI's; whatever joins them is here, too."""
    fields: dict[str, Any] = {
        name: (Any if info.annotation is None else info.annotation | None, Field(None, description=info.description))
        for name, info in SamplingParams.model_fields.items()
        if name not in RENAMED
    }
    fields["stop_token_ids"] = (
        Annotated[list[TokenId], Field(fail_fast=True)] | None,
        Field(None, description=fields["stop_token_ids"][1].description),
    )
    fields["stream_unmask"] = (bool, Field(False, description="a stream also has an event for every denoising step"))
    fields["return_trace"] = (bool, Field(False, description="answers come with their trace"))
    return create_model("Unmask", __base__=Model, __doc__="How the answer is decoded; see SamplingParams.", **fields)


if TYPE_CHECKING:

    class Unmask(Model):
        stream_unmask: bool
        return_trace: bool
else:
    Unmask = _extension()


class TextPart(Model):
    type: Literal["text"]
    text: str


class ChatMessage(Model):
    """A turn. What other servers' answers carry besides may be sent back as long as it says nothing."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    refusal: Nothing = None
    audio: Nothing = None
    function_call: Nothing = None
    tool_calls: Annotated[list[Any] | None, Field(max_length=0)] = None
    tool_call_id: str | None = None
    annotations: list[Any] | None = None
    reasoning_content: str | None = None
    metadata: dict[str, Any] | None = None  # notes of chat programs on their own turns
    options: list[Any] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(Model):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class Request(Model):
    """What both endpoints have."""

    model: str | None = Field(None, description="name of the model; may be left out")
    n: Annotated[int, Field(ge=1, le=1024)] | None = Field(None, description="answers, default 1; the i-th draws from seed + i")
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="texts that end the answer, which does not have them"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(None, description="left out: the server's, or another each time")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_unmask: bool | None = Field(None, description="the same as unmask.stream_unmask")
    unmask: Unmask | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Annotated[dict[str, Any] | None, Field(max_length=0)] = None

    @field_validator("frequency_penalty", "presence_penalty", mode="before")
    @classmethod
    def _zero_as_float(cls, value: Any) -> Any:
        return 0 if isinstance(value, float) and value == 0 else value

    @field_validator("stop")
    @classmethod
    def _sensible_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > _MAX_STOPS or any(not 0 < len(stop) <= _MAX_STOP_LENGTH for stop in stops):
            raise ValueError(f"should be at most {_MAX_STOPS} texts of 1 to {_MAX_STOP_LENGTH} characters")
        return value

    @model_validator(mode="after")
    def _stream_of_what_is_streamed(self) -> Request:
        if not self.stream and (self.wants_steps or self.stream_options is not None):
            raise ValueError(
                f"{'stream_unmask' if self.wants_steps else 'stream_options'} belongs to a stream: set stream to true"
            )
        return self

    @property
    def stops(self) -> tuple[str, ...] | None:
        return (self.stop,) if isinstance(self.stop, str) else None if self.stop is None else tuple(self.stop)

    @property
    def num_choices(self) -> int:
        """Answers in all."""
        return self.n or 1

    @property
    def wants_steps(self) -> bool:
        return bool(self.stream_unmask or (self.unmask and self.unmask.stream_unmask))

    @property
    def wants_trace(self) -> bool:
        return bool(self.unmask and self.unmask.return_trace)

    @property
    def wants_logprobs(self) -> bool:
        raise NotImplementedError

    def sampling(self, defaults: SamplingParams, seed: int) -> SamplingParams:
        """The sampling parameters of the first answer; what the request leaves out is as in `defaults`.

        Raises pydantic's `ValidationError` for values that do not go together.
        """
        given: dict[str, Any] = {} if self.unmask is None else self.unmask.model_dump(exclude={"stream_unmask", "return_trace"})
        given |= {"temperature": self.temperature, "top_p": self.top_p, "max_new_tokens": self.limit}
        given |= {"stop_strings": self.stops, "seed": seed}
        given = {key: value for key, value in given.items() if value is not None}
        return SamplingParams(**{**without_other_steps(defaults.model_dump(), given), **given})

    @property
    def limit(self) -> int | None:
        return self.max_tokens


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=2048, fail_fast=True)
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = Field(
        None, description="max_tokens, by its newer name"
    )
    logprobs: bool | None = Field(None, description="log-probabilities of the answer's tokens, as they were drawn")
    top_logprobs: Zero = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    tools: Annotated[list[Any] | None, Field(max_length=0)] = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Any] | None, Field(max_length=0)] = None
    modalities: list[Literal["text"]] | None = None
    audio: Nothing = None
    function_call: Literal["none", "auto"] | None = None
    prediction: Nothing = None
    reasoning_effort: Nothing = None
    verbosity: Nothing = None
    web_search_options: Nothing = None

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Request):
    """`POST /v1/completions`: text or token ids go to the model as they are, without a chat template."""

    prompt: Annotated[
        str
        | Annotated[list[str], Field(min_length=1, max_length=1024, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=1024, fail_fast=True)],
        Field(description="one text or list of token ids, or several"),
    ]
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = Field(
        None, description="0 = log-probabilities of the answer's tokens, as they were drawn; those of others are not kept"
    )
    echo: Literal[False] | None = None
    suffix: Nothing = None
    best_of: int | None = Field(None, ge=1, description="not supported but as n")

    @model_validator(mode="after")
    def _no_best_of(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported; leave it out, or give it the value of n")
        return self

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def num_choices(self) -> int:
        return (self.n or 1) * len(self.prompts)

    @property
    def prompts(self) -> list[str | list[int]]:
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


class ReloadRequest(Model):
    """`POST /admin/reload`."""

    path: Place | None = Field(None, description="model or run folder; default: that of the start, looked up anew")
    adapter: Place | None = Field(None, description="adapters to merge into it; default: none, or those of the start")
    policy_version: int | None = Field(None, ge=0, lt=2**63, description="stamped on traces; default: one more than before")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every error answers with."""

    error: ErrorDetail
