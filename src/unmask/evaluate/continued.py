"""An evaluation that keeps its traces in a file as they are decoded, and takes up where an interrupted one stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from unmask.data.chat import ChatTokenizer
from unmask.engine import Engine
from unmask.evaluate import Evaluation, evaluate
from unmask.evaluate.records import check_finished, read_finished, trace_record, write_records
from unmask.metrics import JsonlWriter
from unmask.rl.rollout import seeded_params
from unmask.rl.scoring import RewardPool
from unmask.types import Example, Rollout, SamplingParams, Trace, TraceRecord


def evaluate_in_file(
    engine: Engine, tokenizer: ChatTokenizer, examples: Sequence[Example], params: SamplingParams, rewards: RewardPool,
    num_responses: int, file: Path | None, checkpoint: str, show: Callable[[int, Trace | None], None],
) -> Evaluation:  # fmt: skip
    """As `evaluate`. What the file has is scored again, not decoded again; at the end it has all traces with their rewards, in
    order. show: called with the number of responses that are there, and the newest trace.

    Raises `UnmaskError` for a file with traces of another checkpoint, of other examples or other settings.
    """
    finished = {} if file is None else _read(file, engine, tokenizer, examples, params, num_responses, checkpoint)
    num_there = len(finished)
    show(num_there, None)

    def record(index: int, rollout: Rollout) -> TraceRecord:
        example, member = examples[index // num_responses], index % num_responses
        return trace_record(example, rollout, tokenizer, member=member, checkpoint=checkpoint)

    with ExitStack() as stack:
        writer = None
        if file is not None:
            writer = JsonlWriter(file)
            stack.callback(writer.close)

        def keep(index: int, trace: Trace) -> None:
            nonlocal num_there
            num_there += 1
            if writer is not None:
                writer.write(record(index, Rollout(trace, tokenizer.decode(trace.response_ids))).to_dict())
            show(num_there, trace)

        result = evaluate(
            engine, tokenizer, examples, params, rewards, num_responses=num_responses, finished=finished, on_finished=keep
        )
    if file is not None:
        rollouts = [rollout for group in result.groups for rollout in group.rollouts]
        write_records(file, (record(index, rollout) for index, rollout in enumerate(rollouts)))
    return result


def _read(
    file: Path, engine: Engine, tokenizer: ChatTokenizer, examples: Sequence[Example], params: SamplingParams,
    num_responses: int, checkpoint: str,
) -> dict[int, Trace]:  # fmt: skip
    places = {example.id: place for place, example in enumerate(examples)}
    records = read_finished(file, set(places), checkpoint)
    if not records:
        return {}
    seeded = seeded_params(engine, tokenizer, params, len(examples), num_responses, ("eval",))
    prompts = {example.id: tokenizer.prompt_ids(example) for example in examples}
    found = {}
    for record in records:
        index = places[record.id] * num_responses + record.member
        if record.member < num_responses:
            check_finished(record.id, record.trace, prompts[record.id], seeded[index].model_dump(mode="json"))
            found[index] = record.trace
    return found
