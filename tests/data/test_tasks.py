"""The field's tasks, in their original and their published layouts; programs are really run against their tests."""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings

import pytest

from tests.data.shared import SHARED, examples, needs_shared, write_rows
from unmask.data.code_rows import humaneval
from unmask.data.jsonl import to_row
from unmask.data.tasks import TASKS
from unmask.errors import UnmaskError
from unmask.files import read_jsonl
from unmask.types import CodeTests, Example

HUMANEVAL = SHARED / "code" / "HumanEval.jsonl"
MBPP = SHARED / "code" / "mbpp_sanitized.json"


def run(program: str, tests: CodeTests) -> None:
    """Plainly: prefix, program, tests. Raises what a test raises. (Trusted programs only; the sandbox is elsewhere.)"""
    names = {"__name__": "program"}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        exec(f"{tests.prefix}\n{program}", names)
        for test in tests.test_list:
            exec(test, names)


def block(example: Example) -> str:
    return re.fullmatch(r"```python\n(.*)\n```", example.response, re.DOTALL)[1]


def test_the_field_is_there() -> None:
    assert set(TASKS) == {
        "gsm8k", "math500", "aime2024", "mbpp", "humaneval", "livecodebench", "livebench", "math_train", "primeintellect"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gsm8k", "math500", "aime2024"])
def test_published_rows_of_mathematics(tmp_path, name) -> None:
    path = write_rows(tmp_path / "rows.json", [{"question": "1+1?", "ground_truth_answer": 2}])
    [example] = examples(name, "held_out", path=path)
    assert (example.answer, example.response, example.tests) == ("2", None, None)


@pytest.mark.parametrize("name", ["livecodebench", "livebench", "humaneval", "mbpp"])
def test_published_rows_of_programs(tmp_path, name) -> None:
    stdio = {"test_method": "stdio", "test_input": ["1\n", "2\n"], "test_output": ["2", "3"], "test_time_limit": 8}
    function = {
        "test_method": "function",
        "test_list": ["assert f(1) == 2"],
        "prefix": "import math",
        "test_input": [],
        "x": None,
    }
    rows = [{"question": "Add one."} | tests for tests in ((function,) if name == "mbpp" else (stdio, function))]
    *first, last = examples(name, "held_out", path=write_rows(tmp_path / "rows.json", rows))
    assert last.tests == CodeTests(test_method="function", test_list=("assert f(1) == 2",), prefix="import math")
    for example in first:
        assert example.tests == CodeTests(**stdio)
        assert example.answer is None


def test_empty_tests_are_none(tmp_path) -> None:
    row = {"question": "q", "ground_truth_answer": "1", "test_list": [], "test_input": None, "test_method": "", "prefix": ""}
    [example] = examples("jsonl", path=write_rows(tmp_path / "rows.jsonl", [row]))
    assert example.tests is None


def test_original_rows_of_mathematics(tmp_path) -> None:
    math500 = write_rows(tmp_path / "a.json", [{"problem": "1+1?", "solution": "\\boxed{2}", "answer": "2", "level": 1}])
    aime = write_rows(tmp_path / "b.json", [{"ID": "2024-I-1", "Problem": "1+1?", "Solution": "s", "Answer": "033"}])
    gsm8k = {"question": "q", "answer": "#### 4 * 3 = <<4*3=12>>12\nThen $<<12*100=1200>>1,200.\n#### 1,200"}
    assert [(e.answer, e.response) for e in examples("math500", "held_out", path=math500)] == [("2", "\\boxed{2}")]
    assert [(e.answer, e.response) for e in examples("aime2024", "held_out", path=aime)] == [("033", "s")]
    [example] = examples("gsm8k", "held_out", path=write_rows(tmp_path / "c.json", [gsm8k]))
    assert (example.answer, example.response) == ("1200", "#### 4 * 3 = 12\nThen $1,200.\nThe answer is \\boxed{1200}.")


@needs_shared
def test_gsm8k_has_its_results() -> None:
    rows = [row for _, row in read_jsonl(SHARED / "gsm8k" / "test.jsonl")]
    got = examples("gsm8k", "held_out", path=str(SHARED / "gsm8k" / "test.jsonl"))
    assert [e.answer for e in got] == [re.search(r"#### (.*)$", row["answer"])[1].replace(",", "") for row in rows]
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", e.answer) for e in got)
    assert not any("<<" in e.response for e in got)


@needs_shared
@pytest.mark.parametrize("is_alone", [False, True], ids=["whole program", "function alone"])
def test_humaneval_solutions_pass_and_nothing_fails(is_alone) -> None:
    entries = {row["task_id"]: row["entry_point"] for _, row in read_jsonl(HUMANEVAL)}
    got = examples("humaneval", "held_out", path=str(HUMANEVAL))
    assert len(got) == 164
    for example in got:
        program, entry = block(example), entries[example.id]
        run(
            program[program.rindex(f"\ndef {entry}(") :] if is_alone and f"\ndef {entry}(" in program else program,
            example.tests,
        )
        with pytest.raises(Exception):  # noqa: B017 - assertions, and whatever the tests make of None
            run(f"{program}\ndef {entry}(*arguments): return None", example.tests)


@needs_shared
def test_helpers_of_humaneval_cannot_be_redefined() -> None:
    """Tests of three problems call a function of the prompt; an answer that bends it would pass."""
    got = {e.id: e for e in examples("humaneval", "held_out", path=str(HUMANEVAL))}
    assert [name for name, e in got.items() if "def given_" in e.tests.test_list[0]] == [
        "HumanEval/32",
        "HumanEval/38",
        "HumanEval/50",
    ]
    for name, program in (
        ("HumanEval/32", "def poly(xs, x): return 0\ndef find_zero(xs): return 0"),
        ("HumanEval/38", "def encode_cyclic(s): return s\ndef decode_cyclic(s): return s"),
        ("HumanEval/50", "def encode_shift(s): return s\ndef decode_shift(s): return s"),
    ):
        with pytest.raises(AssertionError):
            run(program, got[name].tests)
    renamed = block(got["HumanEval/32"]).replace("poly(", "value(")  # an answer that names its own as it likes
    run(f"def poly(): raise SystemExit\n{renamed}", got["HumanEval/32"].tests)


def test_helpers_that_helpers_call_come_along() -> None:
    prompt = "def inner(x):\n    return x + 1\n\ndef unused(): pass\n\ndef outer(x):\n    return inner(x)\n\ndef f(x):\n"
    test = "def check(candidate):\n    assert candidate(1) == outer(1), 'outer'"
    problem = humaneval({"task_id": "a", "prompt": prompt, "test": test, "entry_point": "f"}, "x:1")
    [code] = problem.tests.test_list
    assert "def given_inner" in code
    assert "return given_inner(x)" in code
    assert "given_outer(1), 'outer'" in code
    assert "unused" not in code
    run("def f(x): return x + 1\ndef inner(x): raise SystemExit", problem.tests)


@needs_shared
def test_mbpp_solutions_pass() -> None:
    rows = {f"MBPP/{row['task_id']}": row for row in json.loads(MBPP.read_text())}
    got = examples("mbpp", "held_out", path=str(MBPP), held_out_share=1.0)
    assert [e.id for e in got] == list(rows)
    for example in got:
        assert example.tests.test_list == tuple(rows[example.id]["test_list"])
        assert rows[example.id]["prompt"] in example.messages[0].content
        assert "\n".join(example.tests.test_list) in example.messages[0].content
        run(block(example), example.tests)
    assert any(example.tests.prefix == "import math" for example in got)


def test_the_full_mbpp(tmp_path) -> None:
    row = {
        "task_id": 601,
        "text": "Write f.",
        "code": "def f(): pass",
        "test_list": ["assert f() is None"],
        "test_setup_code": "import re",
    }
    [example] = examples("mbpp", path=write_rows(tmp_path / "rows.json", [row]))
    assert (example.id, example.tests.prefix) == ("MBPP/601", "import re")
    rows = write_rows(tmp_path / "all.json", [{**row, "task_id": number} for number in (1, 10, 11, 510, 511, 974)])
    assert [e.id for e in examples("mbpp", "held_out", path=rows)] == ["MBPP/11", "MBPP/510"]
    assert [e.id for e in examples("mbpp", path=rows)] == ["MBPP/1", "MBPP/10", "MBPP/511", "MBPP/974"]


@needs_shared
def test_rows_that_are_written_are_read_as_the_same_examples(tmp_path) -> None:
    for name, path in (("humaneval", HUMANEVAL), ("mbpp", MBPP), ("gsm8k", SHARED / "gsm8k" / "test.jsonl")):
        options = {"response_prefix": "\n" if name == "gsm8k" else "", "system_prompt": "Be good."}
        got = examples(name, "held_out", path=str(path), **options)
        assert examples("jsonl", path=write_rows(tmp_path / "rows.jsonl", [to_row(e) for e in got])) == got


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"question": "q", "answer": "no mark"}, "answer should end with #### and the result, found 'no mark'"),
        ("math500", {"problem": "q"}, "needs the field 'ground_truth_answer' or 'answer' or 'Answer'; found problem"),
        ("math500", {"problem": " ", "answer": "1"}, "needs the field 'question' or 'problem' or 'Problem'"),
        ("livebench", {"question": "q"}, "needs tests (test_method with test_list, or with test_input and test_output)"),
        ("livebench", {"question": "q", "test_input": ["1"]}, "test_input and test_output should be equally many"),
        ("livebench", {"question": "q", "test_method": "x"}, "test_method: Input should be 'function' or 'stdio', found 'x'"),
        ("livebench", {"question": "q", "test_list": [1]}, "test_list.0: Input should be a valid string, found 1"),
        ("mbpp", {"task_id": "x", "prompt": "q", "test_list": ["a"]}, "task_id should be a number, found 'x'"),
        ("mbpp", {"task_id": 12, "prompt": "q"}, "tests of the method function should have test_list"),
        ("mbpp", {"task_id": 12, "prompt": "q", "test_list": ["a"], "test_imports": "re"}, "test_imports should be a list"),
        ("humaneval", {"task_id": "a", "prompt": "def f(): pass", "test": "x"}, "needs the field 'entry_point'"),
        ("humaneval", {"task_id": "a", "prompt": "def f():", "test": "x", "entry_point": "g"}, "define the entry_point 'g'"),
        ("humaneval", {"task_id": "a", "prompt": "def f():", "test": "x x", "entry_point": "f"}, "should be Python"),
    ],
)
def test_malformed_rows_are_named(tmp_path, name, row, message) -> None:
    with pytest.raises(UnmaskError) as error:
        examples(name, "held_out", path=write_rows(tmp_path / "rows.json", [row]))
    assert f"rows.json[0]: {message}" in str(error.value) or (
        "rows.json[0]: " in str(error.value) and message in str(error.value)
    )
    assert "\n" not in str(error.value)
