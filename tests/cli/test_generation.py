"""`unmask generate`: what it writes, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.recipes import unmask
from unmask.launch import find_model_folder

ROWS = [{"id": f"q{i}", "question": f"{i}+2=?"} for i in range(6)]


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def decoded(row: dict) -> tuple:
    return row["id"], row["trace"]["canvas_ids"], row["trace"]["step_map"]


def generate(trained, rows, output, *more):
    return unmask("generate", trained / "rl", "--input", rows, "--output", output, "max_new_tokens=8", *more)


def test_traces_in_the_order_of_the_input(trained, rows, tmp_path) -> None:
    result = generate(trained, rows, tmp_path / "out.jsonl", "engine.max_sequences=2")
    assert (result.returncode, result.stdout.strip()) == (0, str(tmp_path / "out.jsonl")), result.stderr
    found = lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    assert all(row["trace"]["logprobs"] and row["prompt_text"] for row in found)
    assert "6 answers" in result.stderr
    assert "tokens/s" in result.stderr
    printed = unmask("generate", trained / "rl", "--input", rows, "max_new_tokens=8")
    assert printed.stdout.splitlines() == [row["response_text"] for row in found]


def test_restart_skips_finished_rows(trained, rows, tmp_path) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    generate(trained, rows, whole)
    text = whole.read_text().splitlines(keepends=True)
    marked = json.loads(text[1]) | {"response_text": "was there"}
    output.write_text(text[4] + json.dumps(marked) + "\n" + text[0][:50])  # the last line is torn
    result = generate(trained, rows, output)
    assert result.returncode == 0, result.stderr
    assert "4 answers" in result.stderr
    assert "(2 were there already)" in result.stderr
    found = lines(output)
    assert found[1]["response_text"] == "was there"
    assert [decoded(row) for row in found] == [decoded(row) for row in lines(whole)]
    again = generate(trained, rows, output)
    assert "0 answers" in again.stderr
    assert lines(output) == found
    assert "6 answers" in generate(trained, rows, output, "--overwrite").stderr
    assert [decoded(row) for row in lines(output)] == [decoded(row) for row in lines(whole)]


@pytest.mark.slow
def test_killed_and_started_again(trained, rows, tmp_path) -> None:
    """Whole lines are there after a kill; the second start makes the rest, and the same file as an undisturbed one."""
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps({"id": str(i), "question": f"{i % 10}+{i % 7}=?"}) + "\n" for i in range(24)))
    output, words = tmp_path / "out.jsonl", ["max_new_tokens=40", "stop_token_ids=[]", "engine.max_sequences=2"]
    command = [sys.executable, "-m", "unmask", "generate", str(trained / "rl"), "--input", str(many), "--output", str(output)]
    process = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not output.exists() or output.stat().st_size < 6_000:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_done = output.read_text().count("\n")
    assert 0 < num_done < 24
    result = unmask("generate", trained / "rl", "--input", many, "--output", output, *words)
    assert f"({num_done} were there already)" in result.stderr
    unmask("generate", trained / "rl", "--input", many, "--output", tmp_path / "other.jsonl", *words)
    for a, b in zip(lines(output), lines(tmp_path / "other.jsonl"), strict=True):
        assert (a["id"], a["trace"]["canvas_ids"], a["trace"]["step_map"]) == (
            b["id"], b["trace"]["canvas_ids"], b["trace"]["step_map"],
        )  # fmt: skip


def test_modes_are_those_of_eval(trained, rows, tmp_path) -> None:
    for mode, strategy in (("static", "low_confidence_static"), ("dynamic", "low_confidence_dynamic")):
        output = tmp_path / f"{mode}.jsonl"
        generate(trained, rows, output, "--mode", mode, "seed=3")
        settings = lines(output)[0]["trace"]["settings"]
        assert (settings["remasking_strategy"], settings["temperature"] == 0) == (strategy, mode == "static")


def test_stop_strings(trained, rows, tmp_path) -> None:
    result = unmask(
        "generate", trained / "rl", "--prompt", "1+2=?", "max_new_tokens=30", "stop_token_ids=[]", 'stop_strings=["="]',
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "=" not in result.stdout.strip()[:-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "fast"], "unknown mode 'fast'; known: static, dynamic"),
        (["--dtype", "int8"], "unknown dtype 'int8'; known: auto, float32, bfloat16"),
        (["engine.max_sequence=3"], "unknown key 'engine.max_sequence'; the nearest known key is 'engine.max_sequences'"),
        (["engine.num_pages=1", "max_new_tokens=100"], "the pool has 1: ask for fewer tokens, or give the engine more memory"),
        (["cache=dual"], 'cache "dual" is for full-attention models; sdar is a block model'),
        (["denoising_steps=3", "denoising_steps_per_block=3"], "not both"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(trained, rows, tmp_path, words, message) -> None:
    output = tmp_path / "out.jsonl"
    result = unmask("generate", trained / "rl", "--input", rows, "--output", output, *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not output.exists()


def test_output_of_something_else_is_left_alone(trained, rows, tmp_path) -> None:
    output = tmp_path / "out.jsonl"
    generate(trained, rows, output)
    before = output.read_text()
    other_rows = tmp_path / "other.jsonl"
    other_rows.write_text('{"id": "x", "question": "1+1=?"}\n')
    changed = tmp_path / "changed.jsonl"
    changed.write_text(rows.read_text().replace("3+2", "3+3"))
    for words, message in (
        ([trained / "rl", "--input", rows, "seed=1"], "'q0' of the output was made from another prompt or with other"),
        ([trained / "rl", "--input", changed], "'q3' of the output was made from another prompt or with other"),
        ([trained / "rl", "--input", other_rows], "has row 'q0' of another input"),
        ([trained / "sft", "--input", rows], "has row 'q0' of another checkpoint"),
    ):
        result = unmask("generate", *words, "--output", output, "max_new_tokens=8")
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert "--overwrite" in result.stderr
        assert output.read_text() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"my": "json"}', "does not end with a line of traces"),
        ("a diary\nof three\nlines", "out.jsonl:1: is not a line of traces"),
        ('{"my": "json"}\n', "out.jsonl:1: unknown field 'my'"),
    ],
)
def test_foreign_files_are_left_alone(trained, rows, tmp_path, content, message) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text(content)
    result = generate(trained, rows, output)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert output.read_text() == content
    broken = generate(trained, rows, output, "--overwrite", "engine.num_pages=1", "max_new_tokens=100")
    assert (broken.returncode, output.read_text()) == (2, content)  # nothing was decoded: nothing is replaced


def test_a_moved_checkpoint_is_the_same_one(trained, rows, tmp_path) -> None:
    output, moved = tmp_path / "out.jsonl", tmp_path / "moved"
    generate(trained, rows, output)
    shutil.copytree(find_model_folder(str(trained / "rl")), moved)
    result = unmask("generate", moved, "--input", rows, "--output", output, "max_new_tokens=8")
    assert (result.returncode, "(6 were there already)" in result.stderr) == (0, True), result.stderr


def test_two_rows_with_one_id(trained, tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "question": "1+1=?"}\n{"id": "a", "question": "2+1=?"}\n')
    result = unmask("generate", trained / "rl", "--input", tmp_path / "rows.jsonl")
    assert result.returncode == 2
    assert "two rows have the id 'a'; ids must differ" in result.stderr


def test_answers_are_begun_as_asked(trained, tmp_path) -> None:
    """The prefix ends the prompt, of --prompt and of --input alike; a row's own comes first."""
    (tmp_path / "rows.jsonl").write_text('{"question": "1+2=?"}\n{"question": "1+2=?", "response_prefix": "3"}\n')
    ends = []
    for name, words in (("a", ["--prompt", "1+2=?"]), ("b", ["--input", tmp_path / "rows.jsonl"])):
        output = tmp_path / f"{name}.jsonl"
        done = unmask("generate", trained / "rl", *words, "--response-prefix", "1+2=", "--output", output, "max_new_tokens=4")
        assert done.returncode == 0, done.stderr
        ends += [
            "".join(json.loads(line)["prompt_pieces"]).rpartition("<|assistant|>")[2]
            for line in output.read_text().splitlines()
        ]
    assert ends == ["1+2=", "1+2=", "3"]
