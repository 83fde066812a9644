"""`unmask eval`: the same twice, the same after it was killed, several responses, and two results compared."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from pathlib import Path

import pytest

from tests.recipes import start, unmask
from unmask.rewards.code_tests import describe_sandbox
from unmask.rl.rollout import derive_seed

SHORT = ["modes.static.max_new_tokens=12", "modes.dynamic.max_new_tokens=12", "num_examples=6"]
NAMES = [f"traces-chained_arithmetic-{mode}.jsonl" for mode in ("static", "dynamic")]


def evaluate(trained, output: Path, *more):
    result = unmask("eval", trained / "rl", *SHORT, "--output", output, *more)
    assert result.returncode == 0, result.stderr
    return result


def results(output: Path, *, with_timings: bool = False) -> dict:
    found = json.loads((output / "results.json").read_text())
    if not with_timings:
        del found["timings"]
    return found


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "out"
    evaluate(trained, output, "-k", 2)
    return output


def test_what_is_recorded(trained, evaluated) -> None:
    """Everything that the numbers depend on, and the numbers again from the traces."""
    found = results(evaluated, with_timings=True)
    assert found["seed"] == found["split"].count("train") == 0
    assert (found["num_responses"], found["device"], found["precision"]) == (2, "cpu", "float32")
    assert len(found["checkpoint"]["sha256"]) == len(found["chat_template_sha256"]) == 64
    assert {"python", "platform", "num_threads"} <= found["versions"].keys()
    assert {"unmask", "torch", "transformers", "numpy"} <= found["versions"]["packages"].keys()
    assert found["engine"]["max_sequences"] == 256
    task = found["tasks"]["chained_arithmetic"]
    assert task["source"]["options"]["max_operations"] == 2  # the run's own
    assert (task["reward"]["name"], len(task["dataset_hash"])) == ("exact", 16)
    for mode, name in zip(("static", "dynamic"), NAMES, strict=True):
        assert task["modes"][mode]["sampling"]["max_new_tokens"] == 12
        metrics, rows = task["modes"][mode]["metrics"], lines(evaluated / name)
        assert [row["member"] for row in rows] == [0, 1] * 6
        assert metrics["num_examples"] == 6
        right = [row["reward"] >= 1 for row in rows]
        assert metrics["accuracy"] == pytest.approx(sum(right) / 12)
        either = sum(a or b for a, b in zip(right[::2], right[1::2], strict=True))
        assert metrics["pass_at"] == {"1": pytest.approx(sum(right) / 12), "2": pytest.approx(either / 6)}
        assert metrics["confidence_95"][0] <= metrics["accuracy"] <= metrics["confidence_95"][1]
        tokens = sum(row["trace"]["num_response_tokens"] for row in rows)
        assert metrics["tokens_per_forward"] == pytest.approx(tokens / sum(row["trace"]["num_forwards"] for row in rows))
        given = task["modes"][mode]["rewards"]
        assert [reward for row in rows[::2] for reward in given[row["id"]]] == [row["reward"] for row in rows]
        assert all(row["reason"] for row in rows)
        assert found["timings"]["chained_arithmetic"][mode]["tokens_per_second"] > 0
    sampled = lines(evaluated / NAMES[1])
    assert sampled[0]["trace"]["seed"] == derive_seed(0, "eval", 0, 0) != sampled[1]["trace"]["seed"]


def test_the_same_twice(trained, evaluated, tmp_path) -> None:
    """Also with other limits of the engine, which say in what company a response is decoded."""
    evaluate(trained, tmp_path / "again", "-k", 2)
    assert results(tmp_path / "again") == results(evaluated)
    evaluate(trained, tmp_path / "alone", "-k", 2, "engine.max_sequences=3")
    assert results(tmp_path / "alone")["tasks"] == results(evaluated)["tasks"]
    for name in NAMES:
        assert (evaluated / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        decoded = [
            [(row["id"], row["trace"]["canvas_ids"], row["trace"]["step_map"]) for row in lines(folder / name)]
            for folder in (evaluated, tmp_path / "alone")
        ]
        assert decoded[0] == decoded[1]


def test_the_table(trained, tmp_path) -> None:
    result = evaluate(trained, tmp_path / "out", "--sampling", "dynamic")
    assert "dynamic" in result.stdout
    assert "static" not in result.stdout
    assert list(results(tmp_path / "out")["tasks"]["chained_arithmetic"]["modes"]) == ["dynamic"]


@pytest.mark.slow
def test_killed_and_started_again(trained, evaluated, tmp_path) -> None:
    """Whatever an earlier run has written is kept, what it was writing is not, and the result is that of one run."""
    output = tmp_path / "out"
    output.mkdir()
    process = start("eval", trained / "rl", *SHORT, "-k", 2, "--output", output, "engine.max_sequences=2", "run.num_threads=1")
    deadline = time.monotonic() + 60
    while not (output / NAMES[0]).exists() or (output / NAMES[0]).stat().st_size < 500:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = (output / NAMES[0]).read_bytes()
    assert not (output / "results.json").exists()
    (output / NAMES[0]).write_bytes(done + b'{"id": "held_out-1", "tra')  # torn
    evaluate(trained, output, "-k", 2)
    assert results(output) == results(evaluated)
    assert [(output / name).read_bytes() for name in NAMES] == [(evaluated / name).read_bytes() for name in NAMES]


def test_what_is_there_is_not_decoded_again(trained, evaluated, tmp_path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    rows = lines(evaluated / NAMES[0])
    rows[3]["trace"]["num_forwards"] = 1000  # so that it is known again
    (output / NAMES[0]).write_text("".join(json.dumps(row) + "\n" for row in rows[2:]))
    evaluate(trained, output, "-k", 2)
    assert [row["trace"]["num_forwards"] for row in lines(output / NAMES[0])].count(1000) == 1
    evaluate(trained, output, "-k", 2, "--overwrite")
    assert results(output) == results(evaluated)


def test_traces_of_something_else_are_refused(trained, evaluated) -> None:
    result = unmask("eval", trained / "rl", *SHORT, "-k", 2, "--output", evaluated, "modes.static.temperature=0.5")
    assert result.returncode == 2
    assert "was made from another prompt or with other settings" in result.stderr
    result = unmask("eval", trained / "sft", *SHORT, "-k", 2, "--output", evaluated)
    assert result.returncode == 2
    assert "of another checkpoint" in result.stderr


def test_tasks_by_name(trained, tmp_path) -> None:
    """Each with options, a reward and a number of examples of its own."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"id": f"r{i}", "question": f"{i}+1=?", "ground_truth_answer": str(i + 1)}) + "\n" for i in range(4))
    )
    words = [f"tasks.mine.source={{name='jsonl', options={{path='x', held_out_path='{rows}'}}}}"]
    words += ["tasks.chained_arithmetic.num_examples=3", "tasks.mine.reward={name='length', options={one_at=4, zero_at=12}}"]
    result = evaluate(trained, tmp_path / "out", "--tasks", "chained_arithmetic", "--sampling", "static", *words)
    tasks = results(tmp_path / "out")["tasks"]
    assert [(name, task["modes"]["static"]["metrics"]["num_examples"]) for name, task in tasks.items()] == [
        ("chained_arithmetic", 3), ("mine", 4),
    ]  # fmt: skip
    assert tasks["mine"]["reward"]["name"] == "length"
    assert "mine" in result.stdout


def test_results_say_what_rewards_depended_on(trained, tmp_path) -> None:
    """Besides their options: the version of a function's file, and the sandbox's active protections."""
    function, rows = tmp_path / "short.py", tmp_path / "rows.jsonl"
    function.write_text("def short(rollout, example):\n    return 0.5\n")
    rows.write_text('{"question": "1+1=?", "test_input": ["1"], "test_output": ["2"]}\n')
    terms = f"[{{name='{function}:short', weight=0.5}}, {{name='code', weight=0.5}}]"
    words = [f"tasks.mine.source={{name='jsonl', options={{path='{rows}', held_out_share=1.0}}}}"]
    words += [f"tasks.mine.reward={{name='weighted_sum', options={{terms={terms}}}}}", "--sampling", "static"]
    evaluate(trained, tmp_path / "out", *words)
    assert results(tmp_path / "out")["tasks"]["mine"]["scored_with"] == {
        f"{function}:short.sha256": hashlib.sha256(function.read_bytes()).hexdigest(), "code.sandbox": describe_sandbox(),
    }  # fmt: skip
    function.write_text("def short(rollout, example):\n    return 0.25\n")
    evaluate(trained, tmp_path / "other", *words)
    result = unmask("eval", "--compare", tmp_path / "out", tmp_path / "other")
    assert f"scored with another {function}:short.sha256: " in " ".join(result.stdout.split())
    assert "another code.sandbox" not in result.stdout


def test_compare(evaluated, trained, tmp_path) -> None:
    result = unmask("eval", "--compare", evaluated, evaluated / "results.json")
    assert result.returncode == 0, result.stderr
    assert "+0.0% (+0.0% to +0.0%)" in result.stdout
    evaluate(trained, tmp_path / "other", "modes.dynamic.temperature=0.5", "num_examples=8", "--sampling", "dynamic")
    result = unmask("eval", "--compare", evaluated, tmp_path / "other")
    assert result.returncode == 0, result.stderr
    assert "chained_arithmetic, dynamic: other examples: 6 ids in common of 6 and 8" in result.stdout
    assert "chained_arithmetic, dynamic: other settings: temperature 1.0 / 0.5" in result.stdout


def test_bad_words(trained, evaluated, tmp_path) -> None:
    (tmp_path / "results.json").write_text('{"tasks": []}')
    for words, message in [
        (["--compare", evaluated, tmp_path / "no"], "no such file"),
        (["--compare", evaluated, tmp_path], "is no result of `unmask eval`"),
        ([trained / "rl", "--compare", evaluated, evaluated], "--compare takes two results and no checkpoint"),
        ([], "give a checkpoint"),
        ([trained / "rl", "--sampling", "fast"], "--sampling: unknown mode 'fast'; known: static, dynamic"),
        ([trained / "rl", "--tasks", "gsm9k"], "unknown source 'gsm9k'"),
        ([trained / "rl", "-k", "0"], "-k"),
        ([trained / "rl", "tasks.mine.reward.name=exact"], "tasks.mine.source"),
    ]:
        result = unmask("eval", *words)
        assert result.returncode == 2, words
        assert message in result.stderr, words
        assert len(result.stderr.splitlines()) == 1
