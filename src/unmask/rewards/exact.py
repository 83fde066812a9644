"""Comparison with the example's answer as it is written, white space aside."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from unmask.rewards.answers import last_boxed
from unmask.rewards.interface import Reward, RewardOptions, Score, is_cut, require_answer, turn_text
from unmask.types import Example, Rollout


class Exact(Reward):
    """1 if what the response gives equals the example's answer, white space aside; else 0."""

    class Options(RewardOptions):
        compares: Literal["boxed", "whole"] = Field(
            "boxed", description="boxed = the last `\\boxed{...}` with balanced braces; whole = all of the response"
        )
        ignores_case: bool = Field(False, description="upper and lower case letters are the same")
        is_cut_wrong: bool = Field(True, description="a response cut at the length limit scores 0")
        wrong_reward: float = Field(0.0, ge=0, lt=1, description="for an answer that is given and wrong")

    def check(self, example: Example) -> None:
        require_answer(example)

    async def __call__(self, rollout: Rollout, example: Example) -> Score:
        if self.options.is_cut_wrong and is_cut(rollout):
            return Score(0.0, "cut at the length limit")
        given = last_boxed(turn_text(rollout, example)) if self.options.compares == "boxed" else rollout.text
        if given is None:
            return Score(0.0, "no boxed answer")
        words = self._words(given)
        if words and words == self._words(example.answer or ""):
            return Score(1.0, "right")
        shown = f"boxed {given}" if self.options.compares == "boxed" else f"response {given[:100]}"
        return Score(self.options.wrong_reward, f"{shown}, expected {example.answer}")

    def _words(self, text: str) -> list[str]:
        return (text.casefold() if self.options.ignores_case else text).split()
