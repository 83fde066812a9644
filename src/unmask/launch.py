"""From a recipe to a running loop: the one place where models, sources, objectives, rewards and runs are put together."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unmask.attention import get_backend
from unmask.config import Plugin, RlRecipe, RunConfig, SftRecipe, fill_plugins
from unmask.config.schema import EngineLimits, MachineConfig, ModelConfig, OptimizerConfig
from unmask.data.chat import MASK, ChatTokenizer
from unmask.data.sources import SOURCES, Source, open_source
from unmask.data.traces import TraceSource
from unmask.diffusion.remasking import get_strategy
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.evaluate import METRICS, evaluate, take_examples
from unmask.files import read_json, write_text
from unmask.models import Decoder, ValueModel
from unmask.models.checkpoint import load_model, new_model
from unmask.models.decoder import Backbone
from unmask.models.hub import resolve_folder
from unmask.objectives import (
    RL_OBJECTIVES,
    SFT_OBJECTIVES,
    make_sft_objective,
)
from unmask.objectives.advantages import get_advantage
from unmask.rewards import REWARDS
from unmask.rl.critic import Critic
from unmask.rl.loop import train_rl
from unmask.rl.scoring import RewardPool
from unmask.rl.stages import make_stages
from unmask.train.checkpoint import newest_valid, seed_rng
from unmask.train.run import Outcome, Run
from unmask.train.sft import demonstration, train_sft
from unmask.train.sinks import check_packages
from unmask.train.trainer import Model, Trainer

ORIGINS = "origins.json"  # in a run folder: the folders that the models' paths meant when it began


def resolve(recipe: SftRecipe | RlRecipe) -> SftRecipe | RlRecipe:
    """The recipe with the options of its named parts filled in, all names checked. Raises `UnmaskError`."""
    registry = SFT_OBJECTIVES if isinstance(recipe, SftRecipe) else RL_OBJECTIVES
    recipe = fill_plugins(recipe, {"source": SOURCES, "objective": registry, "reward": REWARDS})
    get_strategy(recipe.eval.sampling.remasking_strategy)
    if isinstance(recipe, RlRecipe):
        get_strategy(recipe.rollout.remasking_strategy)
        get_advantage(recipe.advantage)
    get_backend(recipe.run.attention_backend, torch.device("cpu"))
    if recipe.stop.metric and recipe.stop.metric not in METRICS:
        raise UnmaskError(f"stop.metric {recipe.stop.metric!r} is not measured; known: {', '.join(METRICS)}")
    if recipe.stop.metric and not recipe.eval.every_steps:
        raise UnmaskError("stop.metric needs eval.every_steps above 0: what is not measured stops nothing")
    return recipe


def pick_device(name: str) -> torch.device:
    """The device of that name; for "auto" the first GPU, else the CPU. Raises `UnmaskError` when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not a CPU or CUDA device")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UnmaskError(f"device {name!r} cannot be used: {reason}; use cpu, or auto") from None
    return device


def use_machine(config: MachineConfig) -> torch.device:
    """Applies the process-wide settings and returns the device. Raises `UnmaskError`."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    return pick_device(config.device)


def pick_precision(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def find_model_folder(path: str, revision: str = "", *, weights: bool = True) -> Path:
    """A model folder or hub name; for a run folder, its newest valid checkpoint. Raises `UnmaskError`.

    weights: False fetches only the JSON files of a hub name.
    """
    if (Path(path) / "checkpoints").is_dir():
        checkpoint, _ = newest_valid(Path(path) / "checkpoints")
        if checkpoint is None:
            raise UnmaskError(f"{path}: this run has no valid checkpoint yet")
        return checkpoint
    return resolve_folder(path, revision or None, weights=weights)


def pin_folders(recipe: SftRecipe | RlRecipe, folder: Path, resume: bool) -> tuple[SftRecipe | RlRecipe, dict[str, str]]:
    """The recipe with the folders that its models' paths mean now, and these folders by section. A resumed run keeps those
    that it began with: the newest checkpoint of a run, or a branch on the hub, may be another one by then.
    """
    file = folder / ORIGINS
    origins: dict[str, str] = read_json(file) if resume and file.is_file() else {}
    pinned = {}
    for name in ("model", "value", "reference"):
        section = getattr(recipe, name, None)
        if section is None or not section.path:
            continue
        if name not in origins:
            origins[name] = str(find_model_folder(section.path, getattr(section, "revision", "")).resolve())
        elif not Path(origins[name]).is_dir():
            raise UnmaskError(f"{file}: {name} was {origins[name]}, which is gone; put it back, or name a copy of it there")
        pinned[name] = section.model_copy(update={"path": origins[name], **({"revision": ""} if name == "model" else {})})
    return recipe.model_copy(update=pinned), origins


def open_model(config: ModelConfig, source: Plugin, run: RunConfig, scratch: Path) -> tuple[Decoder, ChatTokenizer, Path]:
    """The model to train, its tokenizer, and a folder with the tokenizer's files (`scratch` for a preset)."""
    device = use_machine(run)
    if config.path:
        folder = find_model_folder(config.path, config.revision)
        return load_model(folder, device=device), ChatTokenizer.load(folder), folder
    vocabulary = open_source(source, "train", run.seed).vocabulary
    if vocabulary is None:
        raise UnmaskError(f"model.preset needs a source with a vocabulary of its own; {source.name} has none: use model.path")
    tokenizer = ChatTokenizer.tiny(vocabulary)
    tokenizer.save(scratch)
    ids = tokenizer.tokenizer
    model = new_model(
        config.preset, run.seed, device=device, vocab_size=len(ids), eos_token_id=[tokenizer.turn_end_id],
        pad_token_id=ids.pad_token_id, mask_token_id=ids.convert_tokens_to_ids(MASK),
    )  # fmt: skip
    return model, tokenizer, scratch


def start(recipe: SftRecipe | RlRecipe, *, resume: bool = False, title: str = "") -> Outcome:
    """Runs a recipe to its end (or its interruption). Raises `UnmaskError` before anything is computed for bad input."""
    recipe = resolve(recipe)
    check_packages(recipe.log)
    kind = "sft" if isinstance(recipe, SftRecipe) else "rl"
    folder = Path(recipe.run.dir or f"runs/{kind}-{time.strftime('%Y%m%d-%H%M%S')}")
    seed = recipe.run.seed
    seed_rng(seed)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        pinned, origins = pin_folders(recipe, folder, resume)
        model, tokenizer, tokenizer_from = open_model(pinned.model, recipe.source, recipe.run, Path(scratch))
        source = open_source(recipe.source, "train", seed)
        steps = recipe.train.max_steps
        if isinstance(recipe, RlRecipe):
            steps -= recipe.value.warmup_steps if recipe.value.enabled else 0
            steps *= recipe.train.num_minibatches * recipe.train.num_epochs
        trainer = make_trainer(model, recipe, recipe.optimizer, steps)
        engine = Engine(model, decode=tokenizer.decode, **limits_beside_training(recipe.engine, model.device))
        rewards = RewardPool(recipe.reward)
        evaluator = make_evaluator(recipe, trainer, engine, tokenizer, rewards)
        title = title or kind
        # What is wrong with the data or the parts is found before there is a run folder.
        if isinstance(recipe, SftRecipe):
            if isinstance(source, TraceSource):
                source.check_model(model.spec, recipe.objective.options.get("block_size"))
            objective = make_sft_objective(recipe.objective, model, seed)
            check_demonstrations(source)
            objective.rows([demonstration(source, tokenizer, 0, 0)])
            if recipe.eval.every_steps:
                stack.enter_context(rewards)
            run = Run(folder, recipe, trainer, tokenizer_from, evaluator, resume=resume, title=title)
            write_text(folder / ORIGINS, json.dumps(origins, indent=2) + "\n")
            return train_sft(recipe, run, source, tokenizer, objective)
        assert isinstance(pinned, RlRecipe)
        first, *_ = examples = take_examples(source, num_to_check(source))
        rewards.check(examples)
        stages = make_stages(recipe, model)
        for stage in stages:
            engine.check(tokenizer.prompt_ids(first), stage.params, name="rollout")
        critic, reference = make_critic(pinned, model), make_reference(pinned, model)
        stack.enter_context(rewards)
        run = Run(
            folder, recipe, trainer, tokenizer_from, evaluator, resume=resume, title=title,
            value_trainer=critic.trainer if critic else None,
        )  # fmt: skip
        write_text(folder / ORIGINS, json.dumps(origins, indent=2) + "\n")
        return train_rl(recipe, run, engine, source, tokenizer, stages, rewards, critic, reference)


def num_to_check(source: Source) -> int:
    """How many examples are looked at before a run begins: all of a file, some where they are made up as they are asked for."""
    return len(source) if source.vocabulary is None else min(16, len(source))


def check_demonstrations(source: Source) -> None:
    """Raises `UnmaskError` for an example that is none for supervised fine-tuning."""
    for example in map(source.__getitem__, range(num_to_check(source))):
        if example.response is None and example.trace is None:
            raise UnmaskError(f"example {example.id}: has no response; supervised fine-tuning needs demonstrations")


def make_trainer(model: Model, recipe: SftRecipe | RlRecipe, optimizer: OptimizerConfig, num_steps: int) -> Trainer[Model]:
    """num_steps: optimizer steps of the whole run."""
    return Trainer(
        model, optimizer, max_optimizer_steps=num_steps, max_tokens_per_micro_batch=recipe.train.max_tokens_per_micro_batch,
        attention_backend=recipe.run.attention_backend, precision=pick_precision(recipe.run.precision, model.device),
    )  # fmt: skip


def make_critic(recipe: RlRecipe, policy: Decoder) -> Critic | None:
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
    return Critic(model, make_trainer(model, recipe, config.optimizer, num_steps), config)


def make_reference(recipe: RlRecipe, policy: Decoder) -> Decoder | None:
    """The frozen model that the KL is to, where the objective asks for one. Raises `UnmaskError`."""
    if recipe.objective.options.get("kl_to") != "reference":
        if recipe.reference.path:
            raise UnmaskError("reference.path is given, but no KL is to it: set objective.options.kl_to to reference")
        return None
    if not recipe.reference.path:
        return copy.deepcopy(policy).requires_grad_(False)
    model = load_model(find_model_folder(recipe.reference.path), device=policy.device)
    check_reads_the_same(model, policy, f"reference.path {recipe.reference.path}")
    return model.requires_grad_(False)


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


def make_evaluator(
    recipe: SftRecipe | RlRecipe, trainer: Trainer, engine: Engine, tokenizer: ChatTokenizer, rewards: RewardPool
) -> Callable[[], dict[str, float]]:
    """Measures the trainer's model on the recipe's held-out examples: always the same ones, with the same seeds."""
    config = recipe.eval
    source = config.source or recipe.source
    examples = []
    if config.every_steps:
        held_out = open_source(source, "held_out", recipe.run.seed)
        examples = take_examples(held_out, config.num_examples, config.first_example)
        rewards.check(examples)
        engine.check(tokenizer.prompt_ids(examples[0]), config.sampling, name="eval.sampling")

    def measure() -> dict[str, float]:
        engine.update_weights(policy_version=trainer.optimizer_step)
        with trainer.autocast():
            result = evaluate(engine, tokenizer, examples, config.sampling, rewards)
        return result.metrics()

    return measure


__all__ = ["find_model_folder", "open_model", "pick_device", "pick_precision", "resolve", "start", "use_machine"]
