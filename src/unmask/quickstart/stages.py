"""`unmask quickstart`: three recipes in a row, measured before and after RL. Each stage is an ordinary run.

DIR/1-sft-basics, DIR/2-sft-sloppy, DIR/3-rl      run folders
DIR/before.json, DIR/after.json                   what was measured, and of which checkpoint
DIR/before.jsonl, DIR/after.jsonl                 the same held-out questions being unmasked
DIR/results.json, DIR/report.html                 what came out
"""

from __future__ import annotations

import json
import time
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unmask.config import RlRecipe, SftRecipe, load_recipe, read_toml
from unmask.data.chained_arithmetic import count_steps
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import open_source
from unmask.engine import Engine
from unmask.evaluate import evaluate, take_examples
from unmask.evaluate.records import trace_record, write_records
from unmask.files import read_json, write_text
from unmask.launch import pick_device, start
from unmask.models.checkpoint import load_model
from unmask.quickstart.report import write_report
from unmask.rl.rollout import make_rollouts
from unmask.rl.scoring import RewardPool
from unmask.train.checkpoint import MANIFEST
from unmask.train.progress import format_seconds
from unmask.types import SamplingParams

STAGES: tuple[tuple[str, type[SftRecipe] | type[RlRecipe], str], ...] = (
    ("1-sft-basics", SftRecipe, "1/3 SFT, short problems"),
    ("2-sft-sloppy", SftRecipe, "2/3 SFT, sloppy teacher"),
    ("3-rl", RlRecipe, "3/3 TraceRL"),
)
# Held-out questions that no gate of the training ever looked at (those are the first ones).
FIRST_QUESTION, NUM_QUESTIONS, NUM_PLAYED = 4096, 512, 24
NUM_PASS_QUESTIONS, PASS_K = 128, 8
MODES = {
    "dynamic": SamplingParams(max_new_tokens=64, temperature=1.0, remasking_strategy="low_confidence_dynamic"),
    "dynamic_greedy": SamplingParams(max_new_tokens=64, temperature=0.0, remasking_strategy="low_confidence_dynamic"),
    "static_greedy": SamplingParams(max_new_tokens=64, temperature=0.0, remasking_strategy="low_confidence_static"),
}


def run_quickstart(seed: int, folder: Path, settings: list[str]) -> int:
    """Runs what is not done yet; returns the exit code. `settings` apply to every stage (run.device=cpu, ...)."""
    console = Console(stderr=True, highlight=False)
    begin = time.monotonic()
    recipes: list[SftRecipe | RlRecipe] = []
    for name, kind, _ in STAGES:
        base: dict[str, Any] = read_toml(Path(str(resources.files("unmask.quickstart") / "recipes" / f"{name}.toml")))
        base["run"] = {**base["run"], "dir": str(folder / name), "seed": seed}
        if recipes:
            base["model"]["path"] = "(the stage before)"
        recipes.append(load_recipe(kind, [], settings, base=base))

    checkpoints: list[Path] = []
    for (name, _, title), recipe in zip(STAGES, recipes, strict=True):
        if checkpoints:
            model = recipe.model.model_copy(update={"path": str(checkpoints[-1])})
            recipe = recipe.model_copy(update={"model": model})
        is_begun = (folder / name / "recipe.toml").exists()
        stage_begin = time.monotonic()
        outcome = start(recipe, resume=is_begun, title=title)
        if outcome.reason == "interrupted":
            console.print(f"{outcome.signal_name}: stopped after step {outcome.num_steps} of {name}, saved.")
            console.print("Run the same command again to continue.")
            return outcome.exit_code
        _say_stage(console, title, recipe, outcome, time.monotonic() - stage_begin)
        checkpoints.append(outcome.checkpoint)

    for name, path in (("before", checkpoints[1]), ("after", checkpoints[2])):
        if not is_measured(folder / f"{name}.json", path):
            console.print(f"measuring {name} RL on {NUM_QUESTIONS} held-out questions ...")
            write_text(
                folder / f"{name}.json",
                json.dumps(measure(path, recipes[2], folder / f"{name}.jsonl"), indent=2) + "\n",
            )
    seconds = time.monotonic() - begin
    results: dict[str, Any] = {
        "seed": seed,
        "seconds": round(seconds, 1),
        "before": read_json(folder / "before.json"),
        "after": read_json(folder / "after.json"),
    }
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    page = write_report(folder, [name for name, _, _ in STAGES], results)
    _print_table(results)
    console.print(f"took {format_seconds(seconds)}; open the report in a browser:")
    print(page)
    return 0


def _say_stage(console: Console, title: str, recipe: Any, outcome: Any, seconds: float) -> None:
    value = outcome.evaluation.get(recipe.stop.metric, float("nan"))
    target = f"{recipe.stop.metric} {value:.3f}, target {recipe.stop.at_least}"
    how = "reached" if outcome.reason == "target" else "NOT reached within the limit of steps:"
    console.print(f"{title}: {how} {target} after {outcome.num_steps} steps, {format_seconds(seconds)}", soft_wrap=True)


def is_measured(file: Path, checkpoint: Path) -> bool:
    """Has this very checkpoint been measured already?"""
    return file.exists() and read_json(file).get("manifest") == read_json(checkpoint / MANIFEST)


def measure(checkpoint: Path, recipe: SftRecipe | RlRecipe, traces: Path) -> dict[str, Any]:
    """Accuracy and speed in each mode, what the samples can reach at best, and how often the steps are skipped."""
    engine = Engine(load_model(checkpoint, device=pick_device(recipe.run.device)))
    tokenizer = ChatTokenizer.load(checkpoint)
    examples = take_examples(open_source(recipe.source, "held_out", recipe.run.seed), NUM_QUESTIONS, FIRST_QUESTION)
    results: dict[str, Any] = {
        "manifest": read_json(checkpoint / MANIFEST),
        "num_questions": len(examples),
        "pass_k": PASS_K,
        "num_pass_questions": NUM_PASS_QUESTIONS,
    }
    with RewardPool(recipe.reward) as rewards:
        measured = {name: evaluate(engine, tokenizer, examples, params, rewards) for name, params in MODES.items()}
        groups = make_rollouts(
            engine, tokenizer, examples[:NUM_PASS_QUESTIONS], MODES["dynamic"], rewards, group_size=PASS_K, seed_keys=("pass",)
        )
    for name, result in measured.items():
        results[name] = {**result.metrics(), "standard_error": result.measured["standard_error"]}
        if name == "dynamic":
            rollouts = [group.rollouts[0] for group in result.groups]
            counts = [count_steps(rollout.text) for rollout in rollouts]
            results["skipped_steps"] = sum(steps == 0 for steps, _ in counts) / len(counts)
            results["wrong_steps"] = sum(wrong for _, wrong in counts) / max(1, sum(steps for steps, _ in counts))
            confidences = [c for r in rollouts for c in r.trace.confidences[: r.trace.num_response_tokens]]
            results["mean_confidence"] = sum(confidences) / len(confidences)
            write_records(
                traces, [trace_record(group.example, group.rollouts[0], tokenizer) for group in result.groups[:NUM_PLAYED]]
            )
    results["pass_at_k"] = sum(any(r.reward for r in group.rollouts) for group in groups) / len(groups)
    return results


def _print_table(results: dict[str, Any]) -> None:
    table = Table("held-out questions", "before RL", "after RL")
    before, after = results["before"], results["after"]
    for label, mode in (
        ("dynamic, temperature 1", "dynamic"),
        ("dynamic, greedy", "dynamic_greedy"),
        ("static, greedy", "static_greedy"),
    ):
        table.add_row(f"accuracy, {label}", *(f"{r[mode]['accuracy']:.1%}" for r in (before, after)))
    table.add_row("tokens per forward, dynamic", *(f"{r['dynamic']['tokens_per_forward']:.2f}" for r in (before, after)))
    table.add_row("response length, dynamic", *(f"{r['dynamic']['response_length']:.1f}" for r in (before, after)))
    Console(highlight=False).print(table)
