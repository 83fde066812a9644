"""The quickstart's machinery on stages of two steps; whether it learns is for `make test-slow` (test_bar.py)."""

from __future__ import annotations

import json
from concurrent.futures import Future

import pytest

from tests.recipes import unmask
from unmask.quickstart import stages
from unmask.quickstart.report import _words
from unmask.rewards import Score
from unmask.rl.scoring import RewardPool
from unmask.train.checkpoint import list_checkpoints
from unmask.viewer import load_records

SETTINGS = (
    "train.max_steps=2", "eval.every_steps=1", "eval.num_examples=4", "eval.sampling.max_new_tokens=8",
    "optimizer.warmup_steps=0", "checkpoint.every_steps=1", "run.device=cpu", "run.num_threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """A handful of questions, short answers, small batches."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("NUM_QUESTIONS", 6), ("NUM_PLAYED", 3), ("NUM_PASS_QUESTIONS", 2), ("PASS_K", 2)):
            patch.setattr(stages, name, value)
        modes = {name: params.model_copy(update={"max_new_tokens": 8}) for name, params in stages.MODES.items()}
        patch.setattr(stages, "MODES", modes)
        yield


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """A whole quickstart: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart") / "q"
    result = unmask("quickstart", "--dir", folder, "--seed", "3", *SETTINGS)
    assert result.returncode == 0, result.stderr
    return folder, result


@pytest.fixture
def again(finished):
    """Its folder, in which what was measured is afterwards as it was, and how it goes on."""
    folder, _ = finished
    kept = {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    yield folder, ("quickstart", "--dir", folder, "--seed", "3", *SETTINGS)
    for file, content in kept.items():
        file.write_bytes(content)


def test_all_stages_and_the_report(finished) -> None:
    folder, result = finished
    assert result.stderr.count("NOT reached within the limit of steps") == 3  # a missed target is said
    assert result.stdout.strip().endswith("report.html")
    results = json.loads((folder / "results.json").read_text())
    assert results["seed"] == 3
    for when in ("before", "after"):
        assert {
            "dynamic",
            "dynamic_greedy",
            "static_greedy",
            "pass_at_k",
            "skipped_steps",
            "wrong_steps",
            "mean_confidence",
        } <= results[when].keys()
        assert len(load_records(folder / f"{when}.jsonl")) == 3
    questions = [[r.prompt_text for r in load_records(folder / f"{when}.jsonl")] for when in ("before", "after")]
    assert questions[0] == questions[1]  # the same held-out questions, before and after
    page = (folder / "report.html").read_text()
    assert "Not reached within the limit of steps: the target of 1-sft-basics and 2-sft-sloppy and 3-rl." in page
    assert "Recipe of 3-rl" in page

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("checkpoints/*/*")}
    repeated = unmask("quickstart", "--dir", folder, "--seed", "3", *SETTINGS)
    assert repeated.returncode == 0, repeated.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("checkpoints/*/*")} == before  # nothing is trained twice


@pytest.mark.slow
def test_the_report_plays_in_a_browser(small, tmp_path, browser) -> None:
    folder = tmp_path / "q"
    assert unmask("quickstart", "--dir", folder, *SETTINGS).returncode == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    _, messages = browser.open(page, budget_ms=3000)
    assert messages == []  # under the page's own content policy
    scenario = """
        unmaskPlayer.play();
        while (unmaskPlayer.state().isPlaying) await sleep(100);
        return { end: unmaskPlayer.state(), charts: findAll(".chart > svg").length };
    """
    outcome = browser.run(page, scenario, "--force-prefers-reduced-motion")
    assert outcome["problems"] == []
    assert outcome["charts"] == 4
    records = [load_records(folder / f"{when}.jsonl")[0] for when in ("before", "after")]
    played = ["".join(r.canvas_pieces[: r.trace.num_response_tokens]) for r in records]
    assert [panel["text"] for panel in outcome["end"]["panels"]] == played


def test_an_interrupted_quickstart_continues(small, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "q"
    original, calls = stages.start, []

    def interrupted_in_stage_two(recipe, **options):
        calls.append(recipe.run.dir)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(recipe, **options)

    monkeypatch.setattr(stages, "start", interrupted_in_stage_two)
    assert unmask("quickstart", "--dir", folder, *SETTINGS).returncode == 130
    assert not (folder / "report.html").exists()
    result = unmask("quickstart", "--dir", folder, *SETTINGS)
    assert result.returncode == 0, result.stderr
    assert (folder / "report.html").exists()


def test_bad_settings_are_named_before_anything_runs(tmp_path) -> None:
    result = unmask("quickstart", "--dir", tmp_path / "q", "train.max_step=2")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "nearest known key is 'train.max_steps'" in result.stderr
    assert not (tmp_path / "q").exists()


def measured(dynamic: float, greedy: float, pass_k: float) -> dict:
    mode = {"tokens_per_forward": 2.0, "response_length": 30.0}
    return {
        "dynamic": {"accuracy": dynamic, **mode}, "static_greedy": {"accuracy": greedy, **mode}, "pass_at_k": pass_k,
        "pass_k": 8, "num_pass_questions": 128, "num_questions": 512, "skipped_steps": 0.2, "wrong_steps": 0.1,
        "mean_confidence": 0.9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "beginning"),
    [
        ((0.5, 0.97, 0.99), (0.93, 0.98, 1.0), "What RL did not change: the skill was already there."),
        ((0.3, 0.4, 0.7), (0.8, 0.9, 0.95), "Was it more than sharper sampling?"),
        ((0.5, 0.97, 0.99), (0.2, 0.3, 0.5), "RL did not improve the sampled answers in this run."),
        ((0.5, 0.97, 0.99), (0.8, 0.7, 0.9), "RL made sampled answers better and the most probable ones worse"),
    ],
)
def test_the_words_follow_from_the_numbers(before, after, beginning) -> None:
    words = _words(measured(*before), measured(*after), [])
    change = 100 * (after[0] - before[0])
    assert f"to {after[0]:.1%} right ({change:+.0f} points)".replace("%", " %") in words[0]
    assert words[-1].startswith(beginning)
    assert ("sharper sampling is not new reasoning" in words[-1]) == (after[0] > before[0] and after[1] > 0.8)
    assert _words(measured(*before), measured(*after), ["3-rl"])[-1].endswith("the target of 3-rl.")


def test_before_and_after_are_different_checkpoints(again) -> None:
    """Before is stage 2, after is stage 3; a checkpoint that was measured is not measured again, another one is."""
    folder, words = again
    for when, stage in (("before", "2-sft-sloppy"), ("after", "3-rl")):
        newest = list_checkpoints(folder / stage / "checkpoints")[-1]
        assert json.loads((folder / f"{when}.json").read_text())["manifest"] == json.loads(
            (newest / "manifest.json").read_text()
        )
    facts = json.loads((folder / "before.json").read_text())
    (folder / "before.json").write_text(json.dumps({**facts, "manifest": {}}))
    (folder / "after.json").write_text(json.dumps({**json.loads((folder / "after.json").read_text()), "kept": True}))
    assert unmask(*words).returncode == 0
    assert json.loads((folder / "before.json").read_text())["manifest"] == facts["manifest"]
    assert json.loads((folder / "after.json").read_text())["kept"]


def test_pass_at_k_is_any(again, monkeypatch) -> None:
    folder, words = again
    rewards = iter([0, 1, 0, 0] * 100)

    class FixedRewards(RewardPool):
        def submit(self, rollout, example):
            future = Future()
            future.set_result(Score(float(next(rewards)), ""))
            return future

    monkeypatch.setattr(stages, "RewardPool", FixedRewards)
    (folder / "before.json").unlink()  # what was measured
    assert unmask(*words).returncode == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["before"]["pass_at_k"] == 0.5  # two questions of two samples each: one right of four
