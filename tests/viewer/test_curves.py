"""From run folders to charts: reading, joining runs of one label, smoothing, thinning."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from unmask.errors import UnmaskError
from unmask.viewer.curves import MAX_POINTS, METRICS, choose_metrics, explain, load_run, make_charts, render_curves


@pytest.fixture
def write_run(tmp_path):
    def write(name: str, metrics: list[dict], timings: list[dict] | None = None):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
        if timings is not None:
            (folder / "timings.jsonl").write_text("".join(json.dumps(record) + "\n" for record in timings))
        return folder

    return write


def test_metrics_evaluations_and_timings_are_read_together(write_run):
    metrics = [{"step": 1, "loss": 3}, {"step": 2, "loss": 2.5}, {"step": 2, "eval/accuracy": 0.5}]
    run = load_run(write_run("a", metrics, [{"step": 1, "step_s": 0.1}, {"step": 2, "step_s": 0.2}]))
    assert run == {"loss": {1: 3.0, 2: 2.5}, "eval/accuracy": {2: 0.5}, "step_s": {1: 0.1, 2: 0.2}}
    assert load_run(write_run("b", metrics[:1])) == {"loss": {1: 3.0}}  # timings need not be there


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"step": 1, "loss": 1}, {"loss": 2}], "metrics.jsonl:2: step is None, expected a whole number"),
        ([{"step": 1.5, "loss": 1}], "metrics.jsonl:1: step is 1.5, expected"),
        ([{"step": 1, "loss": "low"}], "metrics.jsonl:1: loss is 'low', expected a number"),
        ([{"step": 1, "loss": True}], "metrics.jsonl:1: loss is True, expected a number"),
        ([{"step": 2, "loss": 1}, {"step": 2, "loss": 1}], "metrics.jsonl:2: loss of step 2 comes after that of step 2"),
        ([], "nothing is recorded yet"),
    ],
)
def test_malformed_records_are_named(write_run, records, message):
    with pytest.raises(UnmaskError, match=message):
        load_run(write_run("a", records))


def test_what_is_no_run_folder_is_said(write_run, tmp_path):
    inside = write_run("3-rl", [{"step": 1, "loss": 1}])
    with pytest.raises(UnmaskError, match=r"not a run folder \(no metrics.jsonl\); runs in it: 3-rl"):
        load_run(tmp_path)
    with pytest.raises(UnmaskError, match="no such folder; expected the folder of a run"):
        load_run(tmp_path / "none")
    with pytest.raises(UnmaskError, match=r"metrics.jsonl: is a file; expected the folder"):
        load_run(inside / "metrics.jsonl")


def test_default_metrics_are_the_known_ones_in_their_order():
    runs = [{"lr": {1: 1}, "step_s": {1: 1}, "loss": {1: 1}}, {"eval/accuracy": {1: 1}, "loss": {1: 1}}]
    assert choose_metrics(runs, []) == ["eval/accuracy", "loss", "step_s"]
    assert choose_metrics([{"mine": {1: 1}}], []) == ["mine"]  # nothing known: everything
    assert choose_metrics(runs, ["lr", "loss", "lr"]) == ["lr", "loss"]
    with pytest.raises(UnmaskError, match="unknown metric 'eval/acuracy'; the nearest known names are eval/accuracy, "):
        choose_metrics(runs, ["eval/acuracy"])
    assert list(METRICS)[:2] == ["eval/accuracy", "reward_mean"]


def test_runs_of_one_label_become_mean_and_range():
    runs = [{"loss": {1: 1.0, 2: 2.0}}, {"loss": {1: 3.0, 2: 6.0, 3: 9.0}}, {"loss": {1: 7.0}, "kl": {1: 0.0}}]
    loss, kl = make_charts(runs, ["a", "a", "b"], ["loss", "kl"])
    joined, alone = loss.series
    assert (joined.name, list(joined.xs), joined.ys) == ("a (2 runs)", [1, 2], [2.0, 4.0])  # step 3: not all have it
    assert joined.band == [(1.0, 3.0), (2.0, 6.0)]
    assert (alone.name, alone.ys, alone.band) == ("b", [7.0], ())
    assert [series.name for series in kl.series] == ["a (2 runs)", "b"]  # same places, same styles in every chart
    assert list(kl.series[0].xs) == []
    assert explain(["a", "a", "b"], 1).startswith("Line: mean")
    assert explain(["a", "b"], 1) == ""


def test_smoothing_looks_back_and_goes_before_joining():
    runs = [{"loss": {1: 0.0, 2: 4.0, 3: 2.0}}, {"loss": {1: 0.0, 2: 0.0, 3: 0.0}}]
    (chart,) = make_charts(runs[:1], ["a"], ["loss"], smooth=2)
    assert chart.series[0].ys == [0.0, 2.0, 3.0]
    (chart,) = make_charts(runs, ["a", "a"], ["loss"], smooth=2)
    assert chart.series[0].band == [(0.0, 0.0), (0.0, 2.0), (0.0, 3.0)]
    assert "up to 2 records" in explain(["a"], 2)


def test_long_runs_are_thinned_and_say_so():
    num = 3 * MAX_POINTS - 1
    (chart,) = make_charts([{"loss": {step: float(step) for step in range(1, num + 1)}}], ["a"], ["loss"])
    xs = chart.series[0].xs
    assert len(xs) <= MAX_POINTS
    assert xs[-1] == num  # the newest value is always there
    assert {b - a for a, b in itertools.pairwise(xs)} == {3}
    assert chart.caption == "One of 3 steps is drawn."


def test_the_page_has_runs_charts_and_recipes(write_run):
    folders = [write_run(name, [{"step": 4, "loss": 0.25, "kl": math.pi}]) for name in ("a", "b")]
    (folders[0] / "recipe.toml").write_text("<seed> = 1\n")
    runs = [load_run(folder) for folder in folders]
    charts = make_charts(runs, ["x", "x"], ["loss", "kl"])
    page = render_curves("Title", folders, runs, ["x", "x"], charts)
    assert f'<th scope="row">{folders[1]}</th><td>x</td><td class="number">4</td><td class="number">0.25</td>' in page
    assert page.count('<figure class="chart">') == 2
    assert "&lt;seed&gt; = 1" in page
    assert f"Recipe of {folders[1]}" not in page
