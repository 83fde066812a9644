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


def has_begun(folder: str) -> bool:
    """Whether a run has, in this folder: `--resume` goes on with it, maybe from the beginning."""
    return (Path(folder) / "recipe.toml").is_file()


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
    from unmask.cli.several import is_restarted, run_several
    from unmask.dist import own_rank
    from unmask.launch import default_folder, resolve, start

    if dry_run:
        print(to_toml(resolve(recipe)), end="")
        return 0
    if num_processes > 1:
        resolve(recipe)  # what is wrong with it is found before anything is started
        folder = recipe.run.dir or default_folder(kind)
        arguments = [kind, *words, f"run.dir={folder}", *(["--resume"] if resume else [])]
        return run_several(num_processes, arguments, max_restarts, resumes=lambda: has_begun(folder))
    outcome = start(recipe, resume=resume or (is_restarted() and has_begun(recipe.run.dir)))
    if own_rank() > 0:
        return outcome.exit_code
    if outcome.reason == "interrupted":
        print(f"{outcome.signal_name}: stopped after step {outcome.num_steps}, saved; continue with --resume")
        return outcome.exit_code
    if outcome.reason == "max_hours":
        print(f"train.max_hours: stopped after step {outcome.num_steps}, saved; continue with --resume")
        return 0
    why = {"target": "reached its target", "patience": "got no better any more"}.get(outcome.reason, "did all its steps")
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in outcome.evaluation.items())
    print(f"{why} after step {outcome.num_steps}" + (f": {numbers}" if numbers else ""))
    print(outcome.checkpoint)
    return 0
