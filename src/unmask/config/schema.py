"""Recipes: everything a run needs, typed and strict. Defaults are the vetted settings.

Parts that can be extended (source, objective, reward) are a `name` from a registry and `options` that the named part
checks itself, so that adding one touches no file here.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from unmask.config.sections import (
    CheckpointConfig,
    EngineLimits,
    EvalConfig,
    LogConfig,
    ModelConfig,
    Plugin,
    RunConfig,
    Section,
    SftEvalConfig,
    StopConfig,
)
from unmask.config.training import (
    BlockStage,
    FleetConfig,
    LoraConfig,
    OptimizerConfig,
    ReferenceConfig,
    RlTrainConfig,
    SftBlockStage,
    SftTrainConfig,
    ValueConfig,
    check_stages,
)
from unmask.types import SamplingParams


class SftRecipe(Section):
    """`unmask sft`."""

    run: RunConfig = Field(default_factory=RunConfig)
    model: ModelConfig
    lora: LoraConfig = Field(default_factory=LoraConfig)
    source: Plugin
    objective: Plugin = Field(default_factory=lambda: Plugin(name="semi_ar"))
    block_schedule: tuple[SftBlockStage, ...] = Field((), strict=False, description="block growth; empty = as objective says")
    engine: EngineLimits = Field(default_factory=EngineLimits, description="decodes the evaluation")
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=1e-5))
    train: SftTrainConfig = Field(default_factory=SftTrainConfig)
    eval: SftEvalConfig = Field(default_factory=SftEvalConfig)
    reward: Plugin = Field(default_factory=lambda: Plugin(name="exact"), description="scores the evaluation")
    stop: StopConfig = Field(default_factory=StopConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log: LogConfig = Field(default_factory=LogConfig)

    @model_validator(mode="after")
    def _block_stages_ascend(self) -> SftRecipe:
        check_stages(self.block_schedule, self.train.max_steps)
        return self


class RlRecipe(Section):
    """`unmask rl`. Defaults are the paper's for SDAR (arXiv 2509.06949, section 5)."""

    run: RunConfig = Field(default_factory=RunConfig)
    model: ModelConfig
    lora: LoraConfig = Field(default_factory=LoraConfig)
    source: Plugin
    reward: Plugin = Field(default_factory=lambda: Plugin(name="exact"))
    rollout: SamplingParams = Field(default_factory=SamplingParams)
    engine: EngineLimits = Field(default_factory=EngineLimits)
    fleet: FleetConfig = Field(default_factory=FleetConfig)
    advantage: str = Field(
        "group_zscore", description="group_zscore, group_mean_centred, leave_one_out, batch_zscore or none (the reward itself)"
    )
    objective: Plugin = Field(default_factory=lambda: Plugin(name="trace_rl"))
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    value: ValueConfig = Field(default_factory=ValueConfig)
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    block_schedule: tuple[BlockStage, ...] = Field(
        (), strict=False, description="block growth; empty = as rollout and objective say"
    )
    train: RlTrainConfig = Field(default_factory=RlTrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    stop: StopConfig = Field(default_factory=StopConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log: LogConfig = Field(default_factory=LogConfig)

    @model_validator(mode="after")
    def _rollouts_can_be_trained_on(self) -> RlRecipe:
        if self.rollout.temperature == 0 or self.rollout.top_k == 1:
            raise ValueError("rollout: greedy decoding gives identical responses and no advantage; use temperature above 0")
        if self.rollout.top_k or self.rollout.top_p < 1:
            raise ValueError("rollout: top_k and top_p are not for RL: after an update the drawn tokens may be filtered out")
        if self.rollout.min_tokens:
            raise ValueError("rollout: min_tokens is not for RL: the trainer's distribution has the stop tokens in it")
        return self

    @model_validator(mode="after")
    def _block_stages_ascend(self) -> RlRecipe:
        check_stages(self.block_schedule, self.train.max_steps)
        return self

    @model_validator(mode="after")
    def _policy_is_trained(self) -> RlRecipe:
        steps = self.train.max_steps
        if self.value.enabled and self.value.warmup_steps >= steps:
            raise ValueError(f"value.warmup_steps {self.value.warmup_steps} leaves nothing of train.max_steps {steps}")
        if self.value.path and not self.value.enabled:
            raise ValueError("value.path is given, but there is no value model: set value.enabled to true")
        return self
