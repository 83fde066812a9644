"""`unmask traces`, and rejection sampling with `unmask generate`: what is written, restarts, and that it can be trained on."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.recipes import SFT, unmask, write_recipe
from unmask import Trace, load_model, replay_logprobs
from unmask.data.chat import ChatTokenizer
from unmask.launch import find_model_folder

ROWS = [{"id": f"q{i}", "question": f"{i}+2=?", "response": f"{i}+2={i + 2};\\boxed{{{i + 2}}}"} for i in range(6)]


def write_rows(folder, rows=ROWS):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_given_answers_get_traces_that_are_replayed_and_trained_on(trained, tmp_path) -> None:
    output = tmp_path / "traces.jsonl"
    result = unmask("traces", trained / "sft", "--input", write_rows(tmp_path), "--output", output, "-k", 2)
    assert (result.returncode, result.stdout.strip()) == (0, str(output)), result.stderr
    found = lines(output)
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    assert [row["response_text"] for row in found] == [row["response"] for row in ROWS]
    folder = find_model_folder(str(trained / "sft"))
    model, tokenizer = load_model(folder), ChatTokenizer.load(folder)
    traces = [Trace.from_dict(row["trace"]) for row in found]
    assert all(trace.response_ids[-1] == tokenizer.turn_end_id for trace in traces)
    printed = unmask("traces", trained / "sft", "--input", write_rows(tmp_path), "-k", 2)
    assert printed.stdout == output.read_text()
    assert all(max(trace.step_map.count(step) for step in trace.step_map if step >= 0) <= 2 for trace in traces)
    for trace, replayed in zip(traces, replay_logprobs(model, traces), strict=True):
        assert replayed == pytest.approx(trace.logprobs, abs=1e-5)
    words = [f"model.path={trained / 'sft'}", "model.preset=''", "objective.name=trace", "eval.every_steps=0"]
    source = f"source={{name='traces', options={{path='{output}'}}}}"
    recipe = write_recipe(tmp_path, "sft", SFT.replace("options = { min_operations = 1, max_operations = 2 }", ""))
    run = unmask("sft", recipe, *words, source, "train.batch_size=4", f"run.dir={tmp_path / 'run'}")
    assert run.returncode == 0, run.stderr


def test_traces_of_a_task_and_restart(trained, tmp_path) -> None:
    """Options of a source; what is there is kept, a torn line is cut, other settings and other answers are refused."""
    output, whole = tmp_path / "traces.jsonl", tmp_path / "whole.jsonl"
    words = ["traces", trained / "sft", "--input", "chained_arithmetic", "size=5", "max_operations=4"]
    assert unmask(*words, "--output", whole).returncode == 0
    text = whole.read_text().splitlines(keepends=True)
    output.write_text(text[3] + text[1] + text[0][:40])
    result = unmask(*words, "--output", output)
    assert result.returncode == 0, result.stderr
    assert "3 answers" in result.stderr
    assert "(2 were there already)" in result.stderr
    assert [(r["id"], r["trace"]["step_map"]) for r in lines(output)] == [
        (r["id"], r["trace"]["step_map"]) for r in lines(whole)
    ]
    before = output.read_bytes()
    for more in (["-k", 2], ["max_operations=5"]):
        refused = unmask(*words, *more, "--output", output)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert "choose another file, or --overwrite" in refused.stderr
    assert output.read_bytes() == before
    assert "5 answers" in unmask(*words, "-k", 2, "--output", output, "--overwrite").stderr


def test_rejection_sampling(trained, tmp_path) -> None:
    """Several responses to each prompt, scored; the right ones are demonstrations; the same after a restart."""
    rows = write_rows(tmp_path, [{"id": f"q{i}", "question": f"{i}+2=?", "ground_truth_answer": str(i + 2)} for i in range(6)])
    output = tmp_path / "traces.jsonl"
    words = ["generate", trained / "rl", "--input", rows, "-k", 3, "reward.name=exact", "max_new_tokens=12"]
    words += ["reward.options={wrong_reward=0.25, is_cut_wrong=false}", "--output"]
    result = unmask(*words, output)
    assert result.returncode == 0, result.stderr
    found = lines(output)
    assert [(row["id"], row["member"]) for row in found] == [(f"q{i}", member) for i in range(6) for member in range(3)]
    assert len({tuple(row["trace"]["canvas_ids"]) for row in found[:3]}) > 1  # each draws for itself
    for row in found:
        is_right = f"\\boxed{{{int(row['id'][1:]) + 2}}}" in row["response_text"]
        assert row["reward"] == (1.0 if is_right else row["reward"])
        assert row["reward"] in (0.0, 0.25, 1.0)
        assert row["reason"]
    torn = tmp_path / "torn.jsonl"
    shutil.copy(output, torn)
    torn.write_text("".join(output.read_text().splitlines(keepends=True)[i] for i in (0, 4, 5, 9)))
    assert "14 answers" in unmask(*words, torn).stderr
    assert torn.read_bytes() == output.read_bytes()
    plain = tmp_path / "plain.jsonl"
    unmask("generate", trained / "rl", "--input", rows, "max_new_tokens=12", "--output", plain)
    assert [row["trace"] for row in lines(plain)] == [row["trace"] for row in found if not row["member"]]
    fewer = unmask("generate", trained / "rl", "--input", rows, "max_new_tokens=12", "--output", output)
    assert (fewer.returncode, "has response 1 of row 'q0'" in fewer.stderr) == (2, True)


MEETING = """
import time
from pathlib import Path

def meet(rollout, example):
    folder = Path(__file__).parent / "meeting"
    folder.mkdir(exist_ok=True)
    (folder / example.id).touch()
    deadline = time.monotonic() + 30
    while len(list(folder.iterdir())) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    return float(len(list(folder.iterdir())))
"""


def test_answers_are_scored_while_others_are_decoded(trained, tmp_path) -> None:
    """One is decoded at a time, and no score is there before the last of them is decoded: nothing may wait for the first."""
    rows = write_rows(tmp_path, [{"id": f"q{i}", "question": f"{i}+2=?", "ground_truth_answer": "1"} for i in range(3)])
    (tmp_path / "meeting.py").write_text(MEETING)
    words = ["generate", trained / "rl", "--input", rows, "max_new_tokens=8", "engine.max_sequences=1"]
    words += [f"reward.name={tmp_path}/meeting.py:meet", "reward.options={num_workers=3, time_limit=60}"]
    result = unmask(*words, "--output", tmp_path / "traces.jsonl")
    assert result.returncode == 0, result.stderr
    assert [row["reward"] for row in lines(tmp_path / "traces.jsonl")] == [3.0] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["traces", "--input", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["traces", "--input", "questions.jsonl"], "has no response; supervised fine-tuning needs demonstrations"),
        (["traces", "--input", "questions.jsonl", "limits=3"], "unknown key 'limits'"),
        (["traces", "--input", "chained_arithmetic", "--split", "test"], "test"),
        (["traces", "--input", "chained_arithmetic", "--dtype", "float8"], "unknown dtype 'float8'"),
        (["generate", "--input", "questions.jsonl", "reward.name=best"], "unknown reward 'best'"),
        (["generate", "--input", "questions.jsonl", "reward.name=exact"], "has no answer"),
    ],
)
def test_mistakes_are_one_line(trained, words, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "1+2=?"}) + "\n")
    command, *rest = words
    result = unmask(command, trained / "sft", *rest, "--output", "out.jsonl")
    assert (result.returncode, result.stderr.count("\n"), (tmp_path / "out.jsonl").exists()) == (2, 1, False), result.stderr
    assert message in result.stderr
