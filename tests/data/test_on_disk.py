"""Rows that stay on disk: the same examples as with all of them in memory, at a few bytes a row."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from tests.data.shared import SHARED, examples, needs_shared, questions, write_rows
from tests.recipes import SFT, unmask, write_recipe
from unmask.config import Plugin
from unmask.data.jsonl import JsonlSource
from unmask.data.sources import open_source
from unmask.data.tasks import TASKS
from unmask.errors import UnmaskError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unmask" / "rows"


def mixed_rows() -> list[dict]:
    """Questions that are there twice, conversations, own ids with long common beginnings, text beyond ASCII."""
    turns = [{"role": role, "content": f"{role} {i} é"} for i in range(3) for role in ("user", "assistant")]
    rows: list[dict] = questions(40) + questions(12)
    rows += [{"id": f"a name of its own, number {i}", "question": f"What is {i % 3} + 1?", "response": "ü"} for i in range(9)]
    rows += [{"messages": turns, "ground_truth_answer": "1"}, {"id": "talk", "messages": turns[:5]}]
    return [*rows, {"prompt": "Sort.", "test_list": ["assert f() == 1"], "response": "f"}, {"question": "no answer"}]


def write_parquet(path, rows: list[dict], **options) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return str(path)


def assert_same(name: str, **options) -> int:
    """Ids, contents, order and hash, or the error, are the same; in any order of access. Returns the number of examples."""
    total = 0
    for split in ("train", "held_out"):
        found: list = []
        for on_disk in (False, True):
            try:
                source = open_source(Plugin(name=name, options={**options, "keeps_on_disk": on_disk}), split, 0)
                indices = range(len(source)) if not on_disk else reversed(range(len(source)))
                read = {i: source[i] for i in indices}
                found.append(([read[i] for i in range(len(source))], source.dataset_hash))
            except UnmaskError as error:
                found.append(str(error))
        assert found[0] == found[1]
        total += len(found[0][0]) if isinstance(found[0], tuple) else 0
    return total


SHARES = [{}, {"held_out_share": 0.3}, {"held_out_share": 0.8}]
ORDERS = [{}, {"limit": 7}, {"shuffle_seed": 3}, {"shuffle_seed": 4, "limit": 25}]
PROMPTS = [{}, {"num_shots": 2, "system_prompt": "Be brief."}, {"num_shots": 2, "response_prefix": "It is "}]


@pytest.mark.parametrize(("share", "order", "prompt"), list(itertools.product(SHARES, ORDERS, PROMPTS)))
def test_the_same_examples(share, order, prompt, tmp_path) -> None:
    rows = mixed_rows()
    path = tmp_path / "a.jsonl"
    lines = "\n\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())  # with a mark at the beginning, empty lines, no end of line
    options = {**share, **order, **prompt}
    assert assert_same("jsonl", path=str(path), trained_turns="all", **options) > 3
    plain = [
        {key: row.get(key) for key in ("question", "response", "ground_truth_answer")} for row in rows if "question" in row
    ]
    folder = tmp_path / "folder"
    write_parquet(folder / "train.parquet", plain, row_group_size=10)
    write_rows(folder / "more" / "train.jsonl", plain[:5])
    write_rows(folder / "test.jsonl", plain[5:9])
    assert assert_same("jsonl", path=str(folder), **options) > 3
    answered = [row for row in plain if row["ground_truth_answer"] is not None]
    write_parquet(folder / "train.parquet", answered)
    write_rows(folder / "more" / "train.jsonl", answered[:5])
    assert assert_same("math500", path=str(folder), **options) > 3  # ids of the question's hash, some with a number


def test_the_same_errors(tmp_path) -> None:
    twice = write_rows(tmp_path / "a.jsonl", [{"id": 2, "question": "x"}, {"question": "y"}])
    assert_same("jsonl", path=twice)
    assert_same("jsonl", path=str(tmp_path / "none.jsonl"))
    broken = [{"question": "a"}, {"text": 1}, {"question": "b \ud800"}, {"question": "c", "id": "1"}, {"question": "d"}]
    path = write_rows(tmp_path / "b.jsonl", broken)
    found = []
    for limit, on_disk in itertools.product((None, 1), (False, True)):
        errors: list[UnmaskError] = []
        options = JsonlSource.Options(path=path, keeps_on_disk=on_disk, limit=limit)
        source = JsonlSource(options, "train", 0, errors)
        found.append(([source[i] for i in range(len(source))], [str(error) for error in errors]))
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert [error.split("b.jsonl:")[1][0] for error in found[0][1]] == ["2", "4", "3"]
    assert len(found[3][1]) == 2  # what the limit leaves out is not made into examples
    few = write_rows(tmp_path / "c.jsonl", questions(3))
    for num in (2, 3, 4):
        assert_same("jsonl", path=few, num_shots=num)
        assert_same("jsonl", path=write_rows(tmp_path / "d.jsonl", questions(9)[::-1]), num_shots=num, shots_path=few)
    assert_same("jsonl", path=few, prompt_template="{question} {tests}")
    assert_same("jsonl", path=write_rows(tmp_path / "e.jsonl", [{"question": "a"}]), num_shots=1)


@needs_shared
@pytest.mark.parametrize("options", [{}, {"shuffle_seed": 1, "limit": 300}])
def test_the_same_of_real_files(options) -> None:
    assert assert_same("gsm8k", path=str(SHARED / "gsm8k"), **options) > 500
    assert_same("humaneval", path=str(SHARED / "code" / "HumanEval.jsonl"), **options)


def test_arrays_are_refused(tmp_path) -> None:
    path = write_rows(tmp_path / "a.json", questions(2))
    with pytest.raises(
        UnmaskError, match=r"a\.json: an array is read as a whole; for keeps_on_disk write JSON lines: unmask data"
    ):
        examples("jsonl", path=path, keeps_on_disk=True)
    lines = tmp_path / "b.json"
    lines.write_text('{"question": "x"}\n')
    assert len(examples("jsonl", path=str(lines), keeps_on_disk=True)) == 1
    result = unmask("data", "check", path, "keeps_on_disk=true")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("change", ["longer", "as long", "gone"])
def test_a_file_that_changes_is_refused(kind, change, tmp_path) -> None:
    write = write_rows if kind == "jsonl" else write_parquet
    path = tmp_path / f"a.{kind}"
    write(path, questions(5))
    source = open_source(Plugin(name="jsonl", options={"path": str(path), "keeps_on_disk": True}), "train", 0)
    assert source[4].response == "It is 5."
    if change == "gone":
        path.unlink()
    elif change == "longer":
        write(path, questions(9))
    else:
        os.utime(path, ns=(0, 0))
    with pytest.raises(UnmaskError, match=rf"a\.{kind}: was changed or removed since its rows were found"):
        source[4]


def test_the_copy_of_a_parquet_file_is_made_once(tmp_path, cache) -> None:
    path = write_parquet(tmp_path / "a.parquet", questions(3000))
    for _ in range(2):
        assert len(examples("jsonl", path=path, keeps_on_disk=True)) == 3000
        [copy] = cache.iterdir()
    write_parquet(tmp_path / "a.parquet", questions(30))
    assert len(examples("jsonl", path=path, keeps_on_disk=True)) == 30
    [other] = set(cache.iterdir()) - {copy}
    other.write_bytes(other.read_bytes()[:100])
    with pytest.raises(UnmaskError, match=r"\.arrow: not a whole copy of .*a\.parquet .*remove it, and it is made again"):
        examples("jsonl", path=path, keeps_on_disk=True)


@pytest.mark.parametrize("options", [{}, {"shuffle_seed": 1}])
def test_memory_is_some_tens_of_bytes_a_row(options, tmp_path) -> None:
    """What is kept, and what the first pass needs at its peak; in memory a row is more than a kilobyte."""
    plugins = [
        Plugin(
            name="jsonl", options={"path": write_rows(tmp_path / f"{num}.jsonl", questions(num)), **options, "keeps_on_disk": d}
        )
        for num, d in ((2000, True), (200, False))
    ]
    open_source(plugins[0], "train", 0)  # what is imported and made once
    kept = []
    for plugin in plugins:
        tracemalloc.start()
        source = open_source(plugin, "train", 0)
        kept.append([value / len(source) for value in tracemalloc.get_traced_memory()])
        tracemalloc.stop()
    assert kept[0][0] < 60
    assert kept[0][1] < 300
    assert kept[1][0] > 1000


RSS = """
import sys
from unmask.config import Plugin
from unmask.data.sources import open_source

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

sources = []
for path in sys.argv[1:]:
    before = resident()
    options = {"path": path, "keeps_on_disk": True, "shuffle_seed": 1}
    sources.append(open_source(Plugin(name="jsonl", options=options), "train", 0))
for i in range(0, len(sources[-1]), 100):
    sources[-1][i]
print((resident() - before) / len(sources[-1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_of_a_process_with_200k_rows(tmp_path) -> None:
    """Resident memory grows by less than 100 bytes a row, when 2,000 of them have been read, too."""
    rows = ({"question": f"What is {i} + 1?", "response": "word " * 100} for i in range(200_000))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_rows(tmp_path / "few.jsonl", questions(2000))
    command = [sys.executable, "-c", RSS, str(tmp_path / "few.jsonl"), str(tmp_path / "a.jsonl")]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 100


def test_a_run_on_disk_is_the_run_in_memory(tmp_path) -> None:
    """Every step; and a row without a response, the last of many, is named before it begins."""
    rows = [{"question": f"{i}+{i}=?", "response": f"{i}+{i}={2 * i % 10};"} for i in range(9)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    first = write_recipe(tmp_path, "sft", SFT)
    arithmetic = unmask("sft", first, "train.max_steps=1", "eval.every_steps=0", f"run.dir={tmp_path / 'm'}")
    assert arithmetic.returncode == 0, arithmetic.stderr
    text = SFT.replace('preset = "sdar/tiny"', f'path = "{tmp_path / "m"}"').replace("chained_arithmetic", "jsonl")
    text = text.replace("{ min_operations = 1, max_operations = 2 }", f'{{ path = "{path}" }}')
    recipe = write_recipe(tmp_path, "lines", text)
    for name, words in (("memory", []), ("disk", ["source.options.keeps_on_disk=true"])):
        result = unmask("sft", recipe, "eval.every_steps=0", f"run.dir={tmp_path / name}", *words)
        assert result.returncode == 0, result.stderr
    memory, disk = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("memory", "disk"))
    assert memory == disk
    write_rows(tmp_path / "a.jsonl", [*rows, {"question": "1+1=?"}])
    result = unmask("sft", recipe, "source.options.keeps_on_disk=true", "eval.every_steps=0", f"run.dir={tmp_path / 'none'}")
    assert (result.returncode, result.stderr) == (
        2, "error: example 10: has no response; supervised fine-tuning needs demonstrations\n"
    )  # fmt: skip
    assert not (tmp_path / "none").exists()


def test_every_task_has_the_option() -> None:
    assert all("keeps_on_disk" in task.Options.model_fields for task in TASKS.values())
