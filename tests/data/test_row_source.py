"""Splits, ids, order and hashes of sources made of rows."""

from __future__ import annotations

import hashlib

import pytest

from tests.data.shared import SHARED, examples, needs_shared, questions, write_rows
from unmask.config import Plugin
from unmask.data.digests import hash_examples
from unmask.data.jsonl import JsonlSource
from unmask.data.sources import open_source
from unmask.errors import UnmaskError


def asked(name, split="train", **options) -> list[str]:
    return [example.messages[-1].content for example in examples(name, split, **options)]


def test_a_share_is_held_out_whatever_the_order(tmp_path) -> None:
    rows = questions(2000)
    there = write_rows(tmp_path / "a.jsonl", rows)
    back = write_rows(tmp_path / "b.json", [*rows[::-1], {"question": " What  is 1\n+ 1?", "ground_truth_answer": "2"}])
    train, held_out = (set(asked("jsonl", split, path=there, held_out_share=0.2)) for split in ("train", "held_out"))
    assert (len(train) + len(held_out), train & held_out) == (2000, set())
    assert 340 < len(held_out) < 460  # 400 expected, standard deviation 18
    again = asked("jsonl", "held_out", path=back, held_out_share=0.2)
    assert set(again) - {" What  is 1\n+ 1?"} == held_out
    assert (" What  is 1\n+ 1?" in again) == ("What is 1 + 1?" in held_out)  # the same words, the same side
    more = set(asked("jsonl", "held_out", path=there, held_out_share=0.3))
    assert held_out < more
    assert len(asked("jsonl", "held_out", path=there, held_out_share=1.0)) == 2000


def test_published_splits_are_used(tmp_path) -> None:
    write_rows(tmp_path / "train.jsonl", questions(30))
    write_rows(tmp_path / "test.jsonl", questions(4))
    for name in ("gsm8k", "math500", "jsonl"):
        got = [len(examples(name, split, path=str(tmp_path))) for split in ("train", "held_out")]
        assert got == [30, 4]
    paths = {"path": str(tmp_path / "test.jsonl"), "held_out_path": str(tmp_path / "train.jsonl")}
    assert [len(examples("gsm8k", split, **paths)) for split in ("train", "held_out")] == [4, 30]  # said is said
    joined = [len(examples("gsm8k", split, path=str(tmp_path), held_out_share=0.5)) for split in ("train", "held_out")]
    assert (sum(joined), min(joined) > 8) == (34, True)


def test_a_benchmark_is_held_out_and_a_training_set_gives_a_share(tmp_path) -> None:
    path = write_rows(tmp_path / "rows.json", questions(1000))
    assert len(examples("math500", "held_out", path=path)) == 1000
    with pytest.raises(UnmaskError, match=r"source math500: no rows of the split train at .*rows.json; give path and held_out"):
        examples("math500", path=path)
    held_out = set(asked("math_train", "held_out", path=path))
    assert 25 < len(held_out) < 75
    assert not held_out & set(asked("math_train", path=path))


def test_ids_do_not_depend_on_the_order(tmp_path) -> None:
    rows = [*questions(5), questions(1)[0]]
    there, back = write_rows(tmp_path / "a.json", rows), write_rows(tmp_path / "b.json", rows[::-1])
    a, b = (examples("math500", "held_out", path=path) for path in (there, back))
    assert {e.id: e.messages for e in a} == {e.id: e.messages for e in b}
    assert a[5].id == f"{a[0].id}-2"  # the same question once more
    assert len({e.id for e in a}) == 6
    spaced = write_rows(tmp_path / "c.json", [{**questions(1)[0], "question": "What is\n 0  + 1?"}])
    assert examples("math500", "held_out", path=spaced)[0].id == a[0].id


def test_ids_of_a_file_are_its_lines_or_its_own(tmp_path) -> None:
    write_rows(tmp_path / "rows" / "a.jsonl", questions(2))
    write_rows(tmp_path / "rows" / "b.json", [{"id": "own", "question": "x"}, {"question": "y"}])
    assert [e.id for e in examples("jsonl", path=str(tmp_path / "rows" / "a.jsonl"))] == ["1", "2"]
    assert [e.id for e in examples("jsonl", path=str(tmp_path / "rows"))] == ["a.jsonl-1", "a.jsonl-2", "own", "b.json-1"]
    twice = write_rows(tmp_path / "c.jsonl", [{"id": 2, "question": "x"}, {"question": "y"}])
    with pytest.raises(UnmaskError, match=r"c.jsonl:2: two rows have the id '2'; ids must differ \(see .*c.jsonl:1\)"):
        examples("jsonl", path=twice)


def test_limit_and_shuffle(tmp_path) -> None:
    path = write_rows(tmp_path / "a.jsonl", questions(50))
    back = write_rows(tmp_path / "b.jsonl", questions(50)[::-1])
    assert asked("jsonl", path=path, limit=3) == asked("jsonl", path=path)[:3]
    mixed = asked("jsonl", path=path, shuffle_seed=1)
    assert sorted(mixed) == sorted(asked("jsonl", path=path)) != mixed
    assert mixed != asked("jsonl", path=path, shuffle_seed=2)
    assert asked("jsonl", path=path, shuffle_seed=1, limit=7) == mixed[:7] == asked("jsonl", path=back, shuffle_seed=1, limit=7)


def test_hash_is_of_content_and_order_not_of_places(tmp_path) -> None:
    def digest(path, **options) -> str:
        return open_source(Plugin(name="jsonl", options={"path": path, **options}), "train", 0).dataset_hash

    rows = questions(4)
    base = digest(write_rows(tmp_path / "a.jsonl", rows))
    lines = [
        f'{{"answer": "{i + 1}", "messages": [{{"content": "What is {i} + 1?", "role": "user"}}], '
        f'"response": "It is {i + 1}."}}\n'
        for i in range(4)
    ]
    assert base == hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    assert digest(write_rows(tmp_path / "elsewhere" / "b.jsonl", rows)) == base
    assert digest(str(tmp_path / "a.jsonl"), limit=4) == base
    others = [
        digest(write_rows(tmp_path / "c.jsonl", rows[::-1])), digest(str(tmp_path / "a.jsonl"), limit=3),
        digest(str(tmp_path / "a.jsonl"), response_prefix="<think>\n"), digest(str(tmp_path / "a.jsonl"), system_prompt="x"),
        digest(write_rows(tmp_path / "d.jsonl", [*rows[:3], {**rows[3], "ground_truth_answer": "5"}])),
        digest(write_rows(tmp_path / "e.jsonl", [*rows[:3], {**rows[3], "test_list": ["assert True"]}])),
    ]  # fmt: skip
    assert len({base, *others}) == 7


def test_every_source_has_a_hash() -> None:
    arithmetic = [open_source(Plugin(name="chained_arithmetic", options={"size": 20}), "train", seed) for seed in (0, 0, 1)]
    first, same, other = (source.dataset_hash for source in arithmetic)
    assert first == same != other
    assert hash_examples([arithmetic[0][i] for i in range(20)]) == first  # of a list, too: of those that were used


def test_malformed_rows_are_collected(tmp_path) -> None:
    lines = [
        '{"question": "a"}',
        '{"question": ',
        '{"text": 1}',
        '{"question": "b", "test_method": "magic"}',
        '{"question": "c"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    errors = []
    source = JsonlSource(JsonlSource.Options(path=str(tmp_path / "a.jsonl")), "train", 0, errors)
    assert [source[i].id for i in range(len(source))] == ["1", "5"]
    assert [str(error).split("a.jsonl:")[1][0] for error in errors] == ["2", "3", "4"]


@needs_shared
def test_real_files() -> None:
    folder = str(SHARED / "gsm8k")
    assert [len(examples("gsm8k", split, path=folder)) for split in ("train", "held_out")] == [1000, 1319]
    assert len(examples("gsm8k", "held_out", path=f"{folder}/test.jsonl")) == 1319
    ids = [e.id for e in examples("mbpp", "held_out", path=str(SHARED / "code" / "mbpp_sanitized.json"))]
    assert len(ids) == 257  # the published test split of the sanitized set
    assert len(examples("mbpp", path=str(SHARED / "code" / "mbpp_sanitized.json"))) == 427 - 257
