"""The command line as a user meets it: help without torch, one line for every mistake, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.recipes import RL, SFT, unmask, write_recipe
from unmask.train.checkpoint import list_checkpoints

COMMANDS = (
    "quickstart",
    "sft",
    "rl",
    "eval",
    "lm-eval",
    "generate",
    "inspect",
    "checkpoint",
    "sandbox",
    "view",
    "plot",
    "data",
)


def test_help_is_quick_and_loads_no_torch() -> None:
    code = "import sys; from unmask.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    check = "sys.exit('torch' in sys.modules)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout
    assert time.monotonic() - start < 5  # a machine under load; alone it is 0.1 s


@pytest.mark.parametrize(
    "command", [*COMMANDS, "checkpoint new", "checkpoint export", "data show", "data check", "data convert"]
)
def test_every_command_explains_itself(command) -> None:
    result = unmask(*command.split(), "--help")
    assert (result.returncode, "Usage" in result.stdout) == (0, True)


def test_threads_spin_briefly_unless_told_otherwise() -> None:
    code = "import os\nfrom unmask.cli.main import main\ntry: main(['--version'])\nexcept SystemExit: pass\n"
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    for given, expected in (({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")):
        command = [sys.executable, "-c", code + "print(os.environ.get('GOMP_SPINCOUNT'))"]
        done = subprocess.run(command, capture_output=True, text=True, env=clean | given, check=True)
        assert done.stdout.split()[-1] == expected


def test_no_words_print_the_help() -> None:
    result = unmask()
    assert (result.returncode, result.stderr) == (0, "")
    assert "quickstart" in result.stdout


def test_dry_run_prints_a_recipe_that_loads(tmp_path) -> None:
    recipe = write_recipe(tmp_path, "sft", SFT)
    printed = unmask("sft", recipe, "optimizer.lr=0.25", f"run.dir={tmp_path / 'x'}", "--dry-run").stdout
    resolved = tomllib.loads(printed)
    assert resolved["optimizer"]["lr"] == 0.25
    assert resolved["objective"]["options"]["max_rate"] == 0.9  # defaults of the named part are there too
    assert not (tmp_path / "x").exists()
    again = unmask("sft", write_recipe(tmp_path, "again", printed), "--dry-run").stdout
    assert again == printed


def test_run_folder_holds_everything(trained) -> None:
    run = trained / "rl"
    assert {"recipe.toml", "versions.json", "metrics.jsonl", "timings.jsonl", "checkpoints"} <= {p.name for p in run.iterdir()}
    newest = list_checkpoints(run / "checkpoints")[-1]
    assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json"} <= {p.name for p in newest.iterdir()}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"reward_mean", "kl", "clip_share", "tokens_per_forward", "response_length", "grad_norm"} <= records[0].keys()
    assert "eval/accuracy" in records[-1]


def test_generate_and_view(trained, tmp_path) -> None:
    result = unmask("generate", trained / "rl", "max_new_tokens=8", "--prompt", "1+2=?", "--prompt", "3*3=?", "seed=4")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2
    assert "2 answers" in result.stderr
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+2=?"}\n{"question": "5-1=?"}\n')
    traces = tmp_path / "traces.jsonl"
    result = unmask("generate", trained / "rl", "max_new_tokens=8", "--input", rows, "--output", traces)
    assert (result.returncode, result.stdout.strip()) == (0, str(traces))
    result = unmask("view", traces)
    assert (result.returncode, result.stdout.strip()) == (0, str(tmp_path / "traces.html"))
    assert "<html" in (tmp_path / "traces.html").read_text()


def bad(tmp_path: Path, trained: Path) -> dict[str, tuple[list, str]]:
    sft = write_recipe(tmp_path, "sft", SFT)
    truncated = tmp_path / "truncated"
    shutil.copytree(list_checkpoints(trained / "sft" / "checkpoints")[-1], truncated)
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1=?"}\n{"question": \n')
    (tmp_path / "traces.jsonl").write_text('{"canvas_ids": [1]}\n')
    (tmp_path / "file").write_text("")
    (tmp_path / "unanswered.jsonl").write_text('{"question": "1+1=?"}\n')
    rl, rl_recipe = trained / "rl", write_recipe(tmp_path, "rl", RL)
    return {
        "misspelt key": (["sft", sft, "train.max_step=3"], "unknown key 'train.max_step'; the nearest known key is 'train.max_steps'"),
        "wrong type": (["sft", sft, "train.max_steps=many"], "train.max_steps: Input should be a valid integer, found 'many'"),
        "missing recipe": (["sft", tmp_path / "no.toml"], "no.toml: no such recipe file"),
        "no recipe": (["sft"], "Missing argument 'RECIPE..."),
        "missing model folder": (["eval", tmp_path / "no"], "no such folder"),
        "model is a file": (["generate", tmp_path / "file", "--prompt", "1"], "is a file; a model is a folder"),
        "truncated weights": (["generate", truncated, "--prompt", "1+1=?"], "not a complete safetensors file"),
        "malformed JSON line": (["generate", rl, "--input", tmp_path / "rows.jsonl"], "rows.jsonl:2: not valid JSON"),
        "malformed trace": (["view", tmp_path / "traces.jsonl"], "traces.jsonl:1: "),
        "missing traces": (["view", tmp_path / "no.jsonl"], "no.jsonl: no such file"),
        "device not there": (["sft", sft, "run.device=cuda:7"], "device 'cuda:7' cannot be used"),
        "device nonsense": (["sft", sft, "run.device=abacus"], "device 'abacus' cannot be used"),
        "unknown source": (["sft", sft, "source.name=web"], "unknown source 'web'; known: chained_arithmetic, jsonl"),
        "unknown option": (["sft", sft, "source.options.slip=1"], "source.options: unknown key 'slip'; the nearest known key is 'slip_rate'"),
        "unknown strategy": (["generate", rl, "--prompt", "1", "remasking_strategy=best"], "unknown remasking_strategy 'best'"),
        "unknown preset": (["sft", sft, "model.preset=gpt/tiny"], "unknown model preset 'gpt/tiny'; known: sdar/tiny"),
        "unknown backend": (["sft", sft, "run.attention_backend=x"], "unknown attention backend 'x'; known: auto, dense, tiled, flex"),
        "unmeasured stop": (["sft", sft, "stop.metric=bleu", "stop.patience=1", "train.max_steps=3"], "stop.metric 'bleu' is not measured; known: accuracy, "),
        "resume nothing": (["sft", sft, f"run.dir={tmp_path / 'none'}", "--resume"], "nothing to resume here"),
        "no prompts": (["generate", rl], "give prompts either with --prompt or with --input"),
        "no source": (["eval", truncated], "there is nothing to measure: name tasks (--tasks) or a source"),
        "stop without eval": (["sft", sft, "stop.metric=accuracy", "stop.patience=1", "eval.every_steps=0"], "stop.metric needs eval.every_steps"),
        "unknown rollout strategy": (["rl", rl_recipe, "rollout.remasking_strategy=best"], "unknown remasking_strategy 'best'"),
        "unknown advantage": (["rl", rl_recipe, "advantage=gae"], "unknown advantage 'gae'"),
        "text without tokens": (["generate", rl, "--prompt", "hello"], "the tokenizer has no tokens for some of"),
        "crossed rates": (["sft", sft, "objective.options.min_rate=0.95"], "min_rate 0.95 is above max_rate 0.9"),
        "run folder is a file": (["sft", sft, f"run.dir={tmp_path / 'file'}"], "file: File exists"),
        "output below a file": (["generate", rl, "--prompt", "1+1=?", "--output", tmp_path / "file" / "x"], "File exists"),
        "modes not tables": (["eval", rl, "modes.static=3"], "modes.static: "),
        "another device": (["sft", sft, "run.device=meta"], "device 'meta' cannot be used"),
        "page over traces": (["view", tmp_path / "traces.jsonl", "--output", tmp_path / "traces.jsonl"], "is the file with the traces"),
        "rl without answers": (["rl", rl_recipe, "source.name=jsonl", f"source.options.path={tmp_path / 'unanswered.jsonl'}",
            "model.preset=''", f"model.path={trained / 'sft'}", "eval.every_steps=0"], "has no answer"),
        "sft without responses": (["sft", sft, "source.name=jsonl", f"source.options.path={tmp_path / 'unanswered.jsonl'}",
            "model.preset=''", f"model.path={trained / 'sft'}", "eval.every_steps=0"], "has no response"),
        "unknown command": (["train"], "No such command 'train'"),
        "folder not writable": (["sft", sft, f"run.dir={tmp_path / 'file' / 'run'}"], "Not a directory"),
    }  # fmt: skip


CASES = (
    "misspelt key", "wrong type", "missing recipe", "no recipe", "missing model folder", "model is a file", "truncated weights",
    "malformed JSON line", "malformed trace", "missing traces", "device not there", "device nonsense", "unknown source",
    "unknown option", "unknown strategy", "unknown preset", "unknown backend", "unmeasured stop", "resume nothing", "no prompts",
    "no source", "stop without eval", "unknown rollout strategy", "unknown advantage", "text without tokens", "crossed rates", "run folder is a file", "output below a file", "modes not tables", "another device", "page over traces",
    "rl without answers", "sft without responses", "unknown command", "folder not writable",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_one_line_and_exit_2(case, trained, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words, message = bad(tmp_path, trained)[case]
    before = set(tmp_path.rglob("*"))
    result = unmask(*words)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before  # nothing half-written


def test_cases_are_all_listed(trained, tmp_path) -> None:
    assert set(bad(tmp_path, trained)) == set(CASES)
