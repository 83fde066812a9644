"""A policy update on our packed rows against the published row layout: same traces, same decoder, one run.

Published: a row of prompt + 2 x response per round of a response, padded to the longest, one row at a time, dense mask,
logits everywhere, and an extra pass for the old log-probabilities (published_layout.py). Ours: one noisy copy per live
(block, step) pair, packed, logits at the targets, old log-probabilities from the sampler. Lengths are whole blocks, where the
two see the same states; the losses and gradients are compared. Without the optimizer's step, which is the same for both.

    python benchmarks/update.py                         # CPU, three settings, a small decoder
    python benchmarks/update.py --device cuda --size 1.7b --setting equal-4
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch
from engine_runs import peak_bytes
from timing import median_seconds, print_ratios
from update_runs import Setting, Updates, synthetic_rollouts, time_shares

from unmask.attention import get_backend
from unmask.models import Decoder
from unmask.models.checkpoint import new_model

SETTINGS = {
    "equal-4": Setting(4, (128, 128), (512, 512)),
    "equal-16": Setting(16, (128, 128), (512, 512)),
    "lognormal-4": Setting(4, (32, 200), (4, 1024), mean=256, sigma=0.7, group_size=8),
}
RESPONSES = {"equal-4": 4, "equal-16": 2, "lognormal-4": 16}
PER_STEP = 2.4
SIDES = ("published", "ours")
SMALL = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "intermediate_size": 768, "vocab_size": 2048, "tie_word_embeddings": True,
}  # fmt: skip


def make_model(args: argparse.Namespace) -> Decoder:
    if args.size == "benchmark":
        return new_model("sdar/tiny", 0, device=args.device, **SMALL)
    return new_model(f"sdar/{args.size}", 0, device=args.device, dtype="bfloat16" if args.device == "cuda" else "float32")


def make_updates(args: argparse.Namespace, name: str) -> Updates:
    model = make_model(args)
    num_responses = args.responses or RESPONSES[name]
    rollouts = synthetic_rollouts(SETTINGS[name], num_responses, PER_STEP, model.spec.vocab_size, is_even=args.even)
    backend = get_backend(args.backend, model.device)
    return Updates(model, rollouts, backend, args.max_tokens)


def print_peak(args: argparse.Namespace, name: str) -> None:
    """Bytes that an update takes above the model, its gradients and what a small update leaves behind (child process)."""
    updates = make_updates(args, name)
    small = synthetic_rollouts(Setting(4, (8, 8), (16, 16)), 1, PER_STEP, updates.model.spec.vocab_size)
    Updates(updates.model, small, updates.backend, updates.max_tokens).run(args.peak_of)
    before = peak_bytes(updates.model.device, reset=True)
    updates.run(args.peak_of)
    print(peak_bytes(updates.model.device) - before)


def measure_peak(argv: list[str], name: str, side: str) -> int:
    """In a fresh process: what one side has left behind in the allocator is no room for the other."""
    command = [sys.executable, __file__, *argv, "--setting", name, "--peak-of", side]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(args: argparse.Namespace, argv: list[str], name: str) -> None:
    updates = make_updates(args, name)
    updates.record_logprobs()
    result, gradients = {}, {}
    for side in SIDES:  # also the warm-up
        result[side] = updates.run(side)
        gradients[side] = updates.gradients()
    (loss, tokens), (our_loss, our_tokens) = result["published"], result["ours"]
    pairs = list(zip(gradients["published"], gradients["ours"], strict=True))
    off = max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)

    num_tokens = sum(len(r.trace.canvas_ids) for r in updates.rollouts)
    num_steps = sum(r.trace.num_forwards for r in updates.rollouts)
    print(f"\n{name}: {len(updates.rollouts)} responses, {num_tokens} tokens, {num_tokens / num_steps:.2f} per step")
    print(f"  loss {loss:.7f}, differs by {abs(loss - our_loss):.0e}; gradients by {off:.0e} of a tensor's largest entry")
    print(f"  tokens forwarded: {tokens} (half of them without gradients) -> {our_tokens}")

    def turn(side: str) -> None:
        updates.run(side)
        if args.device == "cuda":
            torch.cuda.synchronize()

    seconds = median_seconds({side: lambda s=side: turn(s) for side in SIDES}, args.rounds, warm_up=0)
    notes = {}
    if args.device == "cuda":
        share = {side: updates.flops(side) / seconds[side] / (args.peak_tflops * 1e12) for side in SIDES}
        notes = {side: f"model FLOPs utilisation {value:.1%}" for side, value in share.items()}
    print_ratios("  seconds", seconds, "published", notes)
    if not args.quick:
        peak = {side: measure_peak(argv, name, side) for side in SIDES}
        mb = {side: f"{peak[side] / 2**20:.0f} MiB" for side in SIDES}
        ratio = peak["ours"] / peak["published"]
        print(f"  peak memory of an update: one published row {mb['published']}, ours {mb['ours']}: {ratio:.2f} of it")
        for side in SIDES:
            shares = ", ".join(f"{kind} {share:.0%}" for kind, share in time_shares(updates, side).items())
            print(f"  time of {side}: {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="may be repeated; all if not given")
    parser.add_argument("--responses", type=int, help="of an update; the default keeps a run to minutes")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--max-tokens", type=int, default=1536, help="of a pack")
    parser.add_argument("--even", action="store_true", help="all blocks are equally easy, and few take many steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", default="benchmark", help="a size of the sdar family, or the benchmark's own")
    parser.add_argument("--backend", default="auto", help="attention of our side")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, dense bfloat16")
    parser.add_argument("--quick", action="store_true", help="seconds only: no memory, no profile")
    parser.add_argument("--peak-of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print_peak(args, args.setting[-1])
        return
    kept = ("responses", "max_tokens", "threads", "device", "size", "backend")
    argv = [f"--{key.replace('_', '-')}={getattr(args, key)}" for key in kept if getattr(args, key) is not None]
    argv += ["--even"] * args.even
    for name in args.setting or SETTINGS:
        compare(args, argv, name)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
