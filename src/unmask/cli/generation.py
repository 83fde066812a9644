"""`unmask generate`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.config import GenerateRecipe, Plugin, check, load_recipe
from unmask.config.evaluation import DEFAULT_MODES
from unmask.errors import UnmaskError
from unmask.types import Example, Rollout, SamplingParams, Trace, TraceRecord

if TYPE_CHECKING:
    from unmask.data.chat import ChatTokenizer
    from unmask.engine import Engine


def run_generate(
    checkpoint: str, settings: list[str], prompts: list[str], input_file: Path | None, output: Path | None, *,
    mode: str, device: str, dtype: str, overwrite: bool, turns: dict[str, str],
) -> None:  # fmt: skip
    """Prints the answers or, with `output`, appends traces as they are finished; rows that are there already are skipped.

    turns: options of `PromptOptions` for all prompts. Progress and speed go to stderr.
    """
    if mode and mode not in DEFAULT_MODES:
        raise UnmaskError(f"unknown mode {mode!r}; known: {', '.join(DEFAULT_MODES)}")
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UnmaskError(f"unknown dtype {dtype!r}; known: auto, float32, bfloat16")
    recipe = load_recipe(GenerateRecipe, [], settings, base=DEFAULT_MODES.get(mode))
    params = SamplingParams(**recipe.model_dump(exclude={"engine"}))
    if bool(prompts) == (input_file is not None):
        raise UnmaskError("give prompts either with --prompt or with --input")
    from unmask.data.chat import ChatTokenizer
    from unmask.diffusion.remasking import get_strategy
    from unmask.engine import Engine
    from unmask.evaluate.records import fingerprint
    from unmask.launch import find_model_folder, pick_device, pick_precision
    from unmask.models.checkpoint import load_model

    get_strategy(params.remasking_strategy)
    examples = _examples(prompts, input_file, turns)
    target = pick_device(device)
    folder = find_model_folder(checkpoint)
    model = load_model(folder, device=target, dtype=pick_precision(dtype, target))
    tokenizer = ChatTokenizer.load(folder)
    engine = Engine(model, decode=tokenizer.decode, **recipe.engine.model_dump())
    name = f"{folder.name}@{fingerprint(folder)}"
    if output is None:
        for record in _in_order(_decode(engine, tokenizer, examples, params, name), [e.id for e in examples]):
            print(record.response_text, flush=True)
    else:
        _write(output, engine, tokenizer, examples, params, name, overwrite)
        print(output)


def _examples(prompts: list[str], input_file: Path | None, turns: dict[str, str]) -> list[Example]:
    """Raises `UnmaskError` for bad lines and for an id that is there twice."""
    from unmask.data.problems import Problem
    from unmask.data.prompts import PromptOptions, make_example
    from unmask.data.sources import open_source

    if input_file is None:
        problems = (Problem("--prompt", prompt, id=str(i)) for i, prompt in enumerate(prompts))
        return [make_example(problem, check(PromptOptions, turns)) for problem in problems]
    source = open_source(Plugin(name="jsonl", options={"path": str(input_file), **turns}), "train", 0)
    return [source[i] for i in range(len(source))]


def _decode(
    engine: Engine, tokenizer: ChatTokenizer, examples: Sequence[Example], params: SamplingParams, checkpoint: str,
    done: Sequence[TraceRecord] = (),
) -> Iterator[TraceRecord]:  # fmt: skip
    """A record for every example that is not among those done, as soon as it is finished; shows progress."""
    from unmask.evaluate.records import check_finished
    from unmask.rl.rollout import seeded_params
    from unmask.train.progress import Progress

    every = seeded_params(engine, tokenizer, params, len(examples))
    finished = {record.id: record.trace for record in done}
    prompts = [tokenizer.prompt_ids(example) for example in examples]
    for example, prompt, p in zip(examples, prompts, every, strict=True):
        if (old := finished.get(example.id)) is not None:
            check_finished(example.id, old, prompt, p.model_dump(mode="json"))
    left = [i for i, example in enumerate(examples) if example.id not in finished]
    start = time.monotonic()
    num_tokens = num_forwards = num_finished = 0
    stream = engine.stream([prompts[i] for i in left], [every[i] for i in left])
    with Progress("decoding", len(examples), len(finished), unit="answer") as progress, closing(stream):
        for index, news in stream:
            num_tokens += len(news.new_ids)
            num_forwards = engine.stats.num_denoising_forwards
            if news.trace is not None:
                num_finished += 1
                yield _record(examples[left[index]], news.trace, tokenizer, checkpoint)
            numbers = {
                "tokens/s": num_tokens / (time.monotonic() - start), "tokens per forward": num_tokens / max(1, num_forwards)
            }  # fmt: skip
            progress.show(len(finished) + num_finished, numbers)
    seconds = time.monotonic() - start
    speed = f"{num_tokens / max(seconds, 1e-9):.0f} tokens/s, {num_tokens / max(1, num_forwards):.2f} tokens per forward"
    skipped = f" ({len(finished)} were there already)" if finished else ""
    print(f"{num_finished} answers, {num_tokens} tokens in {seconds:.1f} s: {speed}{skipped}", file=sys.stderr)


def _record(example: Example, trace: Trace, tokenizer: ChatTokenizer, checkpoint: str) -> TraceRecord:
    from unmask.evaluate.records import trace_record

    return trace_record(example, Rollout(trace, tokenizer.decode(trace.response_ids)), tokenizer, checkpoint=checkpoint)


def _in_order(records: Iterator[TraceRecord], ids: Sequence[str]) -> Iterator[TraceRecord]:
    """Each record as soon as all those before it are there."""
    waiting: dict[str, TraceRecord] = {}
    next_id = iter(ids)
    wanted = next(next_id, None)
    for record in records:
        waiting[record.id] = record
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted = next(next_id, None)


def _write(
    output: Path, engine: Engine, tokenizer: ChatTokenizer, examples: Sequence[Example], params: SamplingParams,
    checkpoint: str, overwrite: bool,
) -> None:  # fmt: skip
    """Appends whole lines as answers are finished; at the end the file is put into the order of the input."""
    from unmask.evaluate.records import read_finished, write_records
    from unmask.metrics import JsonlWriter

    done = [] if overwrite else read_finished(output, {example.id for example in examples}, checkpoint)
    records = {record.id: record for record in done}
    writer: JsonlWriter | None = None
    try:
        for record in _decode(engine, tokenizer, examples, params, checkpoint, done):
            if writer is None:
                if overwrite:
                    output.unlink(missing_ok=True)
                writer = JsonlWriter(output)
            writer.write(record.to_dict())
            records[record.id] = record
    finally:
        if writer is not None:
            writer.close()
    write_records(output, [records[example.id] for example in examples])
