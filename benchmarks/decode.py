"""Decoding: block cache and batching against the plain sampler, in one run, with an imposed step pattern.

Random weights are never confident, so a threshold below 1/vocabulary or above 1 imposes how many tokens a step unmasks.
"""

from __future__ import annotations

import argparse

from timing import median_seconds, print_ratios

from unmask.diffusion.generate import generate
from unmask.models.checkpoint import new_model
from unmask.types import SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    special = {"vocab_size": 512, "eos_token_id": [1], "pad_token_id": 0, "mask_token_id": 2}
    model = new_model("sdar/tiny", 0, **special)
    prompts = [[3 + (i * 7 + j) % 500 for j in range(17 + i)] for i in range(args.sequences)]
    for title, settings in (
        ("one token a step", {"confidence_threshold": 1.0}),
        ("half a block a step", {"remasking_strategy": "low_confidence_static", "denoising_steps_per_block": 2}),
    ):
        params = SamplingParams(max_new_tokens=args.new_tokens, stop_token_ids=(), **settings)
        plain = params.model_copy(update={"cache": "none"})
        traces = generate(model, prompts, params)
        tokens = sum(t.num_response_tokens for t in traces)
        seconds = median_seconds(
            {
                "no cache, one at a time": lambda p=plain: generate(model, prompts, p, max_batch_size=1),
                "no cache, batched": lambda p=plain: generate(model, prompts, p),
                "block cache, one at a time": lambda p=params: generate(model, prompts, p, max_batch_size=1),
                "block cache, batched": lambda p=params: generate(model, prompts, p),
            },
            args.rounds,
        )
        notes = {name: f"{tokens / value:8.0f} tokens/s" for name, value in seconds.items()}
        forwards = sum(t.num_forwards for t in traces)
        title = f"{title}: {args.sequences} sequences, {args.new_tokens} new tokens, {tokens / forwards:.2f} tokens per forward"
        print_ratios(title, seconds, "no cache, one at a time", notes)


if __name__ == "__main__":
    main()
