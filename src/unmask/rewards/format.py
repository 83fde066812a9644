"""Whether the whole response has a form: a regular expression, a thinking section, a boxed answer."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from unmask.rewards.answers import last_boxed
from unmask.rewards.interface import Reward, RewardOptions, Score, turn_text
from unmask.types import Example, Rollout

_THINK = re.compile(r"\s*<think>((?:(?!</?think>).)*)</think>((?:(?!</?think>).)*)", re.DOTALL)


class Format(Reward):
    """1 if the response has every form that is asked for, else 0; the prefix that the prompt begins it with is part of it."""

    class Options(RewardOptions):
        pattern: str = Field(
            "", description="regular expression that the whole response must match (`.` matches line ends, too); empty = none"
        )
        needs_think: bool = Field(
            False, description="one section between think tags, at the beginning; neither it nor what follows is empty"
        )
        needs_boxed: bool = Field(False, description="a `\\boxed{...}` that is not empty, behind the thinking section")

        @field_validator("pattern")
        @classmethod
        def _compiles(cls, pattern: str) -> str:
            try:
                re.compile(pattern, re.DOTALL)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
            return pattern

        @model_validator(mode="after")
        def _asks_for_something(self) -> Format.Options:
            if not (self.pattern or self.needs_think or self.needs_boxed):
                raise ValueError("give at least one of pattern, needs_think and needs_boxed")
            return self

    async def __call__(self, rollout: Rollout, example: Example) -> Score:
        text = turn_text(rollout, example)
        if self.options.pattern and not re.fullmatch(self.options.pattern, text, re.DOTALL):
            return Score(0.0, "does not match the pattern")
        if self.options.needs_think:
            sections = _THINK.fullmatch(text)
            if sections is None or not all(map(str.strip, sections.groups())):
                return Score(0.0, "no thinking section followed by an answer")
        if self.options.needs_boxed and not (last_boxed(text.rpartition("</think>")[2]) or "").strip():
            return Score(0.0, "no boxed answer")
        return Score(1.0, "has the form")
