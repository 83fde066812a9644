"""The quickstart's report: what happened, in plain words that follow from the measured numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmask.config import read_toml
from unmask.files import write_text
from unmask.metrics import read_metrics
from unmask.viewer import (
    Chart,
    Comparison,
    Detail,
    KeyFigure,
    ReferenceLine,
    Report,
    Series,
    Table,
    load_records,
    render_report,
)


def write_report(folder: Path, stages: list[str], results: dict[str, Any]) -> Path:
    """Writes DIR/report.html from the runs' metrics and the measurements; returns its path."""
    before, after = results["before"], results["after"]
    metrics = {stage: read_metrics(folder / stage) for stage in stages}
    stops = [read_toml(folder / stage / "recipe.toml")["stop"] for stage in stages]
    targets = [stop["at_least"] for stop in stops]
    missed = [
        stage
        for stage, stop in zip(stages, stops, strict=True)
        if not _last(metrics[stage], f"eval/{stop['metric']}") >= stop["at_least"]
    ]
    report = Report(
        title="A tiny diffusion language model, before and after TraceRL",
        paragraphs=_words(before, after, missed),
        key_figures=_key_figures(before, after),
        tables=[_table(before, after)],
        charts=_charts([metrics[stage] for stage in stages], targets),
        comparison=Comparison(
            load_records(folder / "before.jsonl"),
            load_records(folder / "after.jsonl"),
            ("before RL", "after RL"),
            title="The same questions, unmasked before and after RL",
            text="Sampled at temperature 1 with the dynamic strategy. Each box is a masked position; a token appears at the "
            "denoising step at which the model unmasked it, coloured by its confidence.",
        ),
        details=[
            *(Detail(f"Recipe of {stage}", (folder / stage / "recipe.toml").read_text(encoding="utf-8")) for stage in stages),
            Detail("Versions", (folder / stages[-1] / "versions.json").read_text(encoding="utf-8")),
        ],
    )
    page = folder / "report.html"
    write_text(page, render_report(report))
    return page


def _last(records: list[dict[str, Any]], key: str) -> float:
    return next((r[key] for r in reversed(records) if key in r), float("nan"))


def _percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def _words(before: dict[str, Any], after: dict[str, Any], missed: list[str]) -> list[str]:
    """Paragraphs for whatever came out, good or bad; `missed` are the stages that did not reach their target."""
    dynamic, greedy = (_change(before, after, mode) for mode in ("dynamic", "static_greedy"))
    speed = [r["dynamic"]["tokens_per_forward"] for r in (before, after)]
    skipped, wrong, sure, pass_k = (
        [_percent(r[key]) for r in (before, after)] for key in ("skipped_steps", "wrong_steps", "mean_confidence", "pass_at_k")
    )
    words = [
        f"On questions it had never seen, the model's sampled answers went from {_percent(dynamic[0])} to "
        f"{_percent(dynamic[1])} right ({100 * (dynamic[1] - dynamic[0]):+.0f} points), and it unmasked {speed[1]:.2f} instead "
        f"of {speed[0]:.2f} tokens per forward pass.",
        "The task is chained arithmetic modulo 10: the model writes one step per operation and boxes the result. It was "
        "first taught short problems, then longer ones by a sloppy teacher who slips in one step of seven and skips "
        "the steps in three of ten demonstrations. TraceRL then rewarded right answers only, and trained the model on its own "
        "traces: the order in which it really unmasked its tokens.",
        f"What RL changed: answers without written steps went from {skipped[0]} to {skipped[1]} of the samples, and written "
        f"steps with a wrong result from {wrong[0]} to {wrong[1]}. The mean confidence of a token went from {sure[0]} to "
        f"{sure[1]}; the dynamic strategy unmasks all tokens above its threshold at once, so speed follows confidence.",
    ]
    facts = (
        f"Before RL, {pass_k[0]} of {before['num_pass_questions']} questions were answered right in at least one of "
        f"{before['pass_k']} samples (after: {pass_k[1]}), and the single most probable answer (static, greedy) was right for "
        f"{_percent(greedy[0])} of all {before['num_questions']} (after: {_percent(greedy[1])})."
    )
    if dynamic[1] <= dynamic[0]:
        words.append(f"RL did not improve the sampled answers in this run. {facts}")
    elif greedy[1] < greedy[0] - 0.03:
        words.append(f"RL made sampled answers better and the most probable ones worse: a poor trade. {facts}")
    elif greedy[1] < greedy[0] + 0.1:
        words.append(
            f"What RL did not change: the skill was already there. {facts} RL made the model sample what it could already do: "
            "sharper sampling is not new reasoning."
        )
    else:
        words.append(
            f"Was it more than sharper sampling? {facts} Where a right answer was already among the samples, RL made it "
            "likely: sharper sampling is not new reasoning. Only the rise of the greedy answers goes beyond it: there the "
            "model dropped habits of the sloppy teacher that had become its first choice."
        )
    if missed:
        words.append(f"Not reached within the limit of steps: the target of {' and '.join(missed)}.")
    return words


def _change(before: dict[str, Any], after: dict[str, Any], mode: str) -> tuple[float, float]:
    return before[mode]["accuracy"], after[mode]["accuracy"]


def _key_figures(before: dict[str, Any], after: dict[str, Any]) -> list[KeyFigure]:
    def figure(label: str, mode: str, key: str, text: Any) -> KeyFigure:
        return KeyFigure(label, text(after[mode][key]), f"{text(before[mode][key])} before RL")

    return [
        figure("Accuracy, sampled", "dynamic", "accuracy", _percent),
        figure("Accuracy, static greedy", "static_greedy", "accuracy", _percent),
        figure("Tokens per forward", "dynamic", "tokens_per_forward", "{:.2f}".format),
        figure("Response length", "dynamic", "response_length", "{:.1f}".format),
    ]


def _table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    def pair(mode: str, text: Any) -> str:
        return " → ".join(text(r[mode]) for r in (before, after))

    rows = [
        [
            label,
            pair(mode, lambda r: f"{_percent(r['accuracy'])} ± {_percent(r['standard_error'])}"),
            pair(mode, lambda r: f"{r['tokens_per_forward']:.2f}"),
            pair(mode, lambda r: f"{r['response_length']:.1f}"),
        ]
        for label, mode in (
            ("dynamic, temperature 1", "dynamic"),
            ("dynamic, greedy", "dynamic_greedy"),
            ("static, greedy", "static_greedy"),
        )
    ]
    k = before["pass_k"]
    best = " → ".join(_percent(r["pass_at_k"]) for r in (before, after))
    rows.append([f"right in at least one of {k} samples", best, "", ""])
    return Table(
        "Before and after RL",
        ["decoding", "accuracy", "tokens per forward", "response length"],
        rows,
        caption=f"{before['num_questions']} held-out questions (last row: {before['num_pass_questions']} of them) that neither "
        "training nor its stopping rules ever used; ± is the standard error. Tokens per forward: response tokens over forward "
        "passes, prefill included; below 1 where the last block is decoded past the end of the answer.",
    )


def _charts(metrics: list[list[dict[str, Any]]], targets: list[float]) -> list[Chart]:
    first, second, rl = metrics
    lines = [ReferenceLine(target, f"target {target:g}") for target in targets]

    def series(name: str, records: list[dict[str, Any]], key: str) -> Series:
        points = [(r["step"], r[key]) for r in records if key in r]
        return Series(name, [x for x, _ in points], [y for _, y in points])

    return [
        Chart(
            "SFT on short problems", "optimizer step", "accuracy",
            [series("held-out, greedy", first, "eval/accuracy")], (0, 1), lines[0],
        ),
        Chart(
            "SFT with the sloppy teacher", "optimizer step", "accuracy",
            [series("held-out, greedy", second, "eval/accuracy")], (0, 1), lines[1],
        ),
        Chart(
            "TraceRL: accuracy", "RL step", "accuracy",
            [series("held-out, sampled", rl, "eval/accuracy"), series("rollouts, mean reward", rl, "reward_mean")],
            (0, 1), lines[2],
        ),
        Chart(
            "TraceRL: speed", "RL step", "tokens per forward",
            [series("held-out, sampled", rl, "eval/tokens_per_forward"), series("rollouts", rl, "tokens_per_forward")],
        ),
    ]  # fmt: skip
