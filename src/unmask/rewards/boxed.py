"""Exact comparison of the last `\\boxed{...}` with the example's answer."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from unmask.types import Example, Rollout


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` with balanced braces; None if there is none."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth, begin = 0, start + len("\\boxed{")
        for i in range(begin - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[begin:i]
        start = text.rfind("\\boxed{", 0, start)
    return None


class Boxed:
    """1 if the last boxed answer equals the example's, white space aside; else 0."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        is_cut_wrong: bool = Field(True, description="a response cut at the length limit scores 0")
        wrong_reward: float = Field(0.0, ge=0, lt=1, description="for a boxed answer that is wrong")

    def __init__(self, options: Options):
        self.options = options

    def __call__(self, rollout: Rollout, example: Example) -> tuple[float, str]:
        if self.options.is_cut_wrong and rollout.trace.finish_reason == "length":
            return 0.0, "cut at the length limit"
        extracted = last_boxed(rollout.text)
        if extracted is None:
            return 0.0, "no boxed answer"
        is_right = bool(extracted.split()) and extracted.split() == (example.answer or "").split()
        return (1.0, "right") if is_right else (self.options.wrong_reward, f"boxed {extracted}, expected {example.answer}")
