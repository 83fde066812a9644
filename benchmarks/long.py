"""Long demonstrations on a block model: seconds, memory, and tokens forwarded for each trained one, by length.

One demonstration with a prompt of 128 tokens, semi-autoregressive masks, forward and backward, in a process of its own: with
and without activation checkpointing, and with the loss replaced by a sum over the hidden states of the targets, which shows
what head and loss take on top of the activations. The logits that are never made would be targets x vocabulary.

    python benchmarks/long.py                                       # the tiny preset, 1k to 8k tokens
    python benchmarks/long.py --lengths 16384 32768 --blocks 4
    python benchmarks/long.py --vocabulary 151936 --lengths 16384
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import numpy as np
import torch
from engine_runs import peak_bytes

from unmask.attention import get_backend
from unmask.models.checkpoint import new_model
from unmask.objectives.rows import collate, pack_rows, score_targets, target_hidden
from unmask.objectives.semi_ar import SemiAR
from unmask.train.techniques import apply_techniques
from unmask.types import Demonstration

VARIANTS = ("plain", "activation checkpointing", "no loss, activation checkpointing")
PROMPT = 128


def measure(preset: str, vocabulary: int, block_size: int, length: int, budget: int, variant: str, device: str) -> str:
    """A line: seconds, peak memory over the start, tokens forwarded and trained."""
    sizes = {"vocab_size": vocabulary, "block_size": block_size, "max_position_embeddings": length + PROMPT}
    model = new_model(preset, 0, device=device, **sizes).train()
    apply_techniques(model, use_activation_checkpointing="checkpointing" in variant)
    objective, rng = SemiAR(SemiAR.Options(), model.spec, 0), np.random.default_rng(0)
    prompt_ids, response_ids = (rng.integers(5, vocabulary, num).tolist() for num in (PROMPT, length))
    backend = get_backend("auto", model.device)
    for parameter in model.parameters():  # they are there anyway
        parameter.grad = torch.zeros_like(parameter)
    before = peak_bytes(model.device, reset=True)
    start, num_tokens, num_targets = time.perf_counter(), 0, 0
    for pack in pack_rows(objective.rows([Demonstration(0, 0, prompt_ids, response_ids)]), budget):
        batch = collate(pack, model.device)
        if variant.startswith("no loss"):
            loss = target_hidden(model, batch, backend).sum()
        else:
            loss, _ = objective.loss(score_targets(model, batch, backend, excludes_mask=False), batch)
        loss.backward()
        num_tokens, num_targets = num_tokens + batch.input_ids_BL.numel(), num_targets + len(batch.target_ids_N)
    seconds, peak = time.perf_counter() - start, peak_bytes(model.device) - before
    logits = num_targets * vocabulary * 4 / 1e9
    return (
        f"{length:7,} tokens, {variant:<34} {seconds:8.1f} s {peak / 1e9:7.2f} GB   forwarded for each trained "
        f"{num_tokens / num_targets:5.2f}   (logits: {logits:.2f} GB)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sdar/tiny")
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--budget", type=int, default=16384, help="tokens of one forward")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for length in args.lengths:
        for variant in args.variants:
            if args.alone:
                print(measure(args.model, args.vocabulary, args.blocks, length, args.budget, variant, args.device), flush=True)
                continue
            words = [f"--{key}={getattr(args, key)}" for key in ("model", "vocabulary", "blocks", "budget", "device")]
            command = [sys.executable, __file__, "--alone", *words, f"--lengths={length}", f"--variants={variant}"]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
