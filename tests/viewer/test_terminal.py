"""What `unmask generate --watch` draws, step by step."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.style import Style

from tests.viewer.screen import Screen
from unmask.types import Trace
from unmask.types.levels import level
from unmask.viewer.flow import Canvas, flow
from unmask.viewer.palette import FRESH, page_colours
from unmask.viewer.terminal import Texts, Watcher, window

PIECES = ["The", " answer", "\n", "日本", "語", " 4", "2", "<|im_end|>"]


def make_trace(ids: list[int], num_response: int, num_forwards: int, reason: str = "stop") -> Trace:
    n = len(ids)
    return Trace([1], ids, [0] * n, [0.0] * n, [1.0] * n, num_response, 4, num_forwards, reason)


class Terminal:
    """A watcher on a terminal of this size. `screen` reads all that was written."""

    def __init__(self, num_columns: int = 40, height: int = 12, pieces: list[str] = PIECES) -> None:
        self.file = io.StringIO()
        Style._add.cache_clear()  # rich keeps how a style was last written, also on a terminal of fewer colours
        console = Console(
            file=self.file, width=num_columns, height=height, force_terminal=True, color_system="truecolor", highlight=False,
            legacy_windows=False, _environ={},
        )  # fmt: skip
        self.num_columns = num_columns
        self.watcher = Watcher(console, lambda ids: [pieces[i] for i in ids])

    @property
    def screen(self) -> Screen:
        return Screen(self.num_columns).feed(self.file.getvalue())


@pytest.mark.parametrize("num_columns", [8, 40, 100])
def test_tokens_appear_in_place(num_columns) -> None:
    terminal = Terminal(num_columns, height=20)
    with terminal.watcher as watcher:
        watcher.begin("What is it?", block_size=4)
        assert "reading" in terminal.screen.text
        assert "▒▒▒▒▒▒▒▒" in terminal.screen.text
        watcher.show(0, [1], [1], [0.3])
        assert "▒▒ answer" in terminal.screen.text.replace("\n", "") or num_columns == 8
        watcher.show(1, [0, 2, 3], [0, 2, 3], [0.9, 0.99, 0.6])
        assert "▒" not in terminal.screen.text
        watcher.show(2, [4, 5, 7], [4, 5, 7], [0.9, 0.9, 0.9])
        assert terminal.screen.is_cursor_hidden
        watcher.show(3, [6], [6], [0.9])
        watcher.end(make_trace(list(range(8)), 8, 4))
    screen = terminal.screen
    assert not screen.is_cursor_hidden
    said = screen.text.replace("\n", "")
    if num_columns > 8:
        assert screen.text.splitlines()[:3] == ["What is it?", "The answer↵", "日本語 42<|im_end|>"]
        facts = ["8 tokens in 4 steps", "2.00 tokens per forward", "ended by itself"]
        assert screen.text.splitlines()[3:] == (facts if num_columns == 40 else [" · ".join(facts)])
    assert "".join(PIECES).replace("\n", "↵").replace(" ", "") in said.replace(" ", "")
    assert "▒" not in said


def test_status_of_a_step() -> None:
    terminal = Terminal(80)
    with terminal.watcher as watcher:
        watcher.begin("q", block_size=4, num_before=3)
        watcher.show(0, [0], [0], [0.9])
        watcher.show(1, [1, 3], [1, 3], [0.9, 0.9])
        assert "step 2 · +2 · 1.50 tokens per forward · 3 of 5 unmasked" in terminal.screen.text
        assert "The│ answer▒▒日本▒▒" in terminal.screen.text  # the block in hand begins behind the prompt's tail


def test_colours_say_how_confident_and_what_is_new() -> None:
    terminal = Terminal(80)
    rgb = {name: ";".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5)) for name, colour in page_colours().items()}
    with terminal.watcher as watcher:
        watcher.begin("q", block_size=4)
        before = len(terminal.file.getvalue())
        watcher.show(0, [0, 1], [0, 1], [0.2, 0.999])
        first = terminal.file.getvalue()[before:]
        for rank in (level(0.2), level(0.999)):
            fresh = ";".join(str(int(FRESH[rank][i : i + 2], 16)) for i in (1, 3, 5))
            assert f"48;2;{fresh}m" in first
        before = len(terminal.file.getvalue())
        watcher.show(1, [3], [3], [0.2])
        second = terminal.file.getvalue()[before:].partition("step 2")[0]
        assert f"48;2;{rgb['c0']}mThe" in second
        assert f"48;2;{rgb['c4']}m answer" in second


@pytest.mark.parametrize("order", ["left to right", "right to left"])
def test_of_long_answers_the_part_with_the_newest_tokens_is_shown(order) -> None:
    """80 lines on a screen of 12; at the end all of them are printed."""
    pieces = [f"token {i:03}\n" for i in range(80)]
    terminal = Terminal(40, 12, pieces)
    with terminal.watcher as watcher:
        watcher.begin("q", block_size=80, num_masked=80)
        for step in range(80):
            i = step if order == "left to right" else 79 - step
            before = len(terminal.file.getvalue())
            watcher.show(step, [i], [i], [0.9])
            shown = Screen(40)
            shown.lines, shown.row = [""] * 99, 50
            shown.feed(terminal.file.getvalue()[before:])
            text = [line for line in shown.lines if line.strip()]
            assert any(f"token {i:03}↵" in line for line in text), (step, text)
            assert len(text) <= 12
        watcher.end(make_trace(list(range(80)), 80, 80))
    assert [line for line in terminal.screen.lines if line.startswith("token")] == [f"token {i:03}↵" for i in range(80)]


def test_masks_that_no_step_came_to_are_not_printed_at_the_end() -> None:
    terminal = Terminal()
    with terminal.watcher as watcher:
        watcher.begin("q", block_size=4, num_masked=8)
        assert terminal.screen.text.count("▒▒") == 8
        watcher.show(0, [0, 1, 3], [0, 7, 1], [0.9] * 3)
        watcher.end(make_trace([0, 7, 0, 1, 0, 0, 0, 0], 2, 1))
    assert "The<|im_end|>▒▒ answer\n" in terminal.screen.text  # what follows the stop token is shown, and dim


def test_one_answer_after_the_other() -> None:
    terminal = Terminal()
    with terminal.watcher as watcher:
        for title in ("first\nquestion", "second"):
            watcher.begin(title, block_size=4)
            watcher.show(0, [0, 1, 2, 3], [0, 1, 5, 6], [0.9] * 4)
            watcher.end(make_trace([0, 1, 5, 6], 4, 1, "length"))
    assert terminal.screen.text.splitlines() == [
        "first question", "The answer 42", "4 tokens in 1 step", "4.00 tokens per forward", "cut at the limit", "",
        "second", "The answer 42", "4 tokens in 1 step", "4.00 tokens per forward", "cut at the limit",
    ]  # fmt: skip


def test_interrupted_it_leaves_what_stands_and_the_cursor() -> None:
    terminal = Terminal()

    def interrupt() -> None:
        with terminal.watcher as watcher:
            watcher.begin("q", block_size=4)
            watcher.show(0, [1], [1], [0.9])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    screen = terminal.screen
    assert "▒▒ answer▒▒▒▒" in screen.text
    assert not screen.is_cursor_hidden
    assert screen.row == len(screen.lines) - 1
    assert screen.lines[-1] == ""


def test_prompts_and_answers_cannot_write_sequences() -> None:
    terminal = Terminal(pieces=["\x1b]0;title\x07", "\x1b[2J", "\u202ex"])
    with terminal.watcher as watcher:
        watcher.begin("\x1b[31mq\x07", block_size=4)
        watcher.show(0, [0, 1, 2], [0, 1, 2], [0.9] * 3)
        watcher.end(make_trace([0, 1, 2], 3, 1))
    assert "�]0;title��[2Jx" in terminal.screen.text  # `Screen` knows no such sequences, and would say so
    assert "�[31mq�" in terminal.screen.text


def test_characters_of_several_tokens_are_shown_once_whole() -> None:
    """語 is three tokens; the text is with the last of them, and what is settled is not decoded again."""
    calls: list[list[int]] = []

    def shares(ids) -> list[str]:
        calls.append(list(ids))
        return ["語" if i == 2 else "" if i in (0, 1) else f"<{i}>" for i in ids]

    texts, canvas = Texts(shares), Canvas(block_size=16)
    canvas.apply(0, [0, 1, 2], [0, 1, 2], [0.9] * 3)
    assert texts.of(canvas)[:4] == ["", "", "語", "▒▒"]
    canvas.apply(1, list(range(3, 12)), list(range(3, 12)), [0.9] * 9)
    assert texts.of(canvas)[:5] == ["", "", "語", "<3>", "<4>"]
    calls.clear()
    canvas.apply(2, [12], [12], [0.9])
    assert texts.of(canvas)[10:] == ["<10>", "<11>", "<12>", "▒▒", "▒▒", "▒▒"]
    assert min(calls[0]) == 8  # four tokens before the end may still be a part of a character
    canvas.apply(1, [3], [99], [0.9])  # voided and taken again
    assert texts.of(canvas)[:5] == ["", "", "語", "<99>", "▒▒"]


def test_window_without_new_tokens_shows_the_end() -> None:
    lines = flow([f"{i}\n" for i in range(9)], 10)
    assert window(lines, frozenset(), 3) == lines[-3:]
    assert window(lines, frozenset({0}), 3) == lines[:3]
    assert window(lines, frozenset({4}), 3) == lines[3:6]
