"""A rank of several runs, one after the other: `python several_runs.py FOLDER NUM_STEPS NAME..`, started by torch's launcher;
NUM_STEPS 0 = each run's own number of steps."""

import sys
from pathlib import Path

import torch

from tests.recipes import RL, SFT
from unmask.config import RlRecipe, SftRecipe, load_recipe
from unmask.dist import joined_ranks
from unmask.files import write_text
from unmask.launch import start

# A signal at each step: an untrained model's responses have different shares of digits.
REWARD = """
def share_of_digits(rollout, example):
    return sum(map(str.isdigit, rollout.text)) / max(1, len(rollout.text))
"""
VALUE = [
    "value.enabled=true",
    "value.optimizer.lr=1e-4",
    "optimizer.lr=1e-4",
    "value.warmup_steps=2",
    "objective.options.kl_to=reference",
]
WATCHED = ["log.tensorboard=true", "train.profile_steps=[2]"]
# name -> recipe, settings. Seven demonstrations a step are no even share, nor are three prompts; packs of some 64 tokens make
# several rounds, of which the last is not full.
SHARDED = ["train.shard_size=0"]  # over the ranks there are: with one, nothing is
RUNS = {
    "sft": (SFT, ["train.batch_size=7", "train.max_tokens_per_micro_batch=64", "eval.num_loss_examples=5", *SHARDED]),
    "sft-copies": (SFT, ["train.batch_size=7", "train.max_tokens_per_micro_batch=64"]),
    "sft-moe": (SFT, ["model.preset=sdar_moe/tiny", "train.batch_size=7", "optimizer.lr=1e-4"]),
    "sft-moe-sharded": (
        SFT, ["model.preset=sdar_moe/tiny", "train.batch_size=7", "optimizer.lr=1e-4", *SHARDED, *WATCHED],
    ),
    "sft-llada": (SFT, ["model.preset=llada/tiny", "train.batch_size=5", "lora.rank=4", *SHARDED]),
    "rl": (RL, ["train.prompts_per_step=3", "train.max_tokens_per_micro_batch=256", *VALUE]),
    "rl-sharded": (
        RL, ["train.prompts_per_step=3", "train.use_activation_checkpointing=true",
             *VALUE, *SHARDED],
    ),
}  # fmt: skip
NUM_STEPS = {"sft": 12, "sft-copies": 4, "sft-moe": 4, "sft-moe-sharded": 6, "sft-llada": 6, "rl": 8, "rl-sharded": 8}


def run_all(folder: Path, num_steps: int, names: list[str]) -> None:
    for name in names:
        text, words = RUNS[name]
        file = folder / f"{name}.toml"
        write_text(file, text)  # every rank, whole at once: others may be reading it
        if text is RL:
            write_text(folder / "reward.py", REWARD)
            words = [*words, f"reward.name={folder / 'reward.py'}:share_of_digits", "reward.options={}"]
        kind = SftRecipe if text is SFT else RlRecipe
        more = [f"run.dir={folder / name}", f"train.max_steps={num_steps or NUM_STEPS[name]}", "run.num_threads=1"]
        start(load_recipe(kind, [file], ["optimizer.lr=1e-3", *words, *more]))


if __name__ == "__main__":
    with joined_ranks(torch.device("cpu")):
        run_all(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
