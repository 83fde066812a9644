"""`unmask sft` and `unmask rl`."""

from __future__ import annotations

from pathlib import Path

from unmask.config import RlRecipe, SftRecipe, load_recipe, to_toml
from unmask.errors import UnmaskError


def split_words(words: list[str]) -> tuple[list[Path], list[str]]:
    """Recipe files and overrides, each in the order given; overrides win wherever they stand."""
    files = [Path(word) for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    return files, overrides


def train(kind: str, words: list[str], resume: bool, dry_run: bool, num_processes: int = 1, max_restarts: int = 0) -> int:
    """Runs a recipe, in several processes if there are to be more than one; returns the exit code (0, or 128 + the signal's
    number when interrupted). max_restarts: of several processes, after one has failed."""
    files, overrides = split_words(words)
    recipe: SftRecipe | RlRecipe
    recipe = load_recipe(SftRecipe, files, overrides) if kind == "sft" else load_recipe(RlRecipe, files, overrides)
    if max_restarts and num_processes == 1:
        raise UnmaskError("--max-restarts is of several processes; give --nproc, too (torchrun has an option of that name)")
    if resume and not recipe.run.dir:
        raise UnmaskError("--resume needs run.dir (run.dir=FOLDER)")
    from unmask.cli.several import may_start_again, run_several
    from unmask.dist import own_rank
    from unmask.launch import default_folder, resolve, start

    if dry_run:
        print(to_toml(resolve(recipe)), end="")
        return 0
    if num_processes > 1:
        resolve(recipe)  # what is wrong with it is found before anything is started
        folder = [] if recipe.run.dir else [f"run.dir={default_folder(kind)}"]
        return run_several(num_processes, [kind, *words, *folder, *(["--resume"] if resume else [])], max_restarts)
    outcome = start(recipe, resume=resume)
    # To torchrun, which would start the ranks again, an end that was asked for is none.
    exit_code = 0 if may_start_again() else outcome.exit_code
    if own_rank() > 0:
        return exit_code
    if outcome.reason == "interrupted":
        print(f"{outcome.signal_name}: stopped after step {outcome.num_steps}, saved; continue with --resume")
        return exit_code
    if outcome.reason == "max_hours":
        print(f"train.max_hours: stopped after step {outcome.num_steps}, saved; continue with --resume")
        return 0
    why = {"target": "reached its target", "patience": "got no better any more"}.get(outcome.reason, "did all its steps")
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in outcome.evaluation.items())
    print(f"{why} after step {outcome.num_steps}" + (f": {numbers}" if numbers else ""))
    print(outcome.checkpoint)
    return 0
