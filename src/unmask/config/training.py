"""The tables of recipes that say how is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from unmask.config.sections import Section


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


class TrainConfig(Section):
    """What both kinds of training have."""

    max_hours: float | None = Field(None, gt=0, description="after so long the run saves and ends, to be resumed; None = never")
    max_tokens_per_micro_batch: int = Field(16384, ge=1, description="tokens of one forward; does not change results")
    max_nonfinite_updates: int = Field(
        3, ge=0, description="updates in a row that may be skipped because their loss or gradient is not finite; one more ends "
        "the run, and the samples at fault are named",
    )  # fmt: skip
    use_activation_checkpointing: bool = Field(
        False, description="layers are computed again in the backward pass: less memory, more time, the same results"
    )
    use_compile: bool = Field(False, description="layers of updates are compiled (torch.compile); the first steps take longer")
    shard_size: int = Field(
        1, ge=0, description="so many ranks hold one copy of weights, gradients and optimizer between them (FSDP2); 1 = each "
        "has its own, 0 = all together, else several copies (HSDP)",
    )  # fmt: skip
    profile_steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), strict=False, description="steps of which every rank writes a Chrome trace, counted from 1 as metrics have them"
    )


class SftTrainConfig(TrainConfig):
    max_steps: int = Field(1000, ge=1, description="optimizer steps")
    batch_size: int = Field(64, ge=1, description="examples per optimizer step")
    max_length: int | None = Field(None, ge=1, description="tokens of a demonstration with its prompt; None = as long as it is")
    when_longer: Literal["drop", "cut", "stop"] = Field(
        "drop", description="what becomes of longer ones: left out, cut at the end (without an end of turn), or the run ends"
    )
    num_bucket_steps: int = Field(
        0, ge=0, le=2**16, description="so many steps share their examples out by length, so that those of a step are similar; "
        "0 = off",
    )  # fmt: skip


class RlTrainConfig(TrainConfig):
    max_steps: int = Field(100, ge=1, description="RL steps (rollouts and update)")
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


class FleetConfig(Section):
    """Rollouts by actors, processes of their own on this machine or others (extra `ray`)."""

    num_actors: int = Field(0, ge=0, le=4096, description="actors that decode; 0 = the training processes do it themselves")
    num_gpus_per_actor: float | None = Field(
        None, ge=0, description="a part of one (0.5) = shared, 0 = CPUs; None = 1 where the training is on a GPU, else 0"
    )
    num_cpus_per_actor: int = Field(1, ge=1, le=1024, description="CPU threads of an actor")
    address: str = Field(
        "", description="auto, or HOST:PORT of the head of a running Ray cluster; empty = one of the run's own, on this machine"
    )
    max_staleness: Literal[0, 1] = Field(
        0, description="1 = while a step is trained, the next one is decoded with the weights before it; 0 = in turns"
    )
    responses_per_task: int = Field(
        0, ge=0, description="responses that an actor decodes together and by themselves; 0 = a step makes two tasks per actor"
    )
    weight_transfer: Literal["auto", "collective", "object_store"] = Field(
        "auto",
        description="to actors: by NCCL or gloo, or through Ray's object store; auto = NCCL between GPUs, else the store",
    )
    chunk_mb: int = Field(256, ge=1, description="weights travel in chunks of so many 10^6 bytes")
    timeout_s: float = Field(
        600.0, gt=0, description="an actor with work and without news for so long is replaced; without any actor, the run ends"
    )

    @model_validator(mode="after")
    def _has_actors(self) -> FleetConfig:
        if self.max_staleness and not self.num_actors:
            raise ValueError("fleet.max_staleness is about actors, and there are none; set fleet.num_actors")
        return self


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
