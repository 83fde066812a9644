"""A canvas at one moment, and how it becomes lines of cells."""

from __future__ import annotations

import json
import re

import pytest

from tests.conftest import random_prompts
from tests.models.rows import opinionated
from unmask.diffusion.generate import generate
from unmask.types import SamplingParams
from unmask.types.levels import LEVELS, level
from unmask.viewer.flow import Canvas, flow, num_before, shown_text, trace_canvas
from unmask.viewer.page import read_asset
from unmask.viewer.player import PLAYER_SCRIPTS


def lines(texts: list[str], num_columns: int, borders: tuple[int, ...] = ()) -> list[str]:
    found = flow(texts, num_columns, borders)
    for line in found:
        assert [run.column for run in line] == [sum(r.width for r in line[:i]) for i in range(len(line))]
        assert sum(run.width for run in line) <= num_columns
    return ["".join(run.text for run in line) for line in found]


@pytest.mark.parametrize(
    ("texts", "num_columns", "expected"),
    [
        (["ab", "cd", "ef"], 4, ["abcd", "ef"]),
        (["abc", "de"], 4, ["abc", "de"]),  # not broken within
        (["abcdefghi", "j"], 4, ["abcd", "efgh", "ij"]),  # longer than a line
        (["a\nb", "\n", "c"], 4, ["a↵", "b↵", "c"]),
        (["a", "\n\n", "b"], 4, ["a↵", "↵", "b"]),
        (["日本", "語"], 4, ["日本", "語"]),
        (["x日本語"], 4, ["x日", "本語"]),  # five of seven cells: a wide character is not cut in half
        (["abcd\n"], 4, ["abcd", "↵", ""]),
        (["", "a", ""], 4, ["a"]),
        ([], 4, [""]),
    ],
)
def test_text_flows(texts, num_columns, expected) -> None:
    assert lines(texts, num_columns) == expected


def test_runs_name_their_positions() -> None:
    found = flow(["ab", "c\nd", "e"], 10)
    assert [(run.position, run.text, run.column) for line in found for run in line] == [
        (0, "ab", 0), (1, "c↵", 2), (1, "d", 0), (2, "e", 1),
    ]  # fmt: skip


def test_borders_stand_before_their_positions() -> None:
    assert lines(["ab", "cd", "ef"], 80, (0, 1)) == ["ab│cdef"]  # none at the beginning of a line
    assert lines(["ab\n", "cd"], 80, (1,)) == ["ab↵", "cd"]


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("a b", "a b"), ("", "[7]"), ("a\tb", "a    b"), ("a\r\nb\u2028c", "a\nb\nc"), ("\x1b[31mred\x07", "�[31mred�"),
        ("\u202eabc", "abc"), ("e\u0301", "e\u0301"), ("\ud800", "�"), ("❤\ufe0f", "❤"), ("\x9b2J", "�2J"),
    ],
)  # fmt: skip
def test_what_a_model_writes_cannot_move_the_cursor(piece, expected) -> None:
    assert shown_text(piece, 7) == expected


def test_levels_are_those_of_the_page() -> None:
    scripts = "".join(read_asset(name) for name in PLAYER_SCRIPTS)
    (edges,) = re.findall(r"CONFIDENCE_EDGES = (\[.*?\]);", scripts)
    assert tuple(json.loads(edges)) == LEVELS
    assert [level(c) for c in (0.0, *LEVELS, 1.0, float("nan"))] == [0, 1, 2, 3, 4, 4, 0]


def test_steps_fill_the_canvas_and_blocks_come_one_by_one() -> None:
    canvas = Canvas(block_size=4, num_before=3)
    canvas.grow(canvas.block_end(0))
    assert canvas.ids == [None]
    canvas.apply(0, [0], [5], [0.9])
    canvas.apply(1, [2, 4], [6, 7], [0.5, 0.6])
    assert canvas.ids == [5, None, 6, None, 7]
    assert (canvas.newest, canvas.num_unmasked, canvas.tokens_per_forward) == ({2, 4}, 3, 1.5)
    assert canvas.borders() == {1}  # block 0 is finished, block 1 is not
    canvas.apply(2, [1, 3], [8, 9], [0.5, 0.5])
    assert canvas.borders() == set()
    canvas.apply(3, [], [], [])  # a step may unmask nothing
    assert (canvas.newest, canvas.step) == (set(), 3)


def test_a_step_that_is_taken_again_voids_what_came_after_it() -> None:
    canvas = Canvas(block_size=4)
    for step, position in enumerate((0, 2, 1)):
        canvas.apply(step, [position], [10 + position], [0.5])
    canvas.apply(1, [3], [99], [0.7])
    assert canvas.ids == [10, None, None, 99]
    assert canvas.steps == [0, -1, -1, 1]
    assert canvas.confidences == [0.5, 0.0, 0.0, 0.7]


def test_the_last_window_of_full_attention_may_be_short() -> None:
    canvas = Canvas(block_size=4, limit=6)
    canvas.grow(6)
    canvas.apply(0, [5], [1], [0.5])
    assert (len(canvas.ids), canvas.block_end(4), canvas.borders()) == (6, 6, {4})


@pytest.mark.parametrize("family", ["sdar", "llada"])
@pytest.mark.parametrize("length", range(9))
def test_where_blocks_start_is_read_off_the_steps(family, length) -> None:
    params = SamplingParams(max_new_tokens=13, stop_token_ids=(), block_size=4, denoising_steps_per_block=2)
    (trace,) = generate(opinionated(family), random_prompts([length]), params)
    assert num_before(trace) == (length % 4 if family == "sdar" else 0)
    canvas = trace_canvas(trace)
    assert len(canvas.ids) == (len(trace.canvas_ids) if family == "llada" else canvas.block_end(12))
    assert set(canvas.steps) == {-1}


def test_a_canvas_ends_with_the_block_of_the_answer(make_record) -> None:
    trace = make_record().trace
    trace.num_response_tokens = 10
    assert len(trace_canvas(trace).ids) == 13  # three prompt tokens head the first block of 4
    trace.num_response_tokens = 0
    assert len(trace_canvas(trace).ids) == 1
