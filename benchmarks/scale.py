"""Time per RL step: measured here with one and two ranks, predicted for 8, 64 and 512 GPUs at 4B and 8B, and the two compared.

The cost model is in cost_model.py, cost_of_decoding.py and cost_of_step.py, with the origin of every constant. Here: runs of
`unmask rl` on a small decoder, on CPUs, one thread a rank, weights whole on both ranks, and sharded. Where CUDA is there (or
with `--gpu`), update and decoding of one GPU are measured against the model, too.

    python benchmarks/scale.py                    # all; 8.5 minutes on two busy cores
    python benchmarks/scale.py --predict-only     # the predictions, seconds
    python benchmarks/scale.py --gpu              # one GPU against the model; nothing else
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from cost_model import H100, ORIGINS, Link, Machine, Setting, parameters, preset_spec
from cost_of_step import Step, predict, weak

PHASES = ("publish", "rollout", "rows", "old", "value", "update")
SIZES = {"4B": "sdar/4b", "8B": "sdar/8b"}
NUM_GPUS = (8, 64, 512)
# What could be done: other constants of the machine (None: a rank does its own share only), another setting.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "the engine's head in bfloat16": ({"head_bytes": 2}, {}),
    "CUDA graphs, bookkeeping beside the device": ({"kernel_s": 0.0, "forward_s": 0.0, "row_s": 0.0}, {}),
    "responses dealt out one by one, not groups": ({}, {"deals_groups": False}),
    "rows and groups of a rank's own responses only": ({"rows_s": None, "gather_s": None}, {}),
    "without a value model": ({}, {"has_value": False}),
    "without activation checkpointing, packs of 4,096": ({}, {"checkpoints_activations": False, "max_tokens": 4096}),
}
PUBLISH_BAR, SAVING_BAR = 0.05, 0.10


def print_table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def print_constants(machine: Machine) -> None:
    def shown(value: object) -> str:
        if isinstance(value, dict):
            return f"{value['bandwidth'] / 1e9:.4g} GB/s, {value['latency'] * 1e6:.3g} us"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    print("\n## Constants (H100, 8 a node)\n")
    rows = [[name, shown(value), ORIGINS.get(name, "")] for name, value in asdict(machine).items() if name in ORIGINS]
    print_table(["constant", "value", "origin"], rows)
    setting = asdict(Setting())
    print("\nSetting: " + ", ".join(f"{name} {value:g}" for name, value in setting.items()))


def step_row(label: str, step: Step) -> list[str]:
    bound = ", ".join(f"{name}: {step.phases[name].bound}" for name in ("rollout", "update"))
    memory = sum(value for name, value in step.memory.items() if name != "pages") / 1e9
    numbers = [f"{step.phases[name].seconds:.3g}" for name in PHASES]
    fits = f"{memory:.0f} + {step.memory['pages'] / 1e9:.0f}" if step.fits else f"**{memory:.0f}**: does not fit"
    return [
        label, str(step.num_ranks), str(step.size), str(step.setting.prompts), *numbers, f"{step.seconds:.3g}",
        f"{step.tokens_per_s:,.0f}", f"{step.hours_per_100_steps:,.0f}", fits, bound,
    ]  # fmt: skip


def predictions(machine: Machine) -> list[list[str]]:
    """Strong scaling (the recipes' batch), weak (the batch grows: the recipe's for 8 GPUs), and what could be done instead."""
    rows = []
    for name, preset in SIZES.items():
        spec, base = preset_spec(preset), Setting()
        for num in NUM_GPUS:
            rows.append(step_row(f"{name} strong", predict(spec, machine, base, num, 8)))
        for num in NUM_GPUS[1:]:
            rows.append(step_row(f"{name} strong", predict(spec, machine, base, num, num)))
        for num in NUM_GPUS[1:]:
            rows.append(step_row(f"{name} weak", predict(spec, machine, weak(base, num), num, 8)))
    return rows


def print_predictions(machine: Machine) -> None:
    print("\n## Predicted: seconds of a step\n")
    head = ["", "GPUs", "`shard_size`", "prompts", *PHASES, "step", "tokens/s", "GPU-h / 100 steps", "GB + pages", "bound by"]
    print_table(head, predictions(machine))
    print("\n## Predicted with one thing changed: seconds of a step of 4B, and of its rollouts\n")
    cases = [("strong, 8", Setting(), 8), ("strong, 512", Setting(), 512), ("weak, 512", weak(Setting(), 512), 512)]
    rows = []
    for name, (constants, values) in CHANGES.items():
        row = [name]
        for _, setting, num in cases:
            per_rank = {key: getattr(machine, key) / num for key, value in constants.items() if value is None}
            changed = replace(machine, **{**constants, **per_rank})
            step = predict(preset_spec("sdar/4b"), changed, replace(setting, **values), num, 8)
            row += [f"{step.seconds:.3g}", f"{step.phases['rollout'].seconds:.3g}"]
        rows.append(row)
    print_table(["", *(cell for label, _, _ in cases for cell in (label, "rollout"))], rows)


def measure(args: argparse.Namespace) -> None:
    """Runs and parts measured here, tables of them, and the check."""
    # Here, as predictions need none of it and it takes seconds to import.
    from scale_check import from_one_rank, model_decode_s, seconds_of, this_machine
    from scale_runs import GROUP_SIZE, NEW_TOKENS, PROMPTS, WAYS, fastest, measure_part, prepare, run_rl

    from unmask import load_model

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = prepare(folder)
        parts = {n: measure_part("machine", model, n) for n in (1, 2)}
        host = measure_part("host", model)
        saved = {n: measure_part("saving", model, n) for n in (1, 2)}
        steps: dict[str, list] = {name: [] for name in WAYS}
        for turn in range(args.turns):  # one after the other, so that a machine whose speed drifts slows all of them alike
            for name in WAYS:
                timed, metrics = run_rl(folder, name, args.steps, turn)
                steps[name] += timed
        spec = load_model(model).spec
    print(
        f"\n## Measured: the fastest of {args.turns} x {args.steps} steps of a decoder of {sum(parameters(spec)) / 1e6:.1f} M"
    )
    print(f"\n- {PROMPTS} x {GROUP_SIZE} responses of {NEW_TOKENS} tokens a step")
    slower = max(1.0, parts[1]["peak"] / parts[2]["peak"])
    for n, values in parts.items():
        units = {name: f"{v * 1e3:.2f} ms" if name == "latency" else f"{v / 1e9:.2f} G/s" for name, v in values.items()}
        print(f"- machine, {n} at it: " + ", ".join(f"{name} {value}" for name, value in units.items()))
    print("- host: " + ", ".join(f"{name} {value:.3g}" for name, value in host.items()))

    found = {name: fastest(of_way) for name, of_way in steps.items()}
    num_forwarded = statistics.mean(record["num_forwarded_tokens"] for record in metrics)
    per_forward = statistics.mean(record["tokens_per_forward"] for record in metrics)
    setting = Setting(
        prompts=PROMPTS, group_size=GROUP_SIZE, prompt=20, response=NEW_TOKENS, sigma=0.0, longest=NEW_TOKENS,
        per_forward=per_forward, trained_share=1.0, max_tokens=2048,
    )  # fmt: skip
    machine = this_machine(parts[2], host)
    predicted = {
        name: from_one_rank(
            spec, machine, setting, found["one rank"], num_forwarded, slower, size or num, all_reduce=parts[2]["all_reduce"]
        ) for name, (num, size) in WAYS.items() if num == 2
    }  # fmt: skip
    of_one = found["one rank"]
    rates = {
        name: of_one.means[f"{name}_tflop_per_s"] * 1e12 / parts[1]["peak"] for name in ("rollout", "old_logprobs", "update")
    }
    print("- one rank reaches, of the peak: " + ", ".join(f"{name} {rate:.0%}" for name, rate in rates.items()))
    decode_s = model_decode_s(spec, machine, setting, setting.lengths(PROMPTS * GROUP_SIZE))
    print(f"- decoding of one rank from the constants alone: {decode_s:.3f} s\n")
    seconds = {name: seconds_of(summary) for name, summary in found.items()}
    head, rows = ["seconds", "one rank"], []
    for name in predicted:
        head += [name, "speedup", "predicted", "error"]
    for phase, alone in seconds["one rank"].items():
        row = [phase, f"{alone:.3f}"]
        for name, of_model in predicted.items():
            value = seconds[name].get(phase, 0.0)
            row += [f"{value:.3f}", f"{alone / value:.2f}" if value > 1e-3 else "-"]
            guess = of_model.get(phase)
            row += ["-", "-"] if guess is None else [f"{guess:.3f}", f"{guess / value - 1:+.0%}" if value > 1e-3 else "-"]
        rows.append(row)
    print_table(head, rows)
    sharded = seconds["two, sharded"]
    share = sharded["publish"] / sharded["step"]
    print(f"\n- publish: {share:.1%} of a step, sharded (bar: under {PUBLISH_BAR:.0%})")
    for n, times in saved.items():
        blocked, whole = statistics.median(times["asynchronous"]), statistics.median(times["synchronous"])
        spread = f"{min(times['asynchronous']) * 1e3:.0f} to {max(times['asynchronous']) * 1e3:.0f} ms"
        print(
            f"- saving, {n} {'ranks, sharded' if n > 1 else 'rank'}: holds up the step for {blocked * 1e3:.0f} ms ({spread}) "
            f"of {whole * 1e3:.0f} ms when synchronous: {blocked / whole:.0%} (bar: under {SAVING_BAR:.0%})"
        )


def check_gpu() -> None:
    from scale_check import check_device, gpu_machine

    print("\n## One GPU against the model (sdar/1.7b)\n")
    check = check_device("cuda", "sdar/1.7b", gpu_machine())
    rows = [
        [name, f"{value:.3f}", f"{check.predicted[name]:.3f}", f"{check.predicted[name] / value - 1:+.0%}"]
        for name, value in check.measured.items()
    ]
    print_table(["seconds", "measured", "predicted", "error"], rows)
    print("\n" + ", ".join(f"{name} {value:.3g}" for name, value in check.implied.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict-only", action="store_true", help="nothing is measured")
    parser.add_argument("--gpu", action="store_true", help="only the check on one GPU")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each run, after one to warm up")
    parser.add_argument("--turns", type=int, default=2, help="runs of each kind")
    parser.add_argument("--nvlink-gb-per-s", type=float, help="reached by a GPU each way, inside a node")
    parser.add_argument("--network-gb-per-s", type=float, help="reached by a GPU each way, between nodes")
    parser.add_argument("--efficiency", type=float, help="share of a GPU's peak that products reach")
    args = parser.parse_args()
    machine = adjusted(H100, args)
    if not args.gpu:
        print_constants(machine)
        print_predictions(machine)
    if not (args.predict_only or args.gpu):
        measure(args)
    if args.gpu or (torch.cuda.is_available() and not args.predict_only):
        check_gpu()


def adjusted(machine: Machine, args: argparse.Namespace) -> Machine:
    inside, between = machine.inside, machine.between
    if args.nvlink_gb_per_s:
        inside = Link(args.nvlink_gb_per_s * 1e9, inside.latency)
    if args.network_gb_per_s:
        between = Link(args.network_gb_per_s * 1e9, between.latency)
    return replace(machine, inside=inside, between=between, efficiency=args.efficiency or machine.efficiency)


if __name__ == "__main__":
    main()
