"""Tokens that SFT forwards for nothing: our packed rows, against rows padded to the longest of their batch.

Padding is every forwarded token that neither stands for a real token of prompt or response (clean, or in a noisy copy) nor is
trained. Lengths are those of GSM8K's training rows in a tokenizer's tokens, or log-normal ones of the same mean and spread.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from unmask.config import Plugin
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import open_source
from unmask.models.checkpoint import new_model
from unmask.objectives import SFT_OBJECTIVES
from unmask.objectives.rows import TrainRow, collate, pack_rows
from unmask.train.demonstrations import demonstration
from unmask.types import Demonstration

SHARED = Path(__file__).parents[2] / "shared" / "data"
MODELS = {
    "block 4": ("sdar/tiny", {"block_size": 4}),
    "block 32": ("sdar/tiny", {"block_size": 32}),
    "full": ("llada/tiny", {}),
}
BAR = 0.15


def real_items(rows: Path, tokenizer: Path, num: int) -> list[Demonstration]:
    source = open_source(Plugin(name="gsm8k", options={"path": str(rows)}), "train", 0)
    chat = ChatTokenizer.load(tokenizer)
    items = [demonstration(source, chat, i, 0, i) for i in range(min(num, len(source)))]
    return [with_ids(i, len(item.prompt_ids), len(item.response_ids)) for i, item in enumerate(items)]


def drawn_items(num: int) -> list[Demonstration]:
    """Prompts of 105 tokens in the mean, responses of 100 (GSM8K with Qwen's tokenizer and template)."""
    rng = np.random.default_rng(0)
    sizes = np.stack([rng.lognormal(math.log(mean) - s * s / 2, s, num) for mean, s in ((105, 0.25), (100, 0.45))], axis=1)
    return [with_ids(i, *np.ceil(size).astype(int).tolist()) for i, size in enumerate(sizes)]


def with_ids(key: int, num_prompt: int, num_response: int) -> Demonstration:
    """Of these lengths; two tokens are unmasked at each step. Prompts differ in their first token."""
    steps = [i // 2 for i in range(num_response)]
    return Demonstration(key, 0, [10 + key, *[5] * (num_prompt - 1)], [6] * num_response, step_map=steps, place=key)


def is_padding(row: TrainRow, item: Demonstration) -> np.ndarray:
    """Bool [L]."""
    is_trained = np.zeros(len(row.input_ids), dtype=bool)
    is_trained[row.target_column] = True
    return (row.position >= len(item.prompt_ids) + len(item.response_ids)) & ~is_trained


def shares(name: str, model: str, items: list[Demonstration], batch_size: int, max_tokens: int) -> tuple[float, float]:
    """The share of padding in our packs, and in the same rows when each is padded to the longest of its batch."""
    preset, overrides = MODELS[model]
    made = SFT_OBJECTIVES[name]
    objective = made(made.Options(), new_model(preset, 0, vocab_size=2048, **overrides).spec, 0)
    num_ours = num_usual = num_real = 0
    for begin in range(0, len(items), batch_size):
        batch = items[begin : begin + batch_size]
        rows_of = [objective.rows([item]) for item in batch]
        lengths = [len(row.input_ids) for rows in rows_of for row in rows]
        num_real += sum(lengths) - sum(
            int(is_padding(row, item).sum()) for item, rows in zip(batch, rows_of, strict=True) for row in rows
        )
        packs = pack_rows([row for rows in rows_of for row in rows], max_tokens)
        num_ours += sum(collate(pack).input_ids_BL.numel() for pack in packs)
        num_usual += max(lengths) * len(lengths)
    return 1 - num_real / num_ours, 1 - num_real / num_usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=SHARED / "gsm8k" / "train_head1000.jsonl")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizers" / "qwen2.5")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=16384, help="of a pack")
    args = parser.parse_args()
    is_there = args.rows.exists() and args.tokenizer.exists()
    items = real_items(args.rows, args.tokenizer, args.examples) if is_there else drawn_items(args.examples)
    num_prompt, num_response = np.mean([[len(item.prompt_ids), len(item.response_ids)] for item in items], axis=0)
    print(
        f"padding of SFT, {len(items)} demonstrations ({'GSM8K' if is_there else 'drawn lengths'}): {num_prompt:.0f} tokens of"
    )
    print(f"prompt and {num_response:.0f} of response in the mean; batches of {args.batch_size}, bar {BAR:.0%}")
    worst = 0.0
    for name in SFT_OBJECTIVES:
        for model in MODELS:
            ours, usual = shares(name, model, items, args.batch_size, args.max_tokens)
            worst = max(worst, ours)
            print(f"  {name:<16} {model:<10} {ours:6.1%}   padded to the longest of the batch {usual:6.1%}")
    if worst > BAR:
        raise SystemExit(f"padding of {worst:.1%} is above the bar")


if __name__ == "__main__":
    main()
