"""`unmask eval`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from unmask.cli.training import split_words
from unmask.config import EvalRecipe, Plugin, fill_plugins, load_recipe, recipe_of_run, to_toml
from unmask.config.evaluation import EvalTask
from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.types import Example, Trace

if TYPE_CHECKING:
    from unmask.train.progress import Progress


def run_eval(
    checkpoint: str,
    words: list[str],
    output: Path | None,
    dry_run: bool,
    *,
    tasks: list[str],
    modes: list[str],
    overwrite: bool,
) -> None:
    """Prints the table; with `output`, writes results.json and the traces of each task and mode there, and continues what was
    interrupted. Raises `UnmaskError`."""
    if not dry_run and not Path(checkpoint).exists():
        from unmask.launch import find_model_folder

        find_model_folder(checkpoint)  # what is not there is said first, before what a recipe for it would lack
    recipe = _resolve(checkpoint, words, tasks, modes)
    if dry_run:
        print(to_toml(recipe), end="")
        return
    from unmask.data.chat import ChatTokenizer
    from unmask.engine import Engine
    from unmask.evaluate.continued import evaluate_in_file
    from unmask.evaluate.records import fingerprint
    from unmask.evaluate.results import Results, to_json
    from unmask.launch import find_model_folder, pick_precision, use_machine
    from unmask.models.checkpoint import load_model
    from unmask.rl.scoring import RewardPool
    from unmask.train.progress import Progress
    from unmask.train.trainer import autocast

    device = use_machine(recipe.run)
    precision = pick_precision(recipe.run.precision, device)
    folder = find_model_folder(checkpoint)
    examples = {name: _examples(recipe, task) for name, task in recipe.tasks.items()}
    pools = {name: RewardPool(task.reward) for name, task in recipe.tasks.items() if task.reward is not None}
    for name, pool in pools.items():
        pool.check(examples[name])
    model, tokenizer = load_model(folder, device=device), ChatTokenizer.load(folder)
    engine = Engine(model, decode=tokenizer.decode, **recipe.engine.model_dump())
    results = Results(recipe, folder, tokenizer, device, precision)
    name_of_checkpoint = f"{folder.name}@{fingerprint(folder)}"
    table = Table("task", "mode", "accuracy (95 %)", "pass@k", "tokens per forward", "forwards", "tokens/s", "length", "cut")
    for name, task in recipe.tasks.items():
        with pools[name] as rewards:
            for mode, params in recipe.modes.items():
                file = None if output is None else output / f"traces-{name}-{mode}.jsonl"
                if file is not None and overwrite:
                    file.unlink(missing_ok=True)
                num, start = len(examples[name]) * recipe.num_responses, time.monotonic()
                with Progress(f"{name}, {mode}", num, unit="answer") as progress, autocast(precision, device):
                    speed = _Speed(progress)
                    result = evaluate_in_file(
                        engine, tokenizer, examples[name], params, rewards, recipe.num_responses, file, name_of_checkpoint,
                        speed.show,
                    )  # fmt: skip
                seconds = time.monotonic() - start
                results.add(
                    name, task, examples[name], mode, params, result, rewards.provenance(), seconds, speed.num_tokens / seconds
                )
                table.add_row(name, mode, *_row(result.measured, speed.num_tokens / seconds))
    _console().print(table)
    if output is not None:
        write_text(output / "results.json", to_json(results.to_dict()))
        print(output / "results.json")


def _resolve(checkpoint: str, words: list[str], tasks: list[str], modes: list[str]) -> EvalRecipe:
    """The recipe with tasks and all options filled in. Raises `UnmaskError`."""
    files, overrides = split_words(words)
    base = _from_run(checkpoint)
    if tasks:
        base["tasks"] = {name: {"source": {"name": name}} for name in tasks}
    recipe = load_recipe(EvalRecipe, files, overrides, base=base)
    from unmask.data.sources import SOURCES
    from unmask.diffusion.remasking import get_strategy
    from unmask.rewards import REWARDS

    if not recipe.tasks:
        assert recipe.source is not None  # the recipe has checked it
        only = EvalTask(source=recipe.source, num_examples=recipe.num_examples, first_example=recipe.first_example)
        recipe = recipe.model_copy(update={"tasks": {recipe.source.name: only}})
    filled = {}
    for name, task in recipe.tasks.items():
        own = getattr(SOURCES.get(task.source.name), "reward", None)
        reward = task.reward or (Plugin(name=own) if own else recipe.reward)
        filled[name] = fill_plugins(task.model_copy(update={"reward": reward}), {"source": SOURCES, "reward": REWARDS})
    if unknown := [mode for mode in modes if mode not in recipe.modes]:
        raise UnmaskError(f"--sampling: unknown mode {unknown[0]!r}; known: {', '.join(recipe.modes)}")
    chosen = {name: recipe.modes[name] for name in modes or recipe.modes}
    for params in chosen.values():
        get_strategy(params.remasking_strategy)
    return recipe.model_copy(update={"tasks": filled, "modes": chosen})


def _examples(recipe: EvalRecipe, task: EvalTask) -> list[Example]:
    from unmask.data.sources import open_source
    from unmask.evaluate import take_examples

    source = open_source(task.source, recipe.split, recipe.run.seed)
    return take_examples(source, task.num_examples or len(source), task.first_example)


class _Speed:
    """Counts the tokens of this process's own decoding, and shows progress."""

    def __init__(self, progress: Progress):
        self.progress, self.num_tokens, self.num_forwards = progress, 0, 0

    def show(self, num_there: int, trace: Trace | None) -> None:
        if trace is not None:
            self.num_tokens += trace.num_response_tokens
            self.num_forwards += trace.num_forwards
        self.progress.show(num_there, {"tokens per forward": self.num_tokens / max(1, self.num_forwards)})


def _row(measured: dict[str, Any], tokens_per_second: float) -> list[str]:
    low, high = measured["confidence_95"]
    passes = ", ".join(f"{k}: {value:.1%}" for k, value in measured["pass_at"].items())
    return [
        f"{measured['accuracy']:.1%} ({low:.1%} to {high:.1%})", passes, f"{measured['tokens_per_forward']:.2f}",
        f"{measured['num_forwards']:.1f}", f"{tokens_per_second:.0f}", f"{measured['response_length']:.1f}",
        f"{measured['cut_share']:.1%}",
    ]  # fmt: skip


def run_compare(first: Path, second: Path) -> None:
    """Prints how the second result differs from the first. Raises `UnmaskError`."""
    from unmask.evaluate.compare import compare
    from unmask.evaluate.results import read_results

    table = Table("task", "mode", "first", "second", "difference (95 %)", "p", "examples", "tokens per forward")
    remarks = []
    for task, mode, d, speeds, notes in compare(read_results(first), read_results(second)):
        table.add_row(
            task, mode, f"{d.first:.1%}", f"{d.second:.1%}", f"{d.difference:+.1%} ({d.low:+.1%} to {d.high:+.1%})",
            f"{d.p_value:.2g}", str(d.num_examples), f"{speeds[0]:.2f} -> {speeds[1]:.2f}",
        )  # fmt: skip
        remarks += [f"{task}, {mode}: {note}" for note in notes]
    console = _console()
    console.print(table)
    for remark in remarks:
        console.print(remark, markup=False)


def _console() -> Console:
    """In a file or a pipe, a table is as wide as it needs to be."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def _from_run(checkpoint: str) -> dict:
    """The source, reward and seed of the run that a checkpoint (or run folder) belongs to, as far as there is one."""
    if not (recipe := recipe_of_run(checkpoint)):
        return {}
    source = recipe.get("eval", {}).get("source") or recipe.get("source")
    base = {"source": source, "reward": recipe.get("reward"), "run": {"seed": recipe.get("run", {}).get("seed", 0)}}
    return {key: value for key, value in base.items() if value is not None}
