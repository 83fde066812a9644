"""The tables of recipes, typed and strict. Defaults are the vetted settings."""

from __future__ import annotations

from collections.abc import Sequence
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


class OptimizerConfig(Section):
    """AdamW (decoupled weight decay, Loshchilov & Hutter 2019); decay on matrices only."""

    lr: float = Field(1e-6, gt=0, description="peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean of gradients")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the mean of squared gradients")
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, on matrices only")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this L2 norm")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after warm-up, over max_steps")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    final_lr_ratio: float = Field(0.1, ge=0, le=1, description="share of lr at max_steps (linear, cosine)")


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
    keep_best: str = Field(
        "", description="name of an evaluation metric: the checkpoint with the best value stays, as RUN/best; empty = none"
    )


class LogConfig(Section):
    """Where metrics and timings go besides the run folder's JSON lines."""

    tensorboard: bool = Field(False, description="event files in RUN/tensorboard; needs the extra `tensorboard`")
    wandb_project: str = Field("", description="project at Weights & Biases; empty = off; needs the extra `wandb`")
    wandb_name: str = Field("", description="name of the run there; empty = the run folder's")


class SftTrainConfig(Section):
    max_steps: int = Field(1000, ge=1, description="optimizer steps")
    max_hours: float | None = Field(None, gt=0, description="after so long the run saves and ends, to be resumed; None = never")
    batch_size: int = Field(64, ge=1, description="examples per optimizer step")
    max_tokens_per_micro_batch: int = Field(16384, ge=1, description="tokens of one forward; does not change results")
    use_activation_checkpointing: bool = Field(
        False, description="layers are computed again in the backward pass: less memory, more time, the same results"
    )
    max_length: int | None = Field(None, ge=1, description="tokens of a demonstration with its prompt; None = as long as it is")
    when_longer: Literal["drop", "cut", "stop"] = Field(
        "drop", description="what becomes of longer ones: left out, cut at the end (without an end of turn), or the run ends"
    )
    num_bucket_steps: int = Field(
        0, ge=0, le=2**16, description="so many steps share their examples out by length, so that those of a step are similar; "
        "0 = off",
    )  # fmt: skip


class RlTrainConfig(Section):
    max_steps: int = Field(100, ge=1, description="RL steps (rollouts and update)")
    max_hours: float | None = Field(None, gt=0, description="after so long the run saves and ends, to be resumed; None = never")
    prompts_per_step: int = Field(128, ge=1, description="prompts rolled out in one RL step")
    group_size: int = Field(32, ge=2, description="responses per prompt")
    num_minibatches: int = Field(1, ge=1, description="optimizer steps per epoch over a step's rollouts")
    num_epochs: int = Field(1, ge=1, description="passes over the rollouts of one RL step")
    max_sampling_rounds: int = Field(
        1, ge=1, description="dynamic sampling: groups that are left out are replaced by others, rolled out in so many rounds"
    )
    min_accuracy: float = Field(0.0, ge=0, le=1, description="groups with a smaller share of right answers are left out")
    max_accuracy: float = Field(1.0, ge=0, le=1, description="groups with a larger share are left out")
    drops_cut_responses: bool = Field(
        False, description="responses cut at the length limit count in their group's mean and are not trained"
    )
    max_tokens_per_micro_batch: int = Field(16384, ge=1, description="tokens of one forward; does not change results")
    use_activation_checkpointing: bool = Field(
        False, description="layers are computed again in the backward pass: less memory, more time, the same results"
    )
    old_logprobs: Literal["auto", "rollout", "recompute"] = Field(
        "auto",
        description="auto = the sampler's own where replay is exact (float32, the sampler's views, no approximate cache), "
        "else recomputed",
    )

    @model_validator(mode="after")
    def _window(self) -> RlTrainConfig:
        if self.min_accuracy > self.max_accuracy:
            raise ValueError(f"min_accuracy {self.min_accuracy} is above max_accuracy {self.max_accuracy}")
        return self


class ValueConfig(Section):
    """The value model, a copy of the backbone with a scalar head (paper, section 4). Advantages are then over trace steps."""

    enabled: bool = Field(False, description="train one")
    path: str = Field("", description="checkpoint whose backbone it starts from; empty = the policy as the run begins")
    gamma: float = Field(1.0, ge=0, le=1, description="discount from one trace step to the next (also of process rewards)")
    lam: float = Field(1.0, ge=0, le=1, description="of generalised advantage estimation; 1 = return minus value")
    clip_eps: float = Field(0.2, gt=0, description="a value moves at most this far from the old one before the loss is flat")
    loss_normalization: Literal["token", "sequence"] = Field("token", description="what the value loss is a mean over")
    num_epochs: int = Field(1, ge=1, description="passes over the rollouts of one RL step")
    num_minibatches: int = Field(1, ge=1, description="optimizer steps per epoch")
    warmup_steps: int = Field(0, ge=0, description="RL steps in which the value model learns and the policy stays")
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=5e-6))


class ReferenceConfig(Section):
    """The frozen model of `objective.options.kl_to = "reference"`."""

    path: str = Field("", description="model folder, run folder or hub name; empty = the model the run began with")


class BlockStage(Section):
    """Block sizes from an RL step on: rollouts and training may differ (block growth; paper, section 5)."""

    from_step: int = Field(0, ge=0, description="first RL step of the stage, counted from 0")
    rollout_block_size: int = Field(ge=1, le=2**14, description="blocks of the rollouts")
    train_block_size: int = Field(ge=1, le=2**14, description="blocks of the trained views, and of the model from here on")


class SftBlockStage(Section):
    """The block size from a step on: a model that was autoregressive sees a little more at a time (block growth)."""

    from_step: int = Field(0, ge=0, description="first step of the stage, counted from 0")
    block_size: int = Field(ge=1, le=2**14, description="blocks that are trained, and the model's from here on; 1 = causal")


def check_stages(stages: Sequence[BlockStage | SftBlockStage], max_steps: int) -> None:
    """Raises `ValueError` unless they begin with the first step and follow each other within the run."""
    steps = [stage.from_step for stage in stages]
    if steps and (steps[0] != 0 or steps != sorted(set(steps))):
        raise ValueError(f"block_schedule: from_step should begin with 0 and ascend, found {steps}")
    if steps and steps[-1] >= max_steps:
        raise ValueError(f"block_schedule: from_step {steps[-1]} is not below train.max_steps {max_steps}")


class LoraConfig(Section):
    """Adapters that are trained instead of the weights (LoRA, Hu et al. 2021; needs the extra `lora`)."""

    rank: int = Field(0, ge=0, le=4096, description="0 = no adapters: all weights are trained")
    alpha: float = Field(32.0, gt=0, description="an adapter's product counts alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into adapters, in training")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), strict=False, min_length=1,
        description="linear layers that get one: names in all layers, or one layer's (layers.0.self_attn.q_proj)",
    )  # fmt: skip
    use_dora: bool = Field(False, description="DoRA: directions and lengths of the weights' columns apart")
    base_bits: Literal[4, 16] = Field(
        16, description="4 = the frozen weights in NF4, through bitsandbytes (a GPU, extra `quantize`); 16 = as they are"
    )

    @model_validator(mode="after")
    def _has_adapters(self) -> LoraConfig:
        if self.base_bits == 4 and not self.rank:
            raise ValueError("lora.base_bits 4 needs adapters: four bits cannot be trained; set lora.rank")
        if self.use_dora and not self.rank:
            raise ValueError("lora.use_dora is about adapters, and there are none; set lora.rank")
        if self.dropout and not self.rank:
            raise ValueError("lora.dropout is about adapters, and there are none; set lora.rank")
        return self
