"""`unmask eval`."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from unmask.cli.training import split_words
from unmask.config import EvalRecipe, load_recipe, read_toml, to_toml
from unmask.errors import UnmaskError
from unmask.files import write_text


def run_eval(checkpoint: str, words: list[str], output: Path | None, dry_run: bool) -> None:
    files, overrides = split_words(words)
    recipe = load_recipe(EvalRecipe, files, overrides, base=_from_run(checkpoint))
    if dry_run:
        print(to_toml(recipe), end="")
        return
    from unmask.data.chat import ChatTokenizer
    from unmask.data.sources import open_source
    from unmask.diffusion.remasking import get_strategy
    from unmask.evaluate import evaluate, take_examples, trace_record, write_records
    from unmask.launch import find_model_folder, pick_device
    from unmask.models.checkpoint import load_model
    from unmask.rewards import make_reward

    for params in recipe.modes.values():
        get_strategy(params.remasking_strategy)
    folder = find_model_folder(checkpoint)
    device = pick_device(recipe.run.device)
    source = open_source(recipe.source, "held_out", recipe.run.seed)
    examples = take_examples(source, recipe.num_examples, recipe.first_example)
    reward = make_reward(recipe.reward)
    model, tokenizer = load_model(folder, device=device), ChatTokenizer.load(folder)

    table = Table("mode", "accuracy", "tokens per forward", "response length", "cut", "seconds")
    results: dict[str, dict] = {}
    for name, params in recipe.modes.items():
        start = time.monotonic()
        result = evaluate(model, tokenizer, examples, params, reward, max_batch_size=recipe.max_batch_size)
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
    """The source, reward and seed of the run a checkpoint lies in, if it lies in one."""
    for folder in (Path(checkpoint), Path(checkpoint).parent.parent):
        file = folder / "recipe.toml"
        if file.exists():
            recipe = read_toml(file)
            source = recipe.get("eval", {}).get("source", recipe.get("source"))
            if source is None:
                raise UnmaskError(f"{file}: has no source")
            return {"source": source, "reward": recipe["reward"], "run": {"seed": recipe["run"]["seed"]}}
    return {}
