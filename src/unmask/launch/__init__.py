"""From a recipe to a running loop: the one place where models, sources, objectives, rewards and runs are put together."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from unmask.attention import get_backend
from unmask.config import Plugin, RlRecipe, RunConfig, SftRecipe, fill_plugins
from unmask.config.sections import ModelConfig
from unmask.config.training import SftTrainConfig
from unmask.data.chat import ChatTokenizer
from unmask.data.row_source import RowSource
from unmask.data.sources import SOURCES, Source, open_source
from unmask.data.traces import TraceSource
from unmask.diffusion.remasking import get_strategy
from unmask.dist import joined_ranks, launcher
from unmask.errors import UnmaskError
from unmask.launch.machine import find_model_folder, pick_device, pick_precision, use_machine
from unmask.launch.measures import joined, make_evaluator, make_loss_meter, measured_metrics
from unmask.launch.origins import adapter_base, is_begun_by, keep_beginning, pin_data, pin_folders
from unmask.launch.parts import (
    add_adapters,
    is_sharding,
    make_critic,
    make_engine,
    make_fleet,
    make_reference,
    make_sft_stages,
    make_trainer,
    place_of_weights,
)
from unmask.models import Decoder, find_family, preset_config
from unmask.models.checkpoint import load_model, new_model
from unmask.models.hub import resolve_folder
from unmask.objectives import RL_OBJECTIVES, SFT_OBJECTIVES
from unmask.objectives.advantages import get_advantage
from unmask.objectives.trace_sft import NEEDS_TRACES
from unmask.rewards import REWARDS
from unmask.rl.cluster import check_fleet
from unmask.rl.loop import train_rl
from unmask.rl.scoring import RewardPool
from unmask.rl.stages import make_stages
from unmask.train.checkpoint import seed_rng
from unmask.train.demonstrations import Lengths, demonstration
from unmask.train.logs import rank_log
from unmask.train.run import Outcome, Run
from unmask.train.sft import train_sft
from unmask.train.sinks import check_packages


def resolve(recipe: SftRecipe | RlRecipe) -> SftRecipe | RlRecipe:
    """The recipe with the options of its named parts filled in, all names checked. Raises `UnmaskError`."""
    registry = SFT_OBJECTIVES if isinstance(recipe, SftRecipe) else RL_OBJECTIVES
    recipe = fill_plugins(recipe, {"source": SOURCES, "objective": registry, "reward": REWARDS})
    get_strategy(recipe.eval.sampling.remasking_strategy)
    if isinstance(recipe, RlRecipe):
        get_strategy(recipe.rollout.remasking_strategy)
        get_advantage(recipe.advantage)
        if recipe.fleet.num_actors:
            check_fleet(recipe.fleet, pick_device(recipe.run.device))
    get_backend(recipe.run.attention_backend, torch.device("cpu"))
    for key, metric in (("stop.metric", recipe.stop.metric), ("checkpoint.keep_best", recipe.checkpoint.keep_best)):
        known = measured_metrics(recipe)
        if metric and not recipe.eval.every_steps:
            raise UnmaskError(f"{key} needs eval.every_steps above 0: what is not measured decides nothing")
        if metric and metric not in known:
            raise UnmaskError(f"{key} {metric!r} is not measured; known: {', '.join(known)}")
    return recipe


def open_model(
    config: ModelConfig, source: Plugin, run: RunConfig, scratch: Path, device: torch.device | None = None
) -> tuple[Decoder, ChatTokenizer, Path]:
    """The model to train, its tokenizer, and a folder with the tokenizer's files (`scratch` for a preset).

    device: where it goes; None = as `run` says."""
    device = device or use_machine(run)
    if config.path:
        folder = find_model_folder(config.path, config.revision)
        return load_model(folder, device=device), ChatTokenizer.load(folder), folder
    tokenizer = preset_tokenizer(config, source, run.seed)
    tokenizer.save(scratch)
    size = len(tokenizer.tokenizer)
    model = new_model(config.preset, run.seed, device=device, vocab_size=size, **tokenizer.special_ids)
    return model, tokenizer, scratch


def preset_tokenizer(config: ModelConfig, source: Plugin, seed: int) -> ChatTokenizer:
    """The tokenizer that a recipe's preset is made for, with a mask token. Raises `UnmaskError`."""
    if config.tokenizer:
        tokenizer = ChatTokenizer.load(resolve_folder(config.tokenizer, config.revision or None, weights=False))
        tokenizer.complete(find_family(preset_config(config.preset)).mask_token)
        return tokenizer
    vocabulary = open_source(source, "train", seed).vocabulary
    if vocabulary is None:
        raise UnmaskError(
            f"model.preset needs a source with a vocabulary of its own, and {source.name} has none: give model.tokenizer, "
            "or use model.path"
        )
    return ChatTokenizer.tiny(vocabulary)


def default_folder(kind: str) -> str:
    """Of a run that names none, from the time."""
    return f"runs/{kind}-{time.strftime('%Y%m%d-%H%M%S')}"


def start(recipe: SftRecipe | RlRecipe, *, resume: bool = False, title: str = "") -> Outcome:
    """Runs a recipe to its end (or its interruption). Raises `UnmaskError` before anything is computed for bad input."""
    recipe = resolve(recipe)
    check_packages(recipe.log)
    kind = "sft" if isinstance(recipe, SftRecipe) else "rl"
    folder = Path(recipe.run.dir or default_folder(kind))
    seed = recipe.run.seed
    seed_rng(seed)
    device = use_machine(recipe.run)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        ranks = stack.enter_context(joined_ranks(device))
        launchers = ranks.gather(launcher())
        resume = ranks.of_first(resume or (ranks.is_first and is_begun_by(folder, launchers)))
        log = stack.enter_context(rank_log())
        if ranks.size > 1 and not recipe.run.dir:
            raise UnmaskError("run.dir is missing: several processes need the name of the folder they share")
        pinned, origins = pin_folders(recipe, folder, resume)
        model, tokenizer, tokenizer_from = open_model(
            pinned.model, recipe.source, recipe.run, Path(scratch), place_of_weights(recipe, ranks)
        )
        source = open_source(recipe.source, "train", seed)
        pin_data(source, origins, folder)
        steps = recipe.train.max_steps
        if isinstance(recipe, RlRecipe):
            steps -= recipe.value.warmup_steps if recipe.value.enabled else 0
            steps *= recipe.train.num_minibatches * recipe.train.num_epochs
        critic = reference = None
        if isinstance(pinned, RlRecipe):  # of the weights as they are, before there are adapters
            critic, reference = make_critic(pinned, model, ranks), make_reference(pinned, model, ranks)
        base = adapter_base(recipe, pinned, model, Path(scratch))
        add_adapters(model, recipe.lora, base, is_sharding=is_sharding(recipe, ranks))
        engine = make_engine(recipe, model, ranks, tokenizer.decode)
        trainer = make_trainer(model, recipe, recipe.optimizer, steps, ranks)
        if ranks.size > 1:  # what is the same on all ranks is there; dropout is not
            seed_rng(seed + ranks.rank)
        rewards = RewardPool(recipe.reward)
        measures = []
        if engine is not None and recipe.eval.num_examples:
            measures.append(make_evaluator(recipe, trainer, engine, tokenizer, rewards))
        title = title or kind
        # What is wrong with the data or the parts is found before there is a run folder.
        if isinstance(recipe, SftRecipe):
            if isinstance(source, TraceSource):
                source.check_model(model.spec, recipe.objective.options.get("block_size"))
            sft_stages = make_sft_stages(recipe, model)
            check_demonstrations(source, tokenizer, needs_order=recipe.objective.name == "trace")
            check_lengths(source, tokenizer, recipe.train)
            sft_stages[0][1].rows([demonstration(source, tokenizer, 0, 0)])
            if recipe.eval.every_steps:
                if recipe.eval.num_examples:
                    stack.enter_context(rewards)
                if recipe.eval.num_loss_examples:
                    measures.append(make_loss_meter(recipe, trainer, tokenizer))
            run = Run(folder, recipe, trainer, tokenizer_from, joined(measures), log, resume=resume, title=title)
            if ranks.is_first:
                keep_beginning(folder, origins, launchers, Path(scratch), resume)
            return train_sft(recipe, run, source, tokenizer, sft_stages)
        assert engine is not None  # RL decodes
        first, *_ = examples = [source[i] for i in indices_to_check(source)]
        rewards.check(examples)
        stages = make_stages(recipe, model)
        for stage in stages:
            engine.check(tokenizer.prompt_ids(first), stage.params, name="rollout")
        stack.enter_context(rewards)
        fleet = make_fleet(recipe, trainer, tokenizer)
        if fleet is not None:
            stack.enter_context(fleet)
        run = Run(
            folder, recipe, trainer, tokenizer_from, joined(measures), log, resume=resume, title=title,
            value_trainer=critic.trainer if critic else None,
        )  # fmt: skip
        if ranks.is_first:
            keep_beginning(folder, origins, launchers, Path(scratch), resume)
        if fleet is not None:
            fleet.say = run.say
        return train_rl(recipe, run, engine, source, tokenizer, stages, rewards, critic, reference, fleet)


def indices_to_check(source: Source) -> Sequence[int]:
    """Which examples are looked at before a run begins: all of a file (of rows on disk, one of each kind), some where they are
    made up as they are asked for."""
    if isinstance(source, RowSource):
        return source.to_check()
    return range(len(source) if source.vocabulary is None else min(16, len(source)))


def check_demonstrations(source: Source, tokenizer: ChatTokenizer, needs_order: bool) -> None:
    """Raises `UnmaskError` for an example that is none for supervised fine-tuning, or has not the order that is asked for."""
    for index in indices_to_check(source):
        example = source[index]
        if example.trace is not None:
            continue
        if example.response is None:
            raise UnmaskError(f"example {example.id}: has no response; supervised fine-tuning needs demonstrations")
        if needs_order and example.step_map is None:
            raise UnmaskError(f"example {example.id}: has no trace; {NEEDS_TRACES}")
        if example.step_map is not None:
            demonstration(source, tokenizer, index, 0)  # whether it has a step for every token


def check_lengths(source: Source, tokenizer: ChatTokenizer, config: SftTrainConfig) -> None:
    """Raises `UnmaskError` where no example of those that are looked at, which are all, is short enough to be trained on."""
    indices = indices_to_check(source)
    if config.max_length is None or config.when_longer == "stop" or len(indices) < len(source):
        return
    lengths = Lengths(config, source, say=lambda text: None)
    if not any(lengths.fit([demonstration(source, tokenizer, index, 0)])[0] for index in indices):
        raise UnmaskError(f"all {len(source)} examples are longer than train.max_length {config.max_length}")


__all__ = [
    "default_folder",
    "find_model_folder",
    "open_model",
    "pick_device",
    "pick_precision",
    "resolve",
    "start",
    "use_machine",
]
