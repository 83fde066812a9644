"""`unmask traces`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.types import Demonstration, Example, Rollout, TraceRecord

if TYPE_CHECKING:
    from unmask.data.chat import ChatTokenizer
    from unmask.models import Decoder
    from unmask.objectives.preferred_order import OrderParams


def run_traces(
    checkpoint: str, name: str, settings: list[str], output: Path | None, *, split: str, tokens_per_step: int,
    confidence_threshold: float | None, block_size: int | None, max_tokens: int, device: str, dtype: str, overwrite: bool,
) -> None:  # fmt: skip
    """Prints the trace of each demonstration as a line of JSON or, with `output`, appends it there as soon as it is finished;
    rows that are there already are skipped."""
    from unmask.cli.data import find_source, find_splits
    from unmask.cli.generation import check_dtype, in_order, write_traces
    from unmask.data.chat import ChatTokenizer
    from unmask.data.sources import open_source
    from unmask.evaluate.records import fingerprint
    from unmask.launch import find_model_folder, pick_device, pick_precision
    from unmask.models.checkpoint import load_model
    from unmask.objectives.preferred_order import OrderParams
    from unmask.train.demonstrations import demonstration

    check_dtype(dtype)
    plugin, seed = find_source(name, settings)
    [of] = find_splits(split or "train")
    source = open_source(plugin, of, seed)
    target = pick_device(device)
    folder = find_model_folder(checkpoint)
    tokenizer = ChatTokenizer.load(folder)
    items = [demonstration(source, tokenizer, i, 0) for i in range(len(source))]
    examples = [source[i] for i in range(len(source))]
    model = load_model(folder, device=target, dtype=pick_precision(dtype, target))
    order = OrderParams(tokens_per_step, confidence_threshold, block_size, tokenizer.stop_ids(model.spec.eos_token_ids))
    label = f"{folder.name}@{fingerprint(folder)}"
    ids = [(example.id, 0) for example in examples]

    def record(done: Sequence[TraceRecord]) -> Iterator[TraceRecord]:
        return _record(model, tokenizer, examples, items, order, label, max_tokens, done)

    if output is None:
        for line in in_order(record([]), ids):
            print(json.dumps(line.to_dict(), ensure_ascii=False), flush=True)
    else:
        write_traces(output, ids, label, overwrite, record)
        print(output)


def _record(
    model: Decoder, tokenizer: ChatTokenizer, examples: Sequence[Example], items: Sequence[Demonstration], order: OrderParams,
    checkpoint: str, max_tokens: int, done: Sequence[TraceRecord],
) -> Iterator[TraceRecord]:  # fmt: skip
    """A record for every example that is not among those done; shows progress."""
    from unmask.attention import get_backend
    from unmask.evaluate.records import check_finished, trace_record
    from unmask.objectives.preferred_order import preferred_orders
    from unmask.train.progress import Progress

    finished = {record.id: record.trace for record in done}
    settings = order.sampling(model.spec).model_dump(mode="json")
    for example, item in zip(examples, items, strict=True):
        if (old := finished.get(example.id)) is None:
            continue
        its_length = {"max_new_tokens": old.settings.get("max_new_tokens")}  # that of the answer
        check_finished(example.id, old, item.prompt_ids, settings | its_length, item.response_ids)
    left = [i for i, example in enumerate(examples) if example.id not in finished]
    start, num_tokens = time.monotonic(), 0
    answers = ((items[i].prompt_ids, items[i].response_ids) for i in left)
    backend = get_backend("auto", model.device)
    with Progress("ordering", len(examples), len(finished), unit="answer") as progress:
        for number, (index, trace) in enumerate(
            preferred_orders(model, answers, order, backend=backend, max_tokens=max_tokens), 1
        ):
            num_tokens += trace.num_response_tokens
            rollout = Rollout(trace, tokenizer.decode(trace.response_ids))
            yield trace_record(examples[left[index]], rollout, tokenizer, checkpoint=checkpoint)
            progress.show(len(finished) + number, {"tokens/s": num_tokens / (time.monotonic() - start)})
    skipped = f" ({len(finished)} were there already)" if finished else ""
    seconds = time.monotonic() - start
    print(f"{len(left)} answers, {num_tokens} tokens in {seconds:.1f} s{skipped}", file=sys.stderr)
