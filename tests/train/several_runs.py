"""A rank of several runs, one after the other: `python several_runs.py FOLDER`, started by torch's launcher."""

import sys
from pathlib import Path

import torch

from tests.recipes import RL, SFT
from unmask.config import RlRecipe, SftRecipe, load_recipe
from unmask.dist import joined_ranks
from unmask.launch import start

VALUE = ["value.enabled=true", "value.optimizer.lr=1e-3", "value.warmup_steps=2", "objective.options.kl_to=reference"]
WATCHED = ["log.tensorboard=true", "train.profile_steps=[2]"]
# name -> recipe, settings. Seven demonstrations a step are no even share, nor are three prompts; packs of some 64 tokens make
# several rounds, of which the last is not full.
RUNS = {
    "sft": (SFT, ["train.batch_size=7", "train.max_tokens_per_micro_batch=64", "eval.num_loss_examples=5"]),
    "sft-moe": (SFT, ["model.preset=sdar_moe/tiny", "train.batch_size=7", "optimizer.lr=1e-4", *WATCHED]),
    "sft-llada": (SFT, ["model.preset=llada/tiny", "train.batch_size=5", "lora.rank=4"]),
    "rl": (RL, ["train.prompts_per_step=3", "train.max_tokens_per_micro_batch=256", *VALUE]),
}
NUM_STEPS = {"sft": 20, "sft-moe": 6, "sft-llada": 6, "rl": 20}


def run_all(folder: Path) -> None:
    for name, (text, words) in RUNS.items():
        file = folder / f"{name}.toml"
        if not file.exists():
            file.write_text(text)
        kind = SftRecipe if text is SFT else RlRecipe
        more = [f"run.dir={folder / name}", f"train.max_steps={NUM_STEPS[name]}", "run.num_threads=1"]
        start(load_recipe(kind, [file], ["optimizer.lr=1e-3", *words, *more]))


if __name__ == "__main__":
    with joined_ranks(torch.device("cpu")):
        run_all(Path(sys.argv[1]))
