"""`unmask generate`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.watching import check_terminal, title_of, watch
from unmask.config import GenerateRecipe, Plugin, check, load_recipe
from unmask.config.evaluation import DEFAULT_MODES
from unmask.errors import UnmaskError
from unmask.types import Example, SamplingParams, TraceRecord
from unmask.viewer.animation import check_animation, draw_animation

if TYPE_CHECKING:
    from unmask.data.chat import ChatTokenizer
    from unmask.engine import Engine
    from unmask.rl.scoring import RewardPool


def run_generate(
    checkpoint: str, settings: list[str], prompts: list[str], input_file: Path | None, output: Path | None, *,
    mode: str, device: str, dtype: str, overwrite: bool, turns: dict[str, str], num_responses: int, is_watched: bool,
    gif: Path | None,
) -> None:  # fmt: skip
    """Prints the answers or, with `output`, appends traces as they are finished; rows that are there already are skipped.

    turns: options of `PromptOptions` for all prompts. is_watched: instead of answers, their unmasking is drawn in the terminal,
    one after the other. gif: file for an animation of the only answer. Progress and speed go to stderr.
    """
    if mode and mode not in DEFAULT_MODES:
        raise UnmaskError(f"unknown mode {mode!r}; known: {', '.join(DEFAULT_MODES)}")
    check_dtype(dtype)
    recipe = load_recipe(GenerateRecipe, [], settings, base=DEFAULT_MODES.get(mode))
    params = SamplingParams(**recipe.model_dump(exclude={"engine", "reward"}))
    if bool(prompts) == (input_file is not None):
        raise UnmaskError("give prompts either with --prompt or with --input")
    if is_watched:
        check_terminal()
    from unmask.data.chat import ChatTokenizer
    from unmask.diffusion.remasking import get_strategy
    from unmask.engine import Engine
    from unmask.evaluate.records import fingerprint
    from unmask.launch import find_model_folder, pick_device, pick_precision
    from unmask.models.checkpoint import load_model
    from unmask.rl.scoring import RewardPool

    get_strategy(params.remasking_strategy)
    examples = _examples(prompts, input_file, turns)
    if gif is not None:
        check_animation(gif)
        if (num := len(examples) * num_responses) != 1:
            raise UnmaskError(
                f"--gif draws one answer, and there are {num}: write traces with --output, then unmask view --gif --record"
            )
    rewards = None if recipe.reward is None else RewardPool(recipe.reward)
    if rewards is not None:
        rewards.check(examples)
    target = pick_device(device)
    folder = find_model_folder(checkpoint)
    model = load_model(folder, device=target, dtype=pick_precision(dtype, target))
    tokenizer = ChatTokenizer.load(folder)
    engine = Engine(model, decode=tokenizer.decode, **recipe.engine.model_dump())
    name = f"{folder.name}@{fingerprint(folder)}"
    ids = [(example.id, member) for example in examples for member in range(num_responses)]

    def decode(done: Sequence[TraceRecord]) -> Iterator[TraceRecord]:
        return _decode(engine, tokenizer, examples, params, name, rewards, num_responses, done, is_watched=is_watched)

    records: list[TraceRecord] = []
    with rewards or nullcontext():
        if output is None:
            for record in in_order(decode([]), ids):
                if not is_watched:
                    print(record.response_text, flush=True)
                records.append(record)
        else:
            records = write_traces(output, ids, name, overwrite, decode)
            print(output)
    if gif is not None:
        draw_animation([records[0]], gif)
        print(gif, file=sys.stdout if output is not None else sys.stderr)  # an answer stands alone in the output


def check_dtype(dtype: str) -> None:
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UnmaskError(f"unknown dtype {dtype!r}; known: auto, float32, bfloat16")


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
    rewards: RewardPool | None, num_responses: int, done: Sequence[TraceRecord], *, is_watched: bool,
) -> Iterator[TraceRecord]:  # fmt: skip
    """A record for every response that is not among those done, as soon as all responses to its example are finished; shows
    progress, or the unmasking itself."""
    from unmask.evaluate.records import check_finished, trace_record
    from unmask.rl.rollout import GroupScoring, seeded_params
    from unmask.train.progress import Progress

    every = seeded_params(engine, tokenizer, params, len(examples), num_responses)
    finished = {(record.id, record.member): record.trace for record in done}
    prompts = [tokenizer.prompt_ids(example) for example in examples]
    scoring = GroupScoring(tokenizer, examples, num_responses, rewards)
    left, there = [], {}
    for number, p in enumerate(every):
        index, member = divmod(number, num_responses)
        if (old := finished.get((examples[index].id, member))) is None:
            left.append(number)
            continue
        check_finished(examples[index].id, old, prompts[index], p.model_dump(mode="json"))
        there[number] = old
    open_places = dict.fromkeys(number // num_responses for number in left)  # examples that lack responses
    for number, old in there.items():
        if number // num_responses in open_places:  # its score is part of theirs
            scoring.add(number, old)

    def records(place: int) -> Iterator[TraceRecord]:
        del open_places[place]
        group = scoring.group(place)
        for member, rollout in enumerate(group.rollouts):
            if (group.example.id, member) not in finished:
                yield trace_record(group.example, rollout, tokenizer, member=member, checkpoint=checkpoint)

    start = time.monotonic()
    num_tokens = num_forwards = num_finished = 0
    wanted = [prompts[n // num_responses] for n in left], [every[n] for n in left]
    if is_watched:
        titles = [title_of(examples[n // num_responses], n % num_responses, num_responses) for n in left]
        stream = watch(engine, *wanted, titles, tokenizer.shares)
    else:
        stream = engine.stream(*wanted)
    with Progress("decoding", len(every), len(finished), unit="answer", is_quiet=is_watched) as progress, closing(stream):
        for number, news in stream:
            num_tokens += len(news.new_ids)
            num_forwards = engine.stats.num_denoising_forwards
            if news.trace is not None:
                num_finished += 1
                scoring.add(left[number], news.trace)
                for place in scoring.scored():
                    yield from records(place)
            numbers = {
                "tokens/s": num_tokens / (time.monotonic() - start), "tokens per forward": num_tokens / max(1, num_forwards)
            }  # fmt: skip
            progress.show(len(finished) + num_finished, numbers)
        for place in list(open_places):
            yield from records(place)
    seconds = time.monotonic() - start
    speed = f"{num_tokens / max(seconds, 1e-9):.0f} tokens/s, {num_tokens / max(1, num_forwards):.2f} tokens per forward"
    skipped = f" ({len(finished)} were there already)" if finished else ""
    print(f"{num_finished} answers, {num_tokens} tokens in {seconds:.1f} s: {speed}{skipped}", file=sys.stderr)


def in_order(records: Iterator[TraceRecord], ids: Sequence[tuple[str, int]]) -> Iterator[TraceRecord]:
    """Each record as soon as all those before it are there."""
    waiting: dict[tuple[str, int], TraceRecord] = {}
    next_id = iter(ids)
    wanted = next(next_id, None)
    for record in records:
        waiting[record.id, record.member] = record
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted = next(next_id, None)


def write_traces(
    output: Path, ids: Sequence[tuple[str, int]], checkpoint: str, overwrite: bool,
    make: Callable[[Sequence[TraceRecord]], Iterator[TraceRecord]],
) -> list[TraceRecord]:  # fmt: skip
    """Appends whole lines as they are finished; at the end the file is put into the order of `ids` (example, member).

    make: all records but those that are there already. Returns what the file then holds. Raises `UnmaskError` for a file with
    anything else in it.
    """
    from unmask.evaluate.records import read_finished, write_records
    from unmask.metrics import JsonlWriter

    done = [] if overwrite else read_finished(output, {name for name, _ in ids}, checkpoint)
    records = {(record.id, record.member): record for record in done}
    if beyond := sorted(records.keys() - set(ids)):
        raise UnmaskError(f"{output}: has response {beyond[0][1]} of row {beyond[0][0]!r}; choose another file, or --overwrite")
    writer: JsonlWriter | None = None
    try:
        for record in make(done):
            if writer is None:
                if overwrite:
                    output.unlink(missing_ok=True)
                writer = JsonlWriter(output)
            writer.write(record.to_dict())
            records[record.id, record.member] = record
    finally:
        if writer is not None:
            writer.close()
    in_file = [records[key] for key in ids]
    write_records(output, in_file)
    return in_file
