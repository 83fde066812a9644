"""`unmask eval`."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from unmask.cli.training import split_words
from unmask.config import EvalRecipe, fill_plugins, load_recipe, read_toml, to_toml
from unmask.files import write_text


def run_eval(checkpoint: str, words: list[str], output: Path | None, dry_run: bool) -> None:
    """Prints the table; with `output`, writes results.json and the traces of each mode there. Raises `UnmaskError`."""
    if not dry_run and not Path(checkpoint).exists():
        from unmask.launch import find_model_folder

        find_model_folder(checkpoint)  # what is not there is said first, before what a recipe for it would lack
    files, overrides = split_words(words)
    recipe = load_recipe(EvalRecipe, files, overrides, base=_from_run(checkpoint))
    from unmask.data.chat import ChatTokenizer
    from unmask.data.sources import SOURCES, open_source
    from unmask.diffusion.remasking import get_strategy
    from unmask.engine import Engine
    from unmask.evaluate import evaluate, take_examples, trace_record, write_records
    from unmask.launch import find_model_folder, pick_precision, use_machine
    from unmask.models.checkpoint import load_model
    from unmask.rewards import REWARDS
    from unmask.rl.scoring import RewardPool
    from unmask.train.trainer import autocast

    recipe = fill_plugins(recipe, {"source": SOURCES, "reward": REWARDS})
    for params in recipe.modes.values():
        get_strategy(params.remasking_strategy)
    if dry_run:
        print(to_toml(recipe), end="")
        return
    device = use_machine(recipe.run)
    folder = find_model_folder(checkpoint)
    source = open_source(recipe.source, recipe.split, recipe.run.seed)
    examples = take_examples(source, recipe.num_examples, recipe.first_example)
    with RewardPool(recipe.reward) as rewards:
        rewards.check(examples)
        model, tokenizer = load_model(folder, device=device), ChatTokenizer.load(folder)
        engine = Engine(model, decode=tokenizer.decode, **recipe.engine.model_dump())

        table = Table("mode", "accuracy", "tokens per forward", "response length", "cut", "seconds")
        results: dict[str, dict] = {}
        for name, params in recipe.modes.items():
            start = time.monotonic()
            with autocast(pick_precision(recipe.run.precision, device), device):
                result = evaluate(engine, tokenizer, examples, params, rewards)
            seconds = time.monotonic() - start
            results[name] = {
                **result.metrics(), "standard_error": result.standard_error, "num_examples": result.num_examples,
                "seconds": seconds, "sampling": params.model_dump(mode="json"),
            }  # fmt: skip
            table.add_row(
                name, f"{result.accuracy:.1%} ± {result.standard_error:.1%}", f"{result.tokens_per_forward:.2f}",
                f"{result.response_length:.1f}", f"{result.cut_share:.1%}", f"{seconds:.1f}",
            )  # fmt: skip
            if output is not None:
                write_records(output / f"traces-{name}.jsonl", [trace_record(group, tokenizer) for group in result.groups])
    Console(highlight=False).print(table)
    if output is not None:
        facts = {"checkpoint": str(folder), "source": recipe.source.model_dump(), "modes": results}
        write_text(output / "results.json", json.dumps(facts, indent=2) + "\n")
        print(output / "results.json")


def _from_run(checkpoint: str) -> dict:
    """The source, reward and seed of the run that a checkpoint (or run folder) belongs to, as far as there is one."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return {}
    for candidate in (folder, folder.resolve().parent.parent):
        if (candidate / "recipe.toml").exists() and (candidate / "checkpoints").is_dir():
            recipe = read_toml(candidate / "recipe.toml")
            source = recipe.get("eval", {}).get("source") or recipe.get("source")
            base = {"source": source, "reward": recipe.get("reward"), "run": {"seed": recipe.get("run", {}).get("seed", 0)}}
            return {key: value for key, value in base.items() if value is not None}
    return {}
