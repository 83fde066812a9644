"""Runs of `benchmarks/scale.py`: its model, whole RL runs of one and two ranks, ranks that measure parts (scale_rank.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from unmask import new_model, save_model
from unmask.config import Plugin
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import open_source
from unmask.metrics import read_metrics
from unmask.train.timings import Summary, read_timings, summarise

Step = tuple[int, list[dict[str, Any]]]  # its number, a record of each rank

SIZES = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "intermediate_size": 768,
}  # fmt: skip
PROMPTS, GROUP_SIZE, NEW_TOKENS = 6, 6, 24
RECIPE = """
[source]
name = "chained_arithmetic"
[rollout]
max_new_tokens = {new_tokens}
ignore_eos = true
[reward]
name = "{reward}:share_of_digits"
[objective.options]
kl_to = "reference"
[train]
prompts_per_step = {prompts}
group_size = {group_size}
max_tokens_per_micro_batch = 2048
old_logprobs = "recompute"
[checkpoint]
every_steps = 0
"""
# Random weights get no answer right; digits they do write, so that every group has a signal.
REWARD = """
def share_of_digits(rollout, example):
    return sum(map(str.isdigit, rollout.text)) / max(1, len(rollout.text))
"""
WAYS = {"one rank": (1, 1), "two, weights whole": (2, 1), "two, sharded": (2, 0)}  # (ranks, train.shard_size)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def prepare(folder: Path) -> Path:
    """A model folder of random weights with its tokenizer; the recipe and the reward beside it."""
    tokenizer = ChatTokenizer.tiny(open_source(Plugin(name="chained_arithmetic"), "train", 0).vocabulary or ())
    model = new_model("sdar/tiny", 0, vocab_size=len(tokenizer.tokenizer), **tokenizer.special_ids, **SIZES)
    save_model(model, folder / "model")
    tokenizer.save(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    facts = {"prompts": PROMPTS, "group_size": GROUP_SIZE, "new_tokens": NEW_TOKENS, "reward": folder / "reward.py"}
    (folder / "recipe.toml").write_text(RECIPE.format(**facts))
    return folder / "model"


def run_rl(folder: Path, name: str, num_steps: int, turn: int) -> tuple[list[Step], list[dict]]:
    """A run in processes of its own: timings and metrics of its steps without the first, which warms up."""
    num_ranks, shard_size = WAYS[name]
    target = folder / f"{name.replace(' ', '-').replace(',', '')}-{turn}"
    words = [f"run.dir={target}", f"model.path={folder / 'model'}", f"train.max_steps={num_steps + 1}"]
    words += [f"train.shard_size={shard_size}", "run.num_threads=1", "run.device=cpu"]
    command = [sys.executable, "-m", "unmask", "rl", str(folder / "recipe.toml"), *words]
    command += ["--nproc", str(num_ranks)] if num_ranks > 1 else []
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return list(read_timings(target))[1:], read_metrics(target)[1:]


def fastest(steps: list[Step]) -> Summary:
    """Of the step that was least disturbed by what else runs here; all do the same work."""
    return summarise([min(steps, key=lambda step: step[1][0]["step_s"])])


def measure_part(kind: str, model: Path, num_ranks: int = 1) -> dict:
    """What scale_rank.py prints."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"] if num_ranks > 1 else []
    command = [sys.executable, *start, str(Path(__file__).with_name("scale_rank.py")), kind, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{kind}, {num_ranks} ranks: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
