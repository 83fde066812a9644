"""The README does what it says: every block of code and every command in it is run, in order, in an empty folder.

The folder holds what the quickstart leaves behind, from the quickstart's own recipes cut to two small steps. Commands are
run exactly as written, in this process as `python -m unmask` (the first one in a process of its own).
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer.main

import unmask
from tests.docs.blocks import ROOT, code_blocks, commands
from unmask.cli.main import app
from unmask.config import RlRecipe, SftRecipe, load_recipe
from unmask.launch import start
from unmask.quickstart.stages import NUM_QUESTIONS

README = ROOT / "README.md"
BLOCKS = code_blocks(README)
COMMANDS = [words for block in BLOCKS if block.language == "bash" for words in commands(block)]
RECIPES = ROOT / "src" / "unmask" / "quickstart" / "recipes"
SMALL = [
    "run.device=cpu",
    "run.num_threads=1",  # two that spin get in each other's way when the machine has other work
    "source.options.size=32",
    "train.max_steps=2",
    "eval.num_examples=2",
    "eval.sampling.max_new_tokens=8",
]
SMALL_SFT = [*SMALL, "train.batch_size=4"]
SMALL_RL = [*SMALL, "train.prompts_per_step=2", "train.group_size=2", "rollout.max_new_tokens=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with runs/quickstart-seed-0 and recipes/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        runs = Path("runs/quickstart-seed-0")
        shutil.copytree(ROOT / "recipes", "recipes")
        checkpoint = None
        for name, kind, small in (
            ("1-sft-basics", SftRecipe, SMALL_SFT), ("2-sft-sloppy", SftRecipe, SMALL_SFT), ("3-rl", RlRecipe, SMALL_RL),
        ):  # fmt: skip
            own = [f"run.dir={runs / name}", *([f"model.path={checkpoint}"] if checkpoint else [])]
            recipe = load_recipe(kind, [RECIPES / f"{name}.toml"], [*small, *own])
            checkpoint = start(recipe).checkpoint
        for name in ("before", "after"):
            output = ["--output", str(runs / f"{name}.jsonl")]
            run_unmask(["generate", str(checkpoint), "max_new_tokens=8", "--prompt", "1+2=?", *output])
        yield Path.cwd()


def run_unmask(words: list[str]) -> None:
    """`python -m unmask WORDS` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["unmask", *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("unmask", run_name="__main__", alter_sys=True)
    assert end.value.code == 0, words


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {block.language for block in BLOCKS} == {"bash", "python"}


def test_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands, in order; then the files that the README speaks of are there."""
    with ExitStack() as servers:
        run_commands(monkeypatch, servers)
    check_files(folder)


@contextmanager
def serving(arguments: list[str]) -> Iterator[str]:
    """The address of a server, on whatever port is free."""
    words = [sys.executable, "-m", "unmask", "serve", *arguments[:-1], "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr)
            yield next(found[1] for line in lines if (found := re.search(r"serving .* at (http:\S+)", line)))
        finally:
            process.terminate()
            process.stderr.read()
    assert process.returncode == 0


def run_commands(monkeypatch: pytest.MonkeyPatch, servers: ExitStack) -> None:
    address = ""
    for words in COMMANDS:
        match words:
            case ["make", *targets]:
                check_make_targets(targets)
            case ["python", "-m", "pip", "install", "-e", what]:
                check_installable(what)
            case ["unmask", "quickstart", *_]:
                monkeypatch.setattr("unmask.quickstart.stages.run_quickstart", lambda seed, folder, settings: 0)
                run_unmask(words[1:])
            case ["unmask", "lm-eval", *arguments]:  # needs the network
                given: list[list[str]] = []
                monkeypatch.setitem(sys.modules, "unmask.lm_harness", SimpleNamespace(main=given.append))
                run_unmask(["lm-eval", *arguments])
                assert given == [arguments]
            case ["unmask", "serve", *arguments]:
                assert arguments[-2:] == ["--port", "8000"]
                address = servers.enter_context(serving(arguments))
            case ["curl", url, *arguments]:
                call = ["curl", "--silent", "--fail", url.replace("http://127.0.0.1:8000", address), *arguments]
                if shutil.which("curl"):
                    answer = json.loads(subprocess.run(call, check=True, capture_output=True).stdout)
                    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
            case ["unmask", *arguments]:
                run_unmask(arguments)
            case _:
                pytest.fail(f"no test runs {words}")


def check_files(folder: Path) -> None:
    for name in (
        "traces.jsonl",
        "traces.html",
        "compared.html",
        "evaluation/results.json",
        "curves/plot.html",
        "curves/plot.png",
        "answer.gif",
        "compared.gif",
        "generated.gif",
    ):
        assert (folder / name).stat().st_size > 0
    sft, rl = (tomllib.loads((folder / "runs" / name / "recipe.toml").read_text()) for name in ("terse-sft", "terse-rl"))
    assert sft["source"]["options"]["terse_rate"] == 0.5
    assert rl["train"]["max_steps"] == len((folder / "runs/terse-rl/timings.jsonl").read_text().splitlines()) == 40


def test_the_first_command_in_a_process_of_its_own(folder: Path) -> None:
    words = next(words for words in COMMANDS if words[:2] == ["unmask", "generate"])
    call, env = [sys.executable, "-W", "error", "-m", *words], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "tokens per forward" in done.stderr


def test_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in BLOCKS:
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.text  # a traceback names the README's own lines
            exec(compile(code, str(README), "exec"), names)
    traces, logits = names["traces"], names["logits"]
    assert len(traces) == 4
    assert names["mismatch"] < 1e-5
    assert logits.shape[:2] == (1, len(names["prompt"]) + len(traces[0].canvas_ids))
    assert (folder / "my-model" / "tokenizer.json").exists()
    assert capsys.readouterr().out.count("tokens per forward") == 4


def test_every_command_and_public_name_is_shown() -> None:
    shown = {words[1] for words in COMMANDS if words[0] == "unmask"}
    assert shown == set(typer.main.get_command(app).commands)
    text = README.read_text()
    assert [name for name in unmask.__all__ if f"unmask.{name}" not in text] == []


def test_markers_of_the_measured_table() -> None:
    markers = ["<!-- quickstart-table -->", "<!-- /quickstart-table -->"]
    assert re.findall(r"<!-- /?quickstart-table -->", README.read_text()) == markers


def test_what_is_said_of_the_quickstart() -> None:
    """The numbers in the text are those of its recipes."""
    text = " ".join(README.read_text().split())
    sloppy = tomllib.loads((RECIPES / "2-sft-sloppy.toml").read_text())["source"]["options"]
    assert "one step in seven is wrong, three demonstrations in ten skip the steps" in text
    assert (sloppy["slip_rate"], sloppy["terse_rate"]) == (0.15, 0.3)
    assert f"on {NUM_QUESTIONS} held-out questions" in text


def check_make_targets(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in words if "=" not in word and word not in targets] == []


def check_installable(what: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what)
    assert extras, what
    assert set((extras[1] or "").split(",")) - {""} <= set(project["optional-dependencies"])
