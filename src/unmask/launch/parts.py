"""The parts of a run, from its recipe: trainers, critic, reference, evaluation."""

from __future__ import annotations

import copy
from typing import Any

import torch

from unmask.config import Plugin, RlRecipe, SftRecipe
from unmask.config.sections import EngineLimits
from unmask.config.training import LoraConfig, OptimizerConfig
from unmask.data.chat import ChatTokenizer
from unmask.diffusion.sequence import Decode
from unmask.dist import Ranks
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.launch.machine import find_model_folder, pick_precision, use_machine
from unmask.models import Decoder, ValueModel
from unmask.models.checkpoint import load_model
from unmask.models.decoder import Backbone
from unmask.models.lora import add_lora
from unmask.models.quantize import quantize_linears
from unmask.objectives import SftObjective, make_sft_objective
from unmask.rl.actor import ActorPlan
from unmask.rl.cluster import num_gpus
from unmask.rl.critic import Critic
from unmask.rl.fleet import Fleet
from unmask.train.techniques import apply_techniques, copy_to_decode
from unmask.train.trainer import Model, Trainer


def make_trainer(
    model: Model, recipe: SftRecipe | RlRecipe, optimizer: OptimizerConfig, num_steps: int, ranks: Ranks
) -> Trainer[Model]:
    """num_steps: optimizer steps of the whole run."""
    device = use_machine(recipe.run)
    return Trainer(
        model, optimizer, max_optimizer_steps=num_steps, max_tokens_per_micro_batch=recipe.train.max_tokens_per_micro_batch,
        attention_backend=recipe.run.attention_backend, precision=pick_precision(recipe.run.precision, device),
        use_activation_checkpointing=recipe.train.use_activation_checkpointing, use_compile=recipe.train.use_compile,
        shard_size=recipe.train.shard_size, device=device, ranks=ranks,
        max_nonfinite_updates=recipe.train.max_nonfinite_updates,
    )  # fmt: skip


def place_of_weights(recipe: SftRecipe | RlRecipe, ranks: Ranks) -> torch.device:
    """Where whole models are loaded: the device, or for those that it then gets a part of, the memory of the CPU."""
    return torch.device("cpu") if is_sharding(recipe, ranks) else use_machine(recipe.run)


def is_sharding(recipe: SftRecipe | RlRecipe, ranks: Ranks) -> bool:
    return (recipe.train.shard_size or ranks.size) > 1


def make_engine(recipe: SftRecipe | RlRecipe, model: Decoder, ranks: Ranks, decode: Decode) -> Engine | None:
    """Decodes with the model itself or, where that is about to be sharded or computes in bfloat16, with a whole copy on the
    device, which `Trainer.publish` brings the weights. None where nothing is decoded."""
    if isinstance(recipe, SftRecipe) and not (recipe.eval.every_steps and recipe.eval.num_examples):
        return None
    device = use_machine(recipe.run)
    precision = pick_precision(recipe.run.precision, device) if recipe.lora.base_bits == 16 else "float32"
    if precision == "bfloat16" or is_sharding(recipe, ranks):
        model = copy_to_decode(model, device, precision)
    return Engine(model, decode=decode, **limits_beside_training(recipe.engine, device))


def make_sft_stages(recipe: SftRecipe, model: Decoder) -> list[tuple[int, SftObjective]]:
    """First step and objective of each stage of the recipe's block_schedule; one, if it has none. Raises `UnmaskError`."""
    plugin, seed = recipe.objective, recipe.run.seed
    if not recipe.block_schedule:
        return [(0, make_sft_objective(plugin, model, seed))]
    if model.spec.attention != "block_causal":
        raise UnmaskError(f"block_schedule is for block models; {model.spec.family} has {model.spec.attention} attention")
    if plugin.name == "ar":
        raise UnmaskError("block_schedule: the objective ar has no blocks; use semi_ar, random_masking or trace")
    if plugin.options.get("block_size"):
        raise UnmaskError("objective.options.block_size and block_schedule both say with which blocks is trained; give one")
    stages = []
    for stage in recipe.block_schedule:
        options = {**plugin.options, "block_size": stage.block_size}
        stages.append((stage.from_step, make_sft_objective(Plugin(name=plugin.name, options=options), model, seed)))
    return stages


def add_adapters(model: Decoder, config: LoraConfig, base: str, *, is_sharding: bool = False) -> None:
    """Puts the recipe's adapters, if it has any, into the model. base: see `add_lora`. Raises `UnmaskError`."""
    if not config.rank:
        return
    if config.base_bits == 4:
        if is_sharding:
            raise UnmaskError("lora.base_bits 4: weights of four bits are whole on every rank; set train.shard_size to 1")
        quantize_linears(model)
    options = config.model_dump(exclude={"base_bits"})
    add_lora(model, **options, base=base)


def make_critic(recipe: RlRecipe, policy: Decoder, ranks: Ranks) -> Critic | None:
    """The value model and its trainer, as the run begins; None where the recipe has none. Raises `UnmaskError`."""
    config = recipe.value
    if not config.enabled:
        return None
    if config.path:
        model = load_model(find_model_folder(config.path), device=policy.device, head="value")
        check_reads_the_same(model, policy, f"value.path {config.path}")
    else:
        model = ValueModel.from_policy(policy)
    num_steps = recipe.train.max_steps * config.num_minibatches * config.num_epochs
    return Critic(model, make_trainer(model, recipe, config.optimizer, num_steps, ranks), config)


def make_reference(recipe: RlRecipe, policy: Decoder, ranks: Ranks) -> Decoder | None:
    """The frozen model that the KL is to, where the objective asks for one. Raises `UnmaskError`."""
    model = _find_reference(recipe, policy)
    if model is not None and is_sharding(recipe, ranks):
        device = use_machine(recipe.run)
        precision = pick_precision(recipe.run.precision, device)
        apply_techniques(model, shard_size=recipe.train.shard_size, ranks=ranks, device=device, precision=precision)
    return model


def _find_reference(recipe: RlRecipe, policy: Decoder) -> Decoder | None:
    if recipe.objective.options.get("kl_to") != "reference":
        if recipe.reference.path:
            raise UnmaskError("reference.path is given, but no KL is to it: set objective.options.kl_to to reference")
        return None
    if not recipe.reference.path:
        return copy.deepcopy(policy).requires_grad_(False)
    model = load_model(find_model_folder(recipe.reference.path), device=policy.device)
    check_reads_the_same(model, policy, f"reference.path {recipe.reference.path}")
    return model.requires_grad_(False)


def make_fleet(recipe: RlRecipe, trainer: Trainer[Decoder], tokenizer: ChatTokenizer) -> Fleet | None:
    """The rollout actors, not yet started; None where the recipe has none. Raises `UnmaskError`."""
    config, model = recipe.fleet, trainer.model
    if not config.num_actors:
        return None
    if recipe.lora.base_bits == 4:
        raise UnmaskError("lora.base_bits 4 is not for a fleet: weights of four bits are not sent; set fleet.num_actors to 0")
    share = num_gpus(config, model.device)
    plan = ActorPlan(
        model.spec, model.dtype, "cuda" if share else "cpu", trainer.precision, config.num_cpus_per_actor, share, recipe.lora,
        recipe.engine, tokenizer.decode if recipe.rollout.stop_strings else None,
    )  # fmt: skip
    return Fleet(config, model, plan, trainer.ranks)


def check_reads_the_same(model: Backbone, policy: Backbone, where: str) -> None:
    """Raises `UnmaskError` unless the policy's rows mean the same to the model: tokens, mask token, what sees what."""
    for name in ("vocab_size", "mask_token_id", "attention"):
        mine, wanted = getattr(model.spec, name), getattr(policy.spec, name)
        if mine != wanted:
            raise UnmaskError(f"{where}: has {name} {mine}, the policy {wanted}; it has to read the policy's rows")


def limits_beside_training(limits: EngineLimits, device: torch.device) -> dict[str, Any]:
    """The engine's limits as keywords. Gradients, optimizer state and activations need memory of the device, too."""
    values = limits.model_dump()
    if device.type == "cuda" and limits.kv_memory_gb is None and limits.num_pages is None:
        values["kv_memory_gb"] = 0.3 * torch.cuda.mem_get_info(device)[0] / 1e9
    return values
