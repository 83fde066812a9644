"""Decoding: the engine with all sequences at a time, against itself with one and against the readable sampler, in one run.

Weights and prompts are random, stop tokens off. How many tokens a denoising step unmasks is imposed (`--tokens-per-step`),
or left to an ordinary strategy (`--strategy`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from engine_runs import Run, peak_bytes, print_profile, run_engine
from imposed import ImposedSteps
from timing import median_seconds, print_ratios

from unmask import Engine, SamplingParams, Trace, generate, new_model
from unmask.diffusion.remasking import STRATEGIES
from unmask.engine.paged import PagedKV
from unmask.models import Decoder

# By a preset's size, unless given: `--sequences`, `--prompt-tokens`, `--new-tokens`, `--single`, `--readable`, `--rounds`.
DEFAULTS = {"tiny": (32, 64, 256, 4, 4, 5), "small": (64, 64, 64, 2, 2, 1), "published": (64, 128, 256, 4, 4, 1)}


@dataclass(slots=True)
class Work:
    """What is decoded: prompt i (of `distinct`, each `group` times) with params i; the first few by the slow candidates."""

    name: str
    model: Decoder
    distinct: list[list[int]]
    prompts: list[list[int]]
    params: list[SamplingParams]
    num_single: int
    num_readable: int
    rounds: int

    @property
    def is_block_causal(self) -> bool:
        return self.model.spec.attention == "block_causal"

    @property
    def block_size(self) -> int:
        return self.params[0].block_size or self.model.spec.block_size


def make_work(name: str, args: argparse.Namespace) -> Work:
    """Raises SystemExit for a step pattern that blocks cannot have."""
    given = (args.sequences, args.prompt_tokens, args.new_tokens, args.single, args.readable, args.rounds)
    defaults = DEFAULTS.get(name.partition("/")[2], DEFAULTS["published"])
    n, num_prompt, num_new, num_single, num_readable, rounds = (
        default if value is None else value for value, default in zip(given, defaults, strict=True)
    )
    dtype = args.dtype or ("bfloat16" if args.device.startswith("cuda") else "float32")
    model = new_model(name, 0, device=args.device, dtype=dtype)
    spec = model.spec
    special = {spec.mask_token_id, spec.pad_token_id, *spec.eos_token_ids}
    ordinary = np.setdiff1d(np.arange(spec.vocab_size), sorted(special))
    distinct = np.random.default_rng(0).choice(ordinary, (-(-n // args.group), num_prompt)).tolist()
    shared = SamplingParams(
        max_new_tokens=num_new, block_size=args.block_size, remasking_strategy=args.strategy, stop_token_ids=(),
        denoising_steps_per_block=args.steps_per_block, confidence_threshold=args.confidence_threshold, cache=args.cache,
    )  # fmt: skip
    work = Work(
        name, model, distinct,
        prompts=[distinct[i // args.group] for i in range(n)],
        params=[shared.model_copy(update={"seed": i}) for i in range(n)],
        num_single=min(num_single, n),
        num_readable=min(num_readable, n) if args.cache in ("auto", "none") else 0,  # it has no approximate caches
        rounds=rounds,
    )  # fmt: skip
    if args.strategy == "imposed":
        if not 1 <= args.tokens_per_step <= work.block_size:
            raise SystemExit(f"{name}: --tokens-per-step should be between 1 and the block size, {work.block_size}")
        STRATEGIES["imposed"] = ImposedSteps(work.block_size, args.tokens_per_step)
    return work


def make_engine(work: Work, max_sequences: int, args: argparse.Namespace) -> Engine:
    """With pages for all that it decodes together, however little of it is shared."""
    num_tokens = len(work.prompts[0]) + work.params[0].max_new_tokens + work.block_size
    page_size = args.page_size or (128 if work.model.device.type == "cuda" else 16)
    return Engine(
        work.model, max_sequences=max_sequences, num_pages=max_sequences * (-(-num_tokens // page_size) + 2),
        max_tokens_per_forward=args.max_tokens_per_forward, page_size=page_size, use_cuda_graphs=args.cuda_graphs,
    )  # fmt: skip


def measure(name: str, args: argparse.Namespace) -> None:
    work = make_work(name, args)
    model, prompts, params, n = work.model, work.prompts, work.params, len(work.prompts)
    engine, single = make_engine(work, n, args), make_engine(work, 1, args)
    runs: list[Run] = []
    traces: dict[str, list[Trace]] = {}
    used, peak = peak_bytes(model.device, reset=True), 0

    def all_together() -> list[Trace]:
        nonlocal peak
        runs.append(run_engine(engine, prompts, params))
        peak = peak or peak_bytes(model.device)  # of the first turn: nothing else has run since
        return runs[-1].traces

    def one_at_a_time() -> list[Trace]:
        return run_engine(single, prompts[: work.num_single], params[: work.num_single]).traces

    def readable() -> list[Trace]:
        return generate(model, prompts[: work.num_readable], params[: work.num_readable])

    baseline = "engine, one at a time"
    candidates: dict[str, Callable[[], list[Trace]]] = {f"engine, {n} together": all_together, baseline: one_at_a_time}
    if work.num_readable:
        candidates[f"readable sampler, {work.num_readable} together"] = readable

    def keep(key: str) -> Callable[[], None]:
        return lambda: traces.update({key: candidates[key]()})

    seconds = median_seconds({key: keep(key) for key in candidates}, work.rounds)
    report_engine(work, runs[1:], engine.scheduler.pool.page_size, (peak - used) if peak else None, args)
    num_tokens = {key: sum(trace.num_response_tokens for trace in found) for key, found in traces.items()}
    total = num_tokens[f"engine, {n} together"]
    notes = {
        key: f"{num_tokens[key] / seconds[key]:8.0f} tokens/s on {len(found)} sequences, {num_same(runs[-1].traces, found)} of "
        "them decoded alike" for key, found in traces.items()
    }  # fmt: skip
    scaled = {key: value * total / num_tokens[key] for key, value in seconds.items()}
    print_ratios(f"  time for {total} tokens, scaled from the sequences measured", scaled, baseline, notes)
    if work.is_block_causal and args.group > 1:
        alone = run_engine(engine, work.distinct, params[: len(work.distinct)]).stats.num_prefill_tokens
        together = runs[-1].stats.num_prefill_tokens
        print(f"  prompt tokens prefilled: {alone} with one response to each, {together} with {args.group}")
    if args.profile:
        print_profile(engine, prompts, params)


def report_engine(work: Work, runs: list[Run], page_size: int, grown: int | None, args: argparse.Namespace) -> None:
    """The counts are those of the last run (all are alike); times are medians."""
    model, run, n = work.model, runs[-1], len(work.prompts)
    stats, b = run.stats, work.block_size
    num_blocks = sum(count_blocks(trace, work.is_block_causal) for trace in run.traces)
    num_forwards = stats.num_denoising_forwards + stats.num_prefill_forwards
    tokens = stats.num_response_tokens
    per_step = sum(len(trace.canvas_ids) for trace in run.traces) / stats.num_denoising_forwards
    pages = stats.peak_pages * page_size * PagedKV.bytes_per_token(model.spec, model.dtype, model.device)
    first, middle = (statistics.median(fold(r.first_s) for r in runs) for fold in (min, statistics.median))
    wanted = f", {args.tokens_per_step:g} imposed" if args.strategy == "imposed" else ""
    print(
        f"{work.name}, {str(model.dtype).removeprefix('torch.')} on {model.device.type}: {n} sequences, "
        f"{len(work.prompts[0])} prompt and {work.params[0].max_new_tokens} new tokens each, block size {b}, {args.strategy}"
    )
    lines = {
        "forwards per block of a sequence": (
            f"{num_forwards / num_blocks:.3f}", f"{stats.num_prefill_forwards} of {num_forwards} only prefill"),
        "tokens per denoising step": (f"{per_step:.3f}", f"measured{wanted}"),
        "tokens per forward": (f"{tokens / num_forwards:.3f}", f"{tokens / stats.num_forwards:.1f} of the whole batch"),
        "time to first block": (f"{first:.3f} s", f"the first of all; {middle:.3f} s median over sequences"),
        "prompt tokens prefilled": (
            f"{stats.num_prefill_tokens}", f"{len(work.distinct)} prompts, {args.group} responses to each"),
        "peak memory": (
            "unknown" if grown is None else f"{grown / 1e6:.0f} MB",
            f"more than before the first run; pages in use {pages / 1e6:.0f} MB"),
    }  # fmt: skip
    if not work.is_block_causal:
        del lines["prompt tokens prefilled"]  # every forward computes them, or those that the cache leaves
    for what, (value, note) in lines.items():
        print(f"  {what:<34} {value:>9}      {note}")


def count_blocks(trace: Trace, is_block_causal: bool) -> int:
    """Blocks that were denoised; those of block models lie on absolute positions."""
    start = len(trace.prompt_ids) if is_block_causal else 0
    return -(-(start + len(trace.canvas_ids)) // trace.block_size) - start // trace.block_size


def num_same(traces: list[Trace], others: list[Trace]) -> int:
    """How many have the same tokens, unmasked in the same order."""
    pairs = zip(traces, others, strict=False)
    return sum(a.canvas_ids == b.canvas_ids and a.step_map == b.step_map for a, b in pairs)


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", nargs="+", default=["sdar/4b"] if has_gpu else ["sdar/tiny", "sdar/small"], help="presets, as family/size")
    add("--device", default="cuda" if has_gpu else "cpu")
    add("--dtype", help="default: bfloat16 on a GPU, else float32")
    add("--sequences", type=int, help="decoded together (defaults of this and the next five: by the preset's size)")
    add("--prompt-tokens", type=int)
    add("--new-tokens", type=int)
    add("--single", type=int, help="sequences of the baseline, which decodes them one at a time")
    add("--readable", type=int, help="sequences of the readable sampler; 0 = leave it out")
    add("--rounds", type=int, help="turns, after one to warm up")
    add("--group", type=int, default=1, help="responses to each prompt")
    add("--block-size", type=int, help="default: the model's")
    add("--strategy", default="imposed", choices=["imposed", *STRATEGIES])
    add("--tokens-per-step", type=float, default=2.4, help="mean, for the strategy imposed")
    add("--steps-per-block", type=int, help="for strategies with a quota; default: the block size")
    add("--confidence-threshold", type=float, default=0.9, help="for low_confidence_dynamic")
    add("--cache", default="auto", choices=["auto", "none", "prefix", "dual"])
    add("--max-tokens-per-forward", type=int, default=8192)
    add("--page-size", type=int, help="default: 16, on a GPU 128")
    add("--cuda-graphs", action="store_true")
    add("--profile", action="store_true", help="where the wall time of an engine run goes")
    args = parser.parse_args()
    for name in args.model:
        measure(name, args)


if __name__ == "__main__":
    main()
