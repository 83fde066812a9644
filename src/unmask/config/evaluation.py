"""The recipes of `unmask eval` (what to decode, in which ways, how to score it) and of `unmask generate`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from unmask.config.sections import EngineLimits, MachineConfig, Plugin, Section
from unmask.types import SamplingParams

# The two ways of decoding the field reports; a recipe may add others under [modes.NAME].
DEFAULT_MODES: dict[str, dict[str, Any]] = {
    "static": {"remasking_strategy": "low_confidence_static", "temperature": 0.0},
    "dynamic": {"remasking_strategy": "low_confidence_dynamic", "confidence_threshold": 0.9, "temperature": 1.0},
}


class GenerateRecipe(SamplingParams):
    """`unmask generate`: sampling parameters; the engine's limits and a reward as tables."""

    engine: EngineLimits = Field(default_factory=EngineLimits)
    reward: Plugin | None = Field(None, description="scores the answers, by what is in their rows; None = nothing does")


class EvalTask(Section):
    """One of several things to measure."""

    source: Plugin
    reward: Plugin | None = Field(None, description="None = that of the source, where it has one, else the recipe's")
    num_examples: int | None = Field(None, ge=1, description="examples measured in each mode; None = the whole split")
    first_example: int = Field(0, ge=0, description="index in the split where they start")


class EvalRecipe(Section):
    """`unmask eval`. Modes start from `static` (greedy, one token a step) and `dynamic` (temperature 1, threshold 0.9)."""

    run: MachineConfig = Field(default_factory=MachineConfig)
    source: Plugin | None = Field(None, description="what to measure where there are no tasks; default: the run's own")
    reward: Plugin = Field(default_factory=lambda: Plugin(name="exact"))
    tasks: dict[str, EvalTask] = Field(
        default_factory=dict, description="what to measure, by name, each with a `source` and a `reward`, instead of `source`"
    )
    engine: EngineLimits = Field(default_factory=EngineLimits)
    num_responses: int = Field(1, ge=1, le=10_000, description="responses to each example (k), in each mode")
    num_examples: int = Field(512, ge=1, description="examples of `source` measured in each mode")
    first_example: int = Field(0, ge=0, description="index in the split where they start")
    split: Literal["held_out", "train"] = Field(
        "held_out", description="train = the training examples, to record traces of; their accuracy is no measure"
    )
    modes: dict[str, SamplingParams] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _something_to_measure(self) -> EvalRecipe:
        if not self.tasks and self.source is None:
            raise ValueError("there is nothing to measure: name tasks (--tasks) or a source (source.name)")
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill_modes(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("modes", {}), dict):
            return values
        given = values.get("modes", {})
        if not all(isinstance(mode, dict) for mode in given.values()):
            return values
        modes = {name: {**defaults, **given.get(name, {})} for name, defaults in DEFAULT_MODES.items()}
        return {**values, "modes": {**given, **modes}}
