"""One run of the engine over some sequences: what it decoded, counted and took; and where its time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from unittest.mock import patch

import torch

from unmask import Engine, SamplingParams, Trace
from unmask.diffusion.denoising import StepResult, Unmasked
from unmask.engine import EngineStats, runner
from unmask.engine.graphs import StaticForwards
from unmask.engine.paged import PagedForward


@dataclass(slots=True)
class Run:
    """stats: counts of this run (peak_pages: since the engine was made). first_s: seconds from adding all requests to each
    one's first finished block.
    """

    traces: list[Trace]
    stats: EngineStats
    first_s: list[float]


def run_engine(engine: Engine, prompts: list[list[int]], params: list[SamplingParams]) -> Run:
    """Begins with an empty prefix cache."""
    engine.update_weights()
    before, first_s, traces = engine.stats, {}, {}
    start = time.perf_counter()
    ids = [engine.add_request(prompt, p) for prompt, p in zip(prompts, params, strict=True)]
    while engine.has_work:
        for output in engine.step():
            first_s.setdefault(output.id, time.perf_counter() - start)
            if output.trace is not None:
                traces[output.id] = output.trace
    after = engine.stats
    counts = {f.name: getattr(after, f.name) - getattr(before, f.name) for f in fields(EngineStats)}
    stats = EngineStats(**{**counts, "peak_pages": after.peak_pages})
    return Run([traces[i] for i in ids], stats, [first_s[i] for i in ids])


def peak_bytes(device: torch.device, *, reset: bool = False) -> int:
    """Most memory in use since the last reset: tensors on a GPU, else the process (Linux; elsewhere 0)."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is in use now
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except OSError:
        return 0


class Stopwatch:
    """Seconds by part of the program; time in a part that runs within another one counts for the inner one only."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []
        self._is_gpu = device.type == "cuda"

    def _wait(self) -> None:
        if self._is_gpu and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()

    def timed(self, part: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            self._wait()
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._wait()
                elapsed = time.perf_counter() - start
                self.seconds[part] += elapsed - self._inner.pop()
                if self._inner:
                    self._inner[-1] += elapsed

        return call


def print_profile(engine: Engine, prompts: list[list[int]], params: list[SamplingParams]) -> None:
    """Where the wall time of one run goes. On a GPU every part waits for the device, which costs some of it; with CUDA graphs
    attention is not told apart.
    """
    model, watch = engine.model, Stopwatch(engine.model.device)
    places = {
        "forward: attention over pages": [(PagedForward, "__call__"), (PagedForward, "extend")],
        "forward: all else": [(model, "forward"), (StaticForwards, "__call__")],
        "head": [(model, "head")],
        "schedule": [(engine.scheduler, "schedule"), (engine.scheduler, "commit")],
        "batch building": [(runner, "build_batch")],
        "sampling": [(engine.runner, "run")],
        "applying": [(StepResult, "fetch"), (Unmasked, "apply"), (engine, "_news")],
        "all else": [(engine, "step")],
    }
    with ExitStack() as stack:
        for part, owners in places.items():
            for owner, name in owners:
                stack.enter_context(patch.object(owner, name, watch.timed(part, getattr(owner, name))))
        run_watched = watch.timed("all else", run_engine)
        start = time.perf_counter()
        num_forwards = run_watched(engine, prompts, params).stats.num_forwards
        total = time.perf_counter() - start
    share = {part: 100 * watch.seconds[part] / total for part in places}
    forward = sum(percent for part, percent in share.items() if part.startswith("forward"))
    print(f"  wall time of one run: {total:.2f} s, {1e3 * total / num_forwards:.2f} ms per forward of the batch")
    print(f"    {'model forward':<33} {forward:5.1f} %   {forward + share['head']:.1f} % with the head")
    for part, percent in share.items():
        print(f"      {part:<31} {percent:5.1f} %")
