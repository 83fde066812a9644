"""`unmask generate`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from unmask.config import Plugin, load_recipe
from unmask.errors import UnmaskError
from unmask.types import Example, Message, SamplingParams


def run_generate(
    checkpoint: str, settings: list[str], prompts: list[str], input_file: Path | None, output: Path | None, device: str
) -> None:
    """Prints the answers (or, with `output`, writes traces); speed goes to stderr."""
    params = load_recipe(SamplingParams, [], settings)
    if bool(prompts) == (input_file is not None):
        raise UnmaskError("give prompts either with --prompt or with --input")
    from unmask.data.chat import ChatTokenizer
    from unmask.data.sources import open_source
    from unmask.diffusion.remasking import get_strategy
    from unmask.evaluate import trace_record, write_records
    from unmask.launch import find_model_folder, pick_device
    from unmask.models.checkpoint import load_model
    from unmask.rl.rollout import make_rollouts

    get_strategy(params.remasking_strategy)
    if input_file is not None:
        source = open_source(Plugin(name="jsonl", options={"path": str(input_file)}), "train", 0)
        examples = [source[i] for i in range(len(source))]
    else:
        turns = (Message(role="user", content=prompt) for prompt in prompts)
        examples = [Example(id=str(i), messages=(turn,)) for i, turn in enumerate(turns)]
    target = pick_device(device)
    folder = find_model_folder(checkpoint)
    model, tokenizer = load_model(folder, device=target), ChatTokenizer.load(folder)
    start = time.monotonic()
    groups = make_rollouts(model, tokenizer, examples, params, None)
    seconds = time.monotonic() - start
    if output is not None:
        write_records(output, [trace_record(group, tokenizer) for group in groups])
        print(output)
    else:
        for group in groups:
            print(group.rollouts[0].text)
    traces = [group.rollouts[0].trace for group in groups]
    num_tokens, num_forwards = sum(t.num_response_tokens for t in traces), sum(t.num_forwards for t in traces)
    speed = f"{num_tokens / seconds:.0f} tokens/s, {num_tokens / num_forwards:.2f} tokens per forward"
    print(f"{len(traces)} answers, {num_tokens} tokens in {seconds:.1f} s: {speed}", file=sys.stderr)
