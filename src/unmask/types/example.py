"""Examples, and what was sampled or demonstrated for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.functional_validators import SkipValidation, model_validator

from unmask.types.trace import Trace


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class CodeTests(BaseModel):
    """Unit tests of a program; field names as in the published datasets.

    `function`: each entry of `test_list` is Python code that asserts what the program's functions return; `prefix` is code that
    stands before the program (imports, helpers). `stdio`: the program reads `test_input[i]` and should write `test_output[i]`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    test_method: Literal["function", "stdio"]
    test_list: tuple[str, ...] = Field((), strict=False)
    prefix: str = ""
    test_input: tuple[str, ...] = Field((), strict=False)
    test_output: tuple[str, ...] = Field((), strict=False)
    test_time_limit: float | None = Field(None, gt=0, le=3600, description="seconds, of each test; None = the reward's")
    float_tolerance: float | None = Field(
        None, ge=0, lt=1, description="stdio: numbers may differ by so much, absolutely or relatively; None = as written"
    )

    @model_validator(mode="after")
    def _has_tests(self) -> CodeTests:
        if self.test_method == "function" and not (self.test_list and not self.test_input and not self.test_output):
            raise ValueError("tests of the method function should have test_list, and no test_input or test_output")
        if self.test_method == "stdio" and (self.test_list or self.prefix):
            raise ValueError("tests of the method stdio should have test_input and test_output, and no test_list or prefix")
        if self.test_method == "stdio" and not 0 < len(self.test_input) == len(self.test_output):
            num = f"{len(self.test_input)} and {len(self.test_output)}"
            raise ValueError(f"test_input and test_output should be equally many, at least one; found {num}")
        return self


class Example(BaseModel):
    """One training or evaluation item in chat form.

    `messages` ends with the user's turn. The assistant's turn is begun with `response_prefix`, which belongs to the prompt;
    `response` is the demonstration that follows (SFT), `answer` the verifiable result (RL, eval), `tests` those of a program.
    `step_map`: at which step each token of the demonstration is to be unmasked, with or without the end of the turn.
    `trace`, where there is one, is how the response was decoded: its token ids are used instead of the texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    messages: tuple[Message, ...] = Field(strict=False, min_length=1)
    response_prefix: str = ""
    response: str | None = None
    answer: str | None = None
    tests: CodeTests | None = None
    step_map: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None = Field(None, strict=False)
    trace: SkipValidation[Trace] | None = None


@dataclass(slots=True)
class Rollout:
    """One sampled response, its reward (1 = right, 0 = wrong; None = not scored) and the reason for it.

    reward_parts: its sub-scores by name. pieces: the share of each response token in the text, where the reward asked for
    them. token_rewards: process rewards, one per response token. advantage: of the whole response. token_advantages: float
    [canvas], of each token, instead. name: the example's id and the response's number in its group ("id#3"), for messages.
    """

    trace: Trace
    text: str
    reward: float | None = None
    reward_reason: str = ""
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=list)
    token_rewards: list[float] | None = None
    advantage: float = 0.0
    token_advantages: Any = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A tokenised example for SFT.

    `key` (a hash of the example's id) and `epoch` name it in the random numbers: its masks are the same in any batch, on any
    rank, after resumption, and whatever other examples there are. `response_ids` ends with the turn's stop token. `trace`: how
    they were decoded, if recorded. `step_map`: the order that was given for them, one step for each. `place`: so many
    demonstrations of the run come before it. `name`: the example's id, for messages.
    """

    key: int
    epoch: int
    prompt_ids: list[int]
    response_ids: list[int]
    trace: Trace | None = None
    step_map: list[int] | None = None
    place: int = 0
    name: str = ""


@dataclass(slots=True)
class RolloutGroup:
    """All responses sampled for one example in one RL step (`group_size` of them)."""

    example: Example
    rollouts: list[Rollout]
