"""What a rank of `benchmarks/scale.py` measures besides whole runs: `scale_rank.py KIND FOLDER`, alone or under torchrun.

The first rank prints one line of JSON. Kinds: "machine", what device, memory and exchanges do while all ranks are at it;
"saving", how long a checkpoint holds up the step; "host", what an engine's bookkeeping, rows and pickled groups take.
"""

from __future__ import annotations

import json
import pickle
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from update_runs import Setting, synthetic_rollouts

from unmask import Engine, SamplingParams, load_model, new_model
from unmask.config.training import OptimizerConfig
from unmask.dist import Ranks, joined_ranks
from unmask.objectives.rows import fit_rows, share_packs
from unmask.objectives.trace_rl import TraceRL
from unmask.train.saving import CheckpointWriter
from unmask.train.trainer import Trainer
from unmask.types import Example, Message, RolloutGroup

ROUNDS = 5


def times_of(run: Callable[[], object], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each round, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        start = clock()
        run()
        times.append(clock() - start)
    return times[1:]


def median_s(run: Callable[[], object], clock: Callable[[], float]) -> float:
    return statistics.median(times_of(run, clock=clock))


def machine(folder: Path, ranks: Ranks) -> dict[str, float]:
    """peak: operations per second of products as the model has them (512 tokens); bandwidth: bytes read and written by
    copies of 64 MB; of several ranks, ring bandwidths of gloo with 32 MB, and its latency: a gather of 1 KB. Of the
    fastest rounds: what else runs here shall not count."""
    spec = load_model(folder).spec
    x, w = torch.randn(512, spec.hidden_size), torch.randn(spec.hidden_size, spec.intermediate_size)
    source, target = torch.randn(2**24), torch.empty(2**24)
    if ranks.size > 1:
        dist.barrier()
    products_s = min(times_of(lambda: [x @ w for _ in range(10)], 41)) / 10
    if ranks.size > 1:
        dist.barrier()
    copy_s = min(times_of(lambda: target.copy_(source), 11))
    found = {"peak": 2 * x.numel() * w.shape[1] / products_s, "bandwidth": 2 * 4 * source.numel() / copy_s}
    if ranks.size == 1:
        return found
    n, whole = ranks.size, torch.randn(2**23)
    part = whole[: len(whole) // n].clone()
    num_bytes, share = 4 * len(whole), (n - 1) / n
    found["all_gather"] = share * num_bytes / min(times_of(lambda: dist.all_gather_into_tensor(whole, part)))
    found["reduce_scatter"] = share * num_bytes / min(times_of(lambda: dist.reduce_scatter_tensor(part, whole)))
    found["all_reduce"] = 2 * share * num_bytes / min(times_of(lambda: dist.all_reduce(whole)))
    small, smaller = torch.zeros(256), torch.zeros(256 // n)
    found["latency"] = min(times_of(lambda: dist.all_gather_into_tensor(small, smaller), 51)) / (n - 1)
    return found


def saving(folder: Path, ranks: Ranks) -> dict[str, list[float]]:
    """Seconds of `CheckpointWriter.save`, with the step that it holds up: asynchronous (and, apart, until all is written),
    synchronous. The weights are sharded over all ranks and the optimizer has its state."""
    trainer = Trainer(
        load_model(folder),
        OptimizerConfig(),
        max_optimizer_steps=10,
        max_tokens_per_micro_batch=1024,
        shard_size=0,
        ranks=ranks,
    )
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    found: dict[str, list[float]] = {"asynchronous": [], "written": [], "synchronous": []}
    scratch = ranks.of_first(tempfile.mkdtemp() if ranks.is_first else None)
    assert scratch is not None
    kinds = ("asynchronous", "synchronous")
    writers = [
        CheckpointWriter(
            Path(scratch) / "checkpoints", {"": trainer}, folder, ranks, keep_last=1, is_asynchronous=kind == "asynchronous"
        )
        for kind in kinds
    ]
    for i in range(2 * (ROUNDS + 1)):
        kind, writer = kinds[i % 2], writers[i % 2]
        ranks.of_first(None)
        start = time.perf_counter()
        writer.save(i + 1, {})
        blocked = max(ranks.gather(time.perf_counter() - start))
        writer.wait()
        written = max(ranks.gather(time.perf_counter() - start))
        if i >= 2:  # the first of each warms up
            found[kind].append(blocked)
            if kind == "asynchronous":
                found["written"].append(written)
    if ranks.is_first:
        shutil.rmtree(scratch)
    return found


def host(folder: Path, ranks: Ranks) -> dict[str, float]:
    """See `Machine`: forward_s and row_s of an engine whose model is next to nothing (its products are in them), by 32 and
    256 sequences; rows_s, gather_s, pickled_bytes on responses of 600 tokens. Seconds of the processor: what else runs here
    does not count."""
    clock = time.process_time
    model = new_model("sdar/tiny", 0, hidden_size=16, head_dim=4, intermediate_size=16, num_hidden_layers=1)
    seconds = {}
    for num in (32, 256):
        params = [SamplingParams(max_new_tokens=48, ignore_eos=True, seed=i) for i in range(num)]
        engine = Engine(model, max_sequences=num, num_pages=num * 8)
        prompts = [[5, 6, 7, 8] * 4 for _ in range(num)]
        engine.generate(prompts, params)
        num_forwards = engine.stats.num_forwards  # the same each time
        seconds[num] = median_s(lambda: engine.generate(prompts, params), clock=clock) / num_forwards  # noqa: B023
    row_s = (seconds[256] - seconds[32]) / (256 - 32)
    setting = Setting(4, (128, 128), (600, 600), group_size=8)
    rollouts = synthetic_rollouts(setting, 64, 2.4, model.spec.vocab_size)
    num_tokens = sum(len(rollout.trace.canvas_ids) for rollout in rollouts)
    objective = TraceRL(TraceRL.Options(), model.spec)

    def make_rows() -> None:
        share_packs(fit_rows(objective.rows(rollouts, len(rollouts)), 8192), 8192, 8)

    example = Example(id="example", messages=[Message(role="user", content="How many?")], answer="4")
    for rollout in rollouts:
        rollout.text = "x" * (3 * len(rollout.trace.canvas_ids))
        rollout.trace.logprobs = [-0.1 * (i % 7 + 1) for i in range(len(rollout.trace.canvas_ids))]
        rollout.trace.confidences = [0.1 * (i % 7 + 1) for i in range(len(rollout.trace.canvas_ids))]
    groups = {0: RolloutGroup(example, rollouts)}
    data = pickle.dumps(groups)
    return {
        "forward_s": seconds[32] - 32 * row_s, "row_s": row_s, "rows_s": median_s(make_rows, clock=clock) / num_tokens,
        "gather_s": median_s(lambda: pickle.loads(data), clock=clock) / num_tokens, "pickled_bytes": len(data) / num_tokens,
    }  # fmt: skip


KINDS: dict[str, Callable] = {"machine": machine, "saving": saving, "host": host}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined_ranks(torch.device("cpu")) as ranks:
        result = KINDS[sys.argv[1]](Path(sys.argv[2]), ranks)
        if ranks.is_first:
            print(json.dumps(result))
