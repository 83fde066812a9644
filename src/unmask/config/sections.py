"""The tables that recipes have in common, typed and strict. Defaults are the vetted settings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unmask.types import SamplingParams


class Section(BaseModel):
    """A table of a recipe: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults_of_tables(cls, values: Any) -> Any:
        """A table that is given in part keeps the other defaults it has in this section (not those of its own type)."""
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        for name, info in cls.model_fields.items():
            default = info.get_default(call_default_factory=True, validated_data={})
            if isinstance(filled.get(name), dict) and isinstance(default, BaseModel):
                filled[name] = {**default.model_dump(), **filled[name]}
        return filled


class Plugin(Section):
    """A registered part and its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict, description="checked by the named part")


class MachineConfig(Section):
    """On what something is computed, and the seed of all its randomness."""

    seed: int = Field(0, ge=0, lt=2**31, description="all randomness of the run follows from it")
    device: str = Field("auto", description="auto = the GPU if there is one, else the CPU; or cpu, cuda, cuda:1, ...")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; auto = bfloat16 autocast on GPUs that have it, float32 on CPUs"
    )
    num_threads: int = Field(0, ge=0, le=1024, description="CPU threads of one operation; 0 = PyTorch's choice")


class RunConfig(MachineConfig):
    """A training run: where it is kept, and how it attends."""

    dir: str = Field("", description="run folder; empty = runs/<kind>-<time>")
    attention_backend: str = Field("auto", description="of updates; auto = flex on GPUs, tiled on CPUs")


class EngineLimits(Section):
    """How much the engine takes on at a time. Changes speed and memory, not results."""

    max_sequences: int = Field(256, ge=1, le=2**16, description="sequences decoded together")
    max_tokens_per_forward: int = Field(
        8192, ge=1, description="long prompts are prefilled in parts of what the decoding sequences leave of it"
    )
    kv_memory_gb: float | None = Field(
        None,
        gt=0,
        description="for keys and values; None = CPUs: 2, at most half of what is free; GPUs: 80 % of what is free "
        "(training: 30 %)",
    )
    num_pages: int | None = Field(None, ge=1, description="pages of keys and values; None = as many as kv_memory_gb holds")
    page_size: int | None = Field(None, ge=1, le=2**16, description="tokens of a page; None = CPUs: 16, GPUs: 128")
    attention_backend: str = Field("auto", description="auto = flex on GPUs where it can, else dense; both are exact")
    use_cuda_graphs: bool = Field(False, description="GPUs: launches of decoding forwards are recorded and replayed")
    use_prefix_cache: bool = Field(True, description="equal beginnings of prompts share keys and values")


class ModelConfig(Section):
    """A checkpoint (folder or hub name) or a randomly initialised preset; exactly one."""

    path: str = Field("", description="model folder, run folder (its newest checkpoint) or hub name owner/name")
    revision: str = Field("", description="branch, tag or commit on the hub; empty = the default branch")
    preset: str = Field("", description='"family/size", for example "sdar/tiny": random weights')
    tokenizer: str = Field(
        "", description="folder or hub name of a preset's tokenizer; empty = the tokens of the source's own vocabulary"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelConfig:
        if bool(self.path) == bool(self.preset):
            raise ValueError("give exactly one of model.path and model.preset")
        if self.path and self.tokenizer:
            raise ValueError("model.tokenizer is for presets; the model of model.path has one")
        return self


class EvalConfig(Section):
    """Evaluation during training, always on the same examples with the same seeds."""

    every_steps: int = Field(0, ge=0, description="0 = never")
    at_start: bool = Field(False, description="also before the first step")
    num_examples: int = Field(128, ge=1, description="examples measured each time")
    first_example: int = Field(0, ge=0, description="index in the held-out split where they start")
    source: Plugin | None = Field(None, description="None = the training source's held-out split")
    sampling: SamplingParams = Field(default_factory=SamplingParams)


class SftEvalConfig(EvalConfig):
    """Evaluation during SFT: responses are decoded, and the loss of held-out demonstrations is measured."""

    num_examples: int = Field(128, ge=0, description="examples decoded each time; 0 = none")
    num_loss_examples: int = Field(0, ge=0, description="held-out demonstrations whose loss is measured each time; 0 = none")
    loss_rates: tuple[float, ...] = Field(
        (0.1, 0.3, 0.5, 0.7, 0.9), strict=False, description="masking rates at which it is, where the objective draws masks"
    )

    @model_validator(mode="after")
    def _measures_something(self) -> SftEvalConfig:
        if self.every_steps and not self.num_examples and not self.num_loss_examples:
            raise ValueError("eval.every_steps is set, but both num_examples and num_loss_examples are 0")
        if not self.loss_rates or any(not 0 < rate <= 1 for rate in self.loss_rates):
            raise ValueError(f"loss_rates should be above 0 and at most 1, at least one; found {list(self.loss_rates)}")
        return self


class StopConfig(Section):
    """A stage ends when a measured value is good enough; `train.max_steps` is only the limit of its patience."""

    metric: str = Field("", description="name of an evaluation metric, for example accuracy, or loss; empty = run to max_steps")
    at_least: float | None = Field(None, description="the run ends when the metric is this large (a loss: this small)")
    patience: int = Field(
        0, ge=0, description="the run ends after so many evaluations in a row that were no better than the best one; 0 = never"
    )
    min_steps: int = Field(0, ge=0, description="not before this many steps")

    @model_validator(mode="after")
    def _knows_when(self) -> StopConfig:
        if self.metric and self.at_least is None and not self.patience:
            raise ValueError(f"stop.metric is {self.metric}, but neither stop.at_least nor stop.patience says when to stop")
        return self


class CheckpointConfig(Section):
    every_steps: int = Field(50, ge=0, description="0 = only at the end")
    keep_last: int = Field(2, ge=1, description="older checkpoints are removed")
    is_asynchronous: bool = Field(True, description="written beside the training, from a copy; false = the run waits for it")
    keep_best: str = Field(
        "", description="name of an evaluation metric: the checkpoint with the best value stays, as RUN/best; empty = none"
    )


class LogConfig(Section):
    """Where metrics and timings go besides the run folder's JSON lines."""

    tensorboard: bool = Field(False, description="event files in RUN/tensorboard; needs the extra `tensorboard`")
    wandb_project: str = Field("", description="project at Weights & Biases; empty = off; needs the extra `wandb`")
    wandb_name: str = Field("", description="name of the run there; empty = the run folder's")
