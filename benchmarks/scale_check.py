"""The cost model against what was measured: two ranks from one (here), update and decoding of one GPU (where there is one)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from cost_model import (
    H100,
    Link,
    Machine,
    Setting,
    optimizer_s,
    pack_sizes,
    passes,
    publish_s,
    response_work,
    update_flops,
)
from cost_of_decoding import PARTS, decode_parts, gather_s
from imposed import ImposedSteps
from update_runs import Setting as Lengths
from update_runs import synthetic_rollouts

from unmask import Engine, SamplingParams, new_model
from unmask.config.training import OptimizerConfig
from unmask.diffusion.remasking import STRATEGIES
from unmask.models.flops import model_flops
from unmask.models.spec import ModelSpec
from unmask.objectives.rows import score_targets
from unmask.objectives.trace_rl import TraceRL
from unmask.train.peak_flops import peak_flops
from unmask.train.timings import Summary
from unmask.train.trainer import Trainer


def this_machine(together: dict[str, float], host: dict[str, float]) -> Machine:
    """A rank of two: constants as scale_rank.py measured them, gloo's by its all-gather."""
    link = Link(together["all_gather"], together["latency"])
    return Machine(
        peak=together["peak"], bandwidth=together["bandwidth"], memory=0.0, per_node=2, inside=link, between=link,
        efficiency=1.0, memory_efficiency=1.0, overlaps=False, wire_bytes=4, weight_bytes=4, head_bytes=4, sampling_bytes=84,
        kernel_s=0.0, **host,
    )  # fmt: skip


def seconds_of(summary: Summary) -> dict[str, float]:
    return {phase.name: phase.seconds for phase in summary.phases}


def from_one_rank(
    spec: ModelSpec, machine: Machine, setting: Setting, one: Summary, num_forwarded: float, slower: float, size: int,
    *, all_reduce: float,
) -> dict[str, float]:  # fmt: skip
    """Seconds of the phases of two ranks. From one rank's come the phases' own rates; from the model how the work is shared out
    and what exchanges take. slower: how much longer products take while both ranks compute; all_reduce: bytes per second."""
    found = seconds_of(one)
    num = setting.prompts * setting.group_size
    num_packs, largest = pack_sizes(np.full(num, num_forwarded / num), setting.max_tokens, 2)
    share = min(1.0, num_packs * largest / num_forwarded) * slower
    if size == 1:
        machine = replace(machine, inside=replace(machine.inside, bandwidth=all_reduce))

    def shared(name: str, *, backward: bool) -> float:
        return passes(spec, machine, share * found[name], num_packs, 2, size, backward=backward).seconds

    lengths = setting.lengths(num)
    halves = np.split(lengths, [-(-setting.prompts // 2) * setting.group_size])
    ratio = max(model_decode_s(spec, machine, setting, half) for half in halves) / model_decode_s(
        spec, machine, setting, lengths
    )
    predicted = {
        "publish": publish_s(spec, machine, size),
        "rollout": found["rollout"] * ratio * slower + gather_s(machine, float(lengths.sum()), 2),
        "rows": found["rows"] * slower,
        "old_logprobs": shared("old_logprobs", backward=False),
        "ref_logprobs": shared("ref_logprobs", backward=False),
        "update": shared("update", backward=True) - optimizer_s(spec, machine, 1) + optimizer_s(spec, machine, size),
    }
    return predicted | {"step": sum(predicted.values())}


def model_decode_s(spec: ModelSpec, machine: Machine, setting: Setting, lengths: np.ndarray) -> float:
    return float(decode_parts(spec, machine, setting, lengths, kv_memory=1e18).sum())


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """Seconds of one device, measured and predicted; implied: the constants with which they would be equal."""

    measured: dict[str, float]
    predicted: dict[str, float]
    implied: dict[str, float]


def check_device(device: str, preset: str, machine: Machine, **sizes: Any) -> DeviceCheck:
    """Update and decoding of a preset on one device, with the trainer and the engine, against the cost model.

    The update: 32 responses of 128 + 512 tokens in packs of 8,192, bfloat16 on GPUs. Decoding: 64 sequences, 256 tokens each,
    2.4 a forward imposed. On CPUs a fraction of that.
    """
    is_gpu = device == "cuda"
    num, new = (32, 512) if is_gpu else (2, 32)
    setting = Setting(
        prompts=num, group_size=1, response=new, sigma=0.0, longest=new, trained_share=1.0, checkpoints_activations=False
    )
    model = new_model(preset, 0, device=device, **sizes)
    spec = model.spec
    trainer = Trainer(
        model, OptimizerConfig(), max_optimizer_steps=100, max_tokens_per_micro_batch=setting.max_tokens,
        precision="bfloat16" if is_gpu else "float32",
    )  # fmt: skip
    rollouts = synthetic_rollouts(Lengths(4, (128, 128), (new, new)), num, setting.per_forward, spec.vocab_size)
    objective = TraceRL(TraceRL.Options(), spec)
    for rollout in rollouts:
        rollout.trace.logprobs = [-1.0] * len(rollout.trace.canvas_ids)
    rows = objective.rows(rollouts, len(rollouts))
    for row in rows:
        row.values["old_logprobs"] = row.values["rollout_logprobs"]

    def update() -> None:
        trainer.update(rows, lambda batch: objective.loss(score_targets(model, batch, trainer.backend), batch))

    measured = {"update": timed(update, device)}
    before = trainer.num_flops
    update()
    work = response_work(setting, setting.lengths(num))
    flops = update_flops(spec, work, checkpoints_activations=False)
    counted = trainer.num_flops - before
    predicted = {"update": flops / machine.flops + optimizer_s(spec, machine, 1)}
    implied = {
        "efficiency": flops / measured["update"] / machine.peak,
        "model FLOPs, counted / formula": counted / model_flops(spec, work, backward="all"),
    }

    num, new = (64, 256) if is_gpu else (4, 32)
    decoding = Setting(prompts=num, group_size=1, response=new, sigma=0.0, longest=new)
    STRATEGIES["imposed"] = ImposedSteps(4, decoding.per_forward)
    if is_gpu:
        model.layers.bfloat16()  # as in a sharded run's copy for the engine
    engine = Engine(model, max_sequences=num, num_pages=num * (512 // 128 if is_gpu else 16))
    prompts = np.random.default_rng(0).integers(3, min(spec.vocab_size, 90), (num, 128 if is_gpu else 32)).tolist()
    params = [SamplingParams(max_new_tokens=new, remasking_strategy="imposed", ignore_eos=True, seed=i) for i in range(num)]

    def decode() -> None:
        with trainer.autocast():
            engine.generate(prompts, params)

    measured["decode"] = timed(decode, device)
    parts = decode_parts(spec, machine, decoding, decoding.lengths(num), kv_memory=1e18)
    predicted["decode"] = float(parts.sum())
    implied |= {f"decode: {name}, s": float(part) for name, part in zip(PARTS, parts, strict=True)}
    return DeviceCheck(measured, predicted, implied)


def timed(run: Callable[[], object], device: str, rounds: int = 3) -> float:
    """Median seconds after one to warm up (and compile)."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def gpu_machine() -> Machine:
    """The model's GPU, with the peak of the one that is here."""
    peak = peak_flops(torch.device("cuda"), "bfloat16")
    return H100 if peak is None else replace(H100, peak=peak)
