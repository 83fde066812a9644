"""`unmask data`: shows, checks and converts; a mistake is one line, nothing is half-written."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.data.shared import SHARED, examples, needs_shared, questions, write_rows
from tests.recipes import SFT, start, unmask, write_recipe
from unmask.data.chat import ChatTokenizer


def test_show_counts_and_renders(tmp_path) -> None:
    rows = [*questions(3), {"question": "Echo.", "test_input": ["a"], "test_output": ["a"], "test_time_limit": 2}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    held_out = write_rows(tmp_path / "test.jsonl", questions(2))
    result = unmask("data", "show", path, f"held_out_path={held_out}", "response_prefix=Hm: ", "--num", "4")
    assert result.returncode == 0, result.stderr
    cells = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]]
        for line in result.stdout.splitlines()
        if "│" in line
    }
    assert cells["rows"] == ["4", "2"]
    assert cells["with an answer"] == ["3", "2"]
    assert cells["with tests"] == ["1", "0"]
    assert cells["with a response"] == ["3", "2"]
    [lengths] = [row for name, row in cells.items() if name.startswith("prompts, characters")]
    assert lengths == ["14, 14, 14", "14, 14, 14"]
    assert "=== train 1 ===\n[user] What is 0 + 1?\n[assistant] Hm: \n--- prompt: 14 characters" in result.stdout
    assert "It is 3.\n--- response: 8 characters\n--- answer: 3" in result.stdout
    assert "--- tests: 1 (stdio, 2 s each), the first:\n'a' -> 'a'" in result.stdout
    assert result.stdout.count("===") == 2 * (4 + 2)


@needs_shared
def test_show_with_a_tokenizer() -> None:
    words = [
        f"path={SHARED / 'gsm8k'}",
        "limit=5",
        'response_prefix="<think>\\n"',
        "--tokenizer",
        SHARED / "tokenizers" / "qwen2.5",
    ]
    result = unmask("data", "show", "gsm8k", *words, "--split", "held_out")
    assert result.returncode == 0, result.stderr
    assert "within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n<think>\n\n--- prompt: " in result.stdout
    example = examples("gsm8k", "held_out", path=str(SHARED / "gsm8k"), response_prefix="<think>\n")[0]
    tokenizer = ChatTokenizer.load(SHARED / "tokenizers" / "qwen2.5")
    assert f"{tokenizer.prompt_text(example)}\n--- prompt: {len(tokenizer.prompt_ids(example))} tokens" in result.stdout
    assert "train" not in result.stdout


def test_show_of_a_recipe(tmp_path) -> None:
    recipe = write_recipe(tmp_path, "sft", SFT)
    result = unmask("data", "show", recipe, "size=7", "--split", "train")
    assert result.returncode == 0, result.stderr
    assert "=== train train-0 ===" in result.stdout
    assert "│ 7 " in result.stdout


def test_check_names_every_malformed_row(tmp_path) -> None:
    good = [json.dumps(row) for row in questions(3)]
    lines = [good[0], '{"question": ', good[1], "[1]", good[2], '{"question": "a", "test_method": "x"}', good[0]]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    write_rows(tmp_path / "test.json", [questions(2)[1], {"question": "new"}, 3])
    result = unmask("data", "check", "jsonl", f"path={tmp_path / 'train.jsonl'}", f"held_out_path={tmp_path / 'test.json'}")
    assert result.returncode == 2
    said = result.stderr.splitlines()
    assert [line.split(": ")[0].removeprefix(f"{tmp_path}/") for line in said[:-1]] == [
        "train.jsonl:2", "train.jsonl:4", "train.jsonl:6", "test.json[2]"
    ]  # fmt: skip
    assert said[-1] == "error: 4 malformed rows"
    assert "train: 4 good rows, 1 with the same prompt as an earlier one" in result.stdout
    assert "held_out: 2 good rows, 0 with" in result.stdout
    assert "in both splits: 1 prompts" in result.stdout
    limited = unmask("data", "check", tmp_path / "train.jsonl", "--max-errors", "1")
    assert limited.stderr.splitlines()[1:] == ["error: 3 malformed rows, 2 of them not shown (--max-errors)"]
    shared = unmask("data", "check", tmp_path / "train.jsonl", "held_out_share=0.5")  # both splits are of one file
    assert (len(shared.stderr.splitlines()), shared.stderr.splitlines()[-1]) == (4, "error: 3 malformed rows")
    assert limited.stderr.startswith(f"{tmp_path / 'train.jsonl'}:2: not valid JSON")


def test_check_of_good_rows(tmp_path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", questions(50))
    result = unmask("data", "check", path, "held_out_share=0.3", "num_shots=2")
    assert (result.returncode, result.stderr) == (0, "")
    assert "in both splits: 0 prompts" in result.stdout
    assert "held_out: none (" in unmask("data", "check", path).stdout


@needs_shared
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_converted_rows_are_the_same_examples(tmp_path, name) -> None:
    path = SHARED / "code" / {"humaneval": "HumanEval.jsonl", "mbpp": "mbpp_sanitized.json"}[name]
    out = tmp_path / "new" / "out.jsonl"
    result = unmask("data", "convert", name, out, f"path={path}", "limit=50", "--split", "held_out")
    assert (result.returncode, result.stdout) == (0, f"{out}\n")
    assert examples("jsonl", path=str(out)) == examples(name, "held_out", path=str(path), limit=50)
    assert [p.name for p in out.parent.iterdir()] == ["out.jsonl"]


def test_a_conversion_replaces_nothing_unasked(tmp_path) -> None:
    path, out = write_rows(tmp_path / "rows.jsonl", questions(3)), tmp_path / "out.jsonl"
    out.write_text("mine")
    result = unmask("data", "convert", path, out)
    assert (result.returncode, out.read_text()) == (2, "mine")
    assert "out.jsonl: exists; choose another name, or --overwrite" in result.stderr
    assert unmask("data", "convert", path, out, "--overwrite").returncode == 0
    assert len(out.read_text().splitlines()) == 3


def test_an_interrupted_conversion_leaves_nothing(tmp_path) -> None:
    out = tmp_path / "out" / "rows.jsonl"
    with start("data", "convert", "chained_arithmetic", out, "size=100000000") as process:
        deadline = time.monotonic() + 60
        while not list(out.parent.glob(".*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (130, False)
    assert list(out.parent.iterdir()) == []


MISTAKES = {
    "unknown source": (["show", "mnist"], "unknown source 'mnist'; known: chained_arithmetic, jsonl, traces, gsm8k, math500"),
    "unknown option": (["show", "gsm8k", "pathh=x"], "source.options: unknown key 'pathh'; the nearest known key is 'path'"),
    "no such file": (["check", "gsm8k", "path=/no/rows.jsonl"], "/no/rows.jsonl: no such file"),
    "malformed row": (["convert", "bad.jsonl", "out.jsonl"], "bad.jsonl:2: not valid JSON"),
    "no training rows": (
        ["convert", "math500", "out.jsonl", "path=good.jsonl"],
        "source math500: no rows of the split train at",
    ),
    "unknown split": (["show", "good.jsonl", "--split", "test"], "unknown split 'test'; known: train, held_out"),
    "recipe without source": (["show", "empty.toml"], "empty.toml: has no source.name"),
    "no tokenizer": (["show", "good.jsonl", "--tokenizer", "."], "no usable tokenizer here"),
    "a trace": (["convert", "traces", "out.jsonl", "path=traces.jsonl"], "a recorded trace has no place in a row"),
    "output below a file": (["convert", "good.jsonl", "good.jsonl/out.jsonl"], "good.jsonl/out.jsonl: "),
    "output is a folder": (["convert", "good.jsonl", "."], ".: exists; choose another name"),
    "bad options": (["show", "good.jsonl", "num_shots=many"], "source.options: num_shots: Input should be a valid integer"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_and_exit_2(case, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "good.jsonl", questions(2))
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n{"question": \n')
    (tmp_path / "empty.toml").write_text("")
    trace = {"prompt_ids": [1], "canvas_ids": [2], "step_map": [0], "logprobs": [-1.0], "confidences": [0.5]}
    trace |= {"num_response_tokens": 1, "block_size": 1, "num_forwards": 1, "finish_reason": "stop", "seed": 0, "settings": {}}
    (tmp_path / "traces.jsonl").write_text(json.dumps({"id": "a", "trace": trace, "prompt_text": "q"}) + "\n")
    before = set(tmp_path.rglob("*"))
    words, message = MISTAKES[case]
    result = unmask("data", *words)
    assert result.returncode == 2
    assert message in result.stderr
    assert (result.stderr.startswith("error: "), result.stderr.count("\n")) == (True, 1)
    assert set(tmp_path.rglob("*")) == before
