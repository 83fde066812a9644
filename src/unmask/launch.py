"""From a recipe to a running loop: the one place where models, sources, objectives, rewards and runs are put together."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from unmask.config import EvalConfig, Plugin, RlRecipe, RunConfig, SftRecipe, plugin_options
from unmask.config.schema import ModelConfig
from unmask.data.chat import MASK, ChatTokenizer
from unmask.data.sources import SOURCES, open_source
from unmask.errors import UnmaskError
from unmask.evaluate import evaluate, held_out_examples
from unmask.models import Decoder
from unmask.models.checkpoint import load_model, new_model, resolve_folder
from unmask.objectives import (
    RL_OBJECTIVES,
    SFT_OBJECTIVES,
    make_rl_objective,
    make_sft_objective,
)
from unmask.rewards import REWARDS, make_reward
from unmask.rl.loop import train_rl
from unmask.train.checkpoint import newest_valid, seed_rng
from unmask.train.run import Outcome, Run
from unmask.train.sft import train_sft
from unmask.train.trainer import Trainer


def resolve(recipe: SftRecipe | RlRecipe) -> SftRecipe | RlRecipe:
    """The recipe with the options of its named parts filled in and checked. Raises `UnmaskError`."""
    registry = SFT_OBJECTIVES if isinstance(recipe, SftRecipe) else RL_OBJECTIVES
    parts = {}
    for what, known in (("source", SOURCES), ("objective", registry), ("reward", REWARDS)):
        plugin: Plugin = getattr(recipe, what)
        options = plugin_options(known, plugin, what).model_dump(mode="json", exclude_none=True)
        parts[what] = Plugin(name=plugin.name, options=options)
    return recipe.model_copy(update=parts)


def pick_device(name: str) -> torch.device:
    """ "auto" is the first GPU if there is one. Raises `UnmaskError` when the device is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UnmaskError(f"device {name!r} cannot be used: {reason}; use cpu, or auto") from None
    return device


def pick_precision(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def find_model_folder(path: str, revision: str = "") -> Path:
    """A model folder or hub name; for a run folder, its newest valid checkpoint. Raises `UnmaskError`."""
    if (Path(path) / "checkpoints").is_dir():
        checkpoint, _ = newest_valid(Path(path) / "checkpoints")
        if checkpoint is None:
            raise UnmaskError(f"{path}: this run has no valid checkpoint yet")
        return checkpoint
    return resolve_folder(path, revision or None)


def open_model(config: ModelConfig, source: Plugin, run: RunConfig, scratch: Path) -> tuple[Decoder, ChatTokenizer, Path]:
    """The model to train, its tokenizer, and a folder with the tokenizer's files (`scratch` for a preset)."""
    device = pick_device(run.device)
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
    kind = "sft" if isinstance(recipe, SftRecipe) else "rl"
    if recipe.run.num_threads:
        torch.set_num_threads(recipe.run.num_threads)
    folder = Path(recipe.run.dir or f"runs/{kind}-{time.strftime('%Y%m%d-%H%M%S')}")
    seed = recipe.run.seed
    seed_rng(seed)
    with tempfile.TemporaryDirectory() as scratch:
        model, tokenizer, tokenizer_from = open_model(recipe.model, recipe.source, recipe.run, Path(scratch))
        source, reward = open_source(recipe.source, "train", seed), make_reward(recipe.reward)
        steps = recipe.train.max_steps
        if isinstance(recipe, RlRecipe):
            steps *= recipe.train.num_minibatches * recipe.train.num_epochs
        trainer = Trainer(
            model, recipe.optimizer, max_optimizer_steps=steps,
            max_tokens_per_micro_batch=recipe.train.max_tokens_per_micro_batch,
            attention_backend=recipe.run.attention_backend, precision=pick_precision(recipe.run.precision, model.device),
        )  # fmt: skip
        evaluator = make_evaluator(recipe.source, recipe.eval, recipe.reward, seed, trainer, tokenizer)
        run = Run(folder, recipe, trainer, tokenizer_from, evaluator, resume=resume, title=title or kind)
        if isinstance(recipe, SftRecipe):
            return train_sft(recipe, run, source, tokenizer, make_sft_objective(recipe.objective, model, seed))
        return train_rl(recipe, run, source, tokenizer, make_rl_objective(recipe.objective, model), reward)


def make_evaluator(
    source: Plugin, config: EvalConfig, reward: Plugin, seed: int, trainer: Trainer, tokenizer: ChatTokenizer
) -> Callable[[], dict[str, float]]:
    examples = held_out_examples(source, config, seed) if config.every_steps else []

    def measure() -> dict[str, float]:
        with trainer.autocast():
            return evaluate(trainer.model, tokenizer, examples, config.sampling, make_reward(reward)).metrics()

    return measure


__all__ = ["find_model_folder", "open_model", "pick_device", "pick_precision", "resolve", "start"]
