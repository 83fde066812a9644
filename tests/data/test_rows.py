"""Files, folders and data sets on the hub. The hub's cache has its real layout, and there is no connection."""

from __future__ import annotations

import shutil

import huggingface_hub
import huggingface_hub.constants
import pytest

from tests.data.shared import examples, questions, write_rows
from unmask.data.rows import find_files, scan_rows, split_of_name
from unmask.data.tasks import TASKS
from unmask.errors import UnmaskError

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache with some data sets as the hub's client leaves it: Gen-Verse/MATH500 in two revisions, and GSM8K in parquet."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "cache"
    for number, (revision, commit) in enumerate(COMMITS.items()):
        _cached(cache, "Gen-Verse/MATH500", revision, commit, "test/MATH500.json", questions(3 + number))
    _cached(cache, "Gen-Verse/GSM8K", "main", COMMITS["main"], "test/GSM8K.json", questions(4))
    rows = [{"question": f"train {i}", "answer": f"<<1+1=2>>\n#### 1,00{i}"} for i in range(5)]
    _cached(cache, "openai/gsm8k", "main", COMMITS["main"], "main/train-00000-of-00001.parquet", rows)
    _cached(cache, "openai/gsm8k", "main", COMMITS["main"], "main/test-00000-of-00001.parquet", rows[:1])
    _cached(cache, "openai/gsm8k", "main", COMMITS["main"], "socratic/train-00000-of-00001.parquet", rows)
    original = huggingface_hub.snapshot_download  # looks its cache up when it is imported; here it is told
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **o: original(name, cache_dir=str(cache), **o))
    return cache


def _cached(cache, name, revision, commit, file, rows) -> None:
    repo = cache / f"datasets--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / revision).write_text(commit)
    path = repo / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(path, rows) if path.suffix == ".parquet" else write_rows(path, rows)


def write_parquet(path, rows) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_tasks_open_from_the_hub_by_name(hub) -> None:
    assert [e.answer for e in examples("math500", "held_out")] == ["1", "2", "3"]
    assert len(examples("math500", "held_out", revision="v2")) == 4
    assert len(examples("gsm8k", "held_out")) == 4
    assert [e.answer for e in examples("gsm8k")] == ["1000", "1001", "1002", "1003", "1004"]  # main/train-* alone


def test_any_data_set_on_the_hub_is_rows(hub) -> None:
    assert len(examples("jsonl", "held_out", path="Gen-Verse/MATH500")) == 3
    with pytest.raises(UnmaskError, match="Gen-Verse/MATH500: no rows of the split train, as the names of the files tell"):
        examples("jsonl", path="Gen-Verse/MATH500")
    assert len(examples("jsonl", path="openai/gsm8k:socratic/*", answer_key="answer")) == 5
    got = {split: len(examples("gsm8k", split, path="openai/gsm8k:main/*")) for split in ("train", "held_out")}
    assert got == {"train": 5, "held_out": 1}  # names of files tell


def test_what_the_hub_does_not_have_is_one_line(hub) -> None:
    for name, split, options, message in (
        ("livebench", "held_out", {}, r"Gen-Verse/LiveBench: no such local file or folder, and the hub did not deliver it: "),
        ("math500", "held_out", {"revision": "v3"}, r"Gen-Verse/MATH500: no such local file or folder, and the hub did not"),
        (
            "jsonl",
            "held_out",
            {"path": "Gen-Verse/MATH500:x/*.json"},
            r"Gen-Verse/MATH500: no x/\*.json here: .* not fetched yet",
        ),
        ("jsonl", "train", {"path": "owner/typo.jsonl"}, r"owner/typo.jsonl: no such file \(and not a data set on the hub"),
    ):
        with pytest.raises(UnmaskError, match=message) as error:
            examples(name, split, **options)
        assert "\n" not in str(error.value)


def test_a_revision_is_for_the_hub(tmp_path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", questions(1))
    with pytest.raises(UnmaskError, match="revision 'v2' is for data sets on the hub; all files are local"):
        examples("jsonl", path=path, revision="v2")


def test_what_is_fetched(monkeypatch, tmp_path) -> None:
    asked = []
    write_rows(tmp_path / "test" / "AIME2024.json", questions(1))
    write_rows(tmp_path / "rows.jsonl", questions(1))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **o: asked.append((name, o)) or str(tmp_path))
    assert [file.name for file in find_files(TASKS["aime2024"].held_out, "v2")] == ["test/AIME2024.json"]
    assert [file.name for file in find_files("owner/name")] == ["rows.jsonl", "test/AIME2024.json"]
    exact, everything = asked
    assert exact[0] == "Gen-Verse/AIME2024"
    assert exact[1] == {"repo_type": "dataset", "revision": "v2", "allow_patterns": ["test/AIME2024.json"]}
    assert everything[1]["allow_patterns"] == ["*.jsonl", "*.json", "*.parquet"]


def test_local_files_win_over_the_hub(hub, tmp_path, monkeypatch) -> None:
    write_rows(tmp_path / "Gen-Verse" / "MATH500" / "rows.jsonl", questions(7))
    monkeypatch.chdir(tmp_path)
    assert len(examples("jsonl", path="Gen-Verse/MATH500")) == 7


def test_files_below_a_folder(tmp_path) -> None:
    for name in ("b/test.jsonl", "a/train.json", ".git/x.json", "dataset_infos.json"):
        write_rows(tmp_path / name, questions(1))
    (tmp_path / "README.md").write_text("no rows")
    assert [file.name for file in find_files(str(tmp_path))] == ["a/train.json", "b/test.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnmaskError, match=r"empty: no file of rows in this folder \(.jsonl, .json, .parquet\)"):
        find_files(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("main/train-00000-of-00001.parquet", "train"), ("MATH_train.json", "train"), ("train_head1000.jsonl", "train"),
        ("test/MATH500.json", "held_out"), ("data/validation-0.parquet", "held_out"), ("held_out.jsonl", "held_out"),
        ("HumanEval.jsonl", None), ("latest.jsonl", None), ("constraints.json", None), ("train/test.json", None),
    ],
)  # fmt: skip
def test_what_a_name_tells(name, split) -> None:
    assert split_of_name(name) == split


def test_every_format_gives_the_same_rows(tmp_path) -> None:
    rows = questions(3)
    write_parquet(tmp_path / "a.parquet", rows)
    write_rows(tmp_path / "a.json", rows)
    write_rows(tmp_path / "a.jsonl", rows)
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "lines.json")
    for name in ("a.parquet", "a.json", "a.jsonl", "lines.json"):
        assert [row for _, _, row in scan_rows(tmp_path / name)] == rows


def test_malformed_rows_are_named_by_number(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"question": "a"}, {"question": None}])
    (tmp_path / "a.json").write_text('[{"question": "a"}, 3]')
    (tmp_path / "b.json").write_text('[{"question": "a"},\n{"question"}]')
    (tmp_path / "a.jsonl").write_bytes(b'{"question": "a"}\n\n{"question": "\xff"}\n')
    (tmp_path / "b.jsonl").write_text('{"question": "a"}\n{"question": "\\ud800"}\n')
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    for name, message in (
        ("a.parquet", "a.parquet[1]: needs the text field 'question'"),
        ("a.json", "a.json[1]: expected a JSON object, found int"),
        ("b.json", "b.json:2: not valid JSON"),
        ("a.jsonl", "a.jsonl:3: not UTF-8 text"),
        ("b.jsonl", "b.jsonl:2: half of a surrogate pair"),
        ("torn.parquet", "torn.parquet: not a complete parquet file"),
    ):
        with pytest.raises(UnmaskError) as error:
            examples("jsonl", path=str(tmp_path / name))
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_parquet_without_its_package_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UnmaskError, match=r"parquet needs pyarrow, which is not installed: pip install 'unmask\[data\]'"):
        examples("jsonl", path=str(tmp_path / "a.parquet"))
