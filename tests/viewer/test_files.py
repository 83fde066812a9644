"""Files with traces, read by the page itself: as `load_records` reads them, side by side, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.viewer.conftest import CALM, act, wait_until
from unmask.viewer import render_player

SHOWN = """
    const { panels, numRecords, record } = unmaskPlayer.state();
    return { labels: panels.map((panel) => panel.label), numRecords, record, title: document.title,
             options: texts('[data-role="record"] option'), problem: find("#file-problem").textContent,
             leftOut: find('[data-role="left-out"]').hidden ? "" : find('[data-role="left-out"]').textContent };
"""
CHOOSER = "input[type=file]"


@pytest.fixture
def page(pages, make_record):
    """A page that was made with one record, which is not in any of the files."""
    return pages.show(render_player([make_record("made", prompt_text="made")], "unmask: made.jsonl"), CALM)


@pytest.fixture
def write(tmp_path):
    def write(name: str, *lines: dict | str) -> Path:
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def open_files(page, *paths: Path) -> dict:
    page.get_by_role("button", name="Open traces").click()
    page.set_input_files(CHOOSER, paths)
    return settled(page)


def open_beside(page, path: Path) -> dict:
    page.get_by_role("button", name="Compare with").click()
    page.set_input_files(CHOOSER, path)
    return settled(page)


def settled(page) -> dict:
    page.evaluate("theFiles.taking")
    outcome = act(page, SHOWN)
    assert outcome.pop("problems") == []
    return outcome


def test_a_file_replaces_what_was_shown(page, write, make_record):
    records = [make_record("q1", prompt_text="1+1=?"), make_record("q2", reward=0.25, prompt_text="2+2=?")]
    path = write("new.jsonl", "", *[record.to_dict() for record in records], "  ")
    shown = open_files(page, path)
    assert shown == {
        "labels": [""], "numRecords": 2, "record": 0, "title": "new.jsonl", "options": ["✓  1+1=?", "0.25  2+2=?"],
        "problem": "", "leftOut": "",
    }  # fmt: skip
    assert page.text_content("h1") == "new.jsonl"
    page.keyboard.press("End")
    assert page.evaluate("unmaskPlayer.state()")["panels"][0]["text"] == records[0].response_text


def test_bare_traces_and_numbers_that_json_does_not_know(page, write, make_record):
    trace = make_record(prompt_pieces=[], canvas_pieces=[]).trace
    trace.logprobs[:3] = [float("-inf"), float("nan"), float("inf")]
    text = make_record("x", pieces=["NaN", '"-Infinity\\', "Infinity"], prompt_text="NaN?").to_dict()
    text["trace"]["confidences"][0] = float("nan")
    shown = open_files(page, write("bare.jsonl", "", trace.to_dict(), text))
    assert shown["options"] == ["line 2", "✓  NaN?"]
    page.evaluate("unmaskPlayer.goTo(99)")
    label = page.get_attribute('[data-index="0"]', "aria-label")
    assert label.startswith("[0], canvas position 0")
    assert "log-prob not finite" in label
    page.evaluate("unmaskPlayer.select(1); unmaskPlayer.goTo(99)")
    assert page.evaluate("unmaskPlayer.state()")["panels"][0]["text"] == 'NaN"-Infinity\\Infinity'


def test_two_files_side_by_side(page, write, make_record):
    one = write("before.jsonl", *[make_record(i, reward=0.0, per_step=1).to_dict() for i in ("a", "b", "a", "c")])
    two = write("after.jsonl", *[make_record(i, reward=r).to_dict() for i, r in (("a", 0.1), ("x", 1), ("a", 0.2))])
    expected = {
        "labels": ["before", "after"], "numRecords": 2, "record": 0, "title": "before.jsonl beside after.jsonl",
        "options": ["✗ → 0.1  9+4+7-2=?", "✗ → 0.2  9+4+7-2=?"], "problem": "",
        "leftOut": "3 traces have no counterpart on the other side and are not shown.",
    }  # fmt: skip
    assert open_files(page, one, two) == expected
    assert open_files(page, one)["labels"] == [""]
    assert open_beside(page, two) == expected
    assert open_beside(page, one)["labels"] == ["before (first)", "before (second)"]


def test_the_second_file_goes_beside_what_the_page_was_made_with(page, write, make_record):
    shown = open_beside(page, write("other.jsonl", make_record("made").to_dict()))
    assert (shown["labels"], shown["numRecords"]) == (["unmask: made", "other"], 1)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{nope}", "bad.jsonl, line 2: not JSON (Expected property name or '}' in JSON at position 1 (line 1 column 2))"),
        ("[1]", "bad.jsonl, line 2: expected a JSON object, found a list"),
        ("{}", 'bad.jsonl, line 2: field "id" is missing'),
        ('{"id": "q"}', 'bad.jsonl, line 2: field "trace" is missing'),
        ('{"id": "q", "trace": 3}', "bad.jsonl, line 2: trace should be an object, found 3"),
        (lambda r: r.update(id=3), "bad.jsonl, line 2: id should be a text, found 3"),
        (lambda r: r.update(reward="1"), 'bad.jsonl, line 2: reward should be a number or null, found "1"'),
        (lambda r: r.update(canvas_pieces=["a"]), "bad.jsonl, line 2: canvas_pieces has 1 entries for 25 tokens"),
        (lambda r: r["trace"].pop("step_map"), 'bad.jsonl, line 2: field "step_map" is missing'),
        (lambda r: r["trace"]["step_map"].pop(), "bad.jsonl, line 2: step_map has 24 entries for 25 tokens"),
        (
            lambda r: r["trace"]["step_map"].__setitem__(3, 0.5),
            "bad.jsonl, line 2: step_map[3] should be a whole number of at least -1, found 0.5",
        ),
        (
            lambda r: r["trace"].update(block_size=0),
            "bad.jsonl, line 2: block_size should be a whole number of at least 1, found 0",
        ),
        (
            lambda r: r["trace"].update(num_response_tokens=26),
            "bad.jsonl, line 2: num_response_tokens 26 is more than the 25 canvas tokens",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_lost(page, write, make_record, line, problem):
    record = make_record().to_dict()
    good = json.dumps(record)
    if callable(line):
        line(record)
        line = json.dumps(record)
    shown = open_files(page, write("bad.jsonl", good, line))
    assert shown["problem"] == problem
    assert (shown["options"], shown["title"]) == (["✓  made"], "unmask: made.jsonl")
    assert open_files(page, write("good.jsonl", good))["problem"] == ""


def test_files_that_hold_no_traces(page, write, make_record, tmp_path):
    assert open_files(page, write("empty.jsonl", ""))["problem"] == (
        "empty.jsonl: holds no traces; expected one JSON object per line"
    )
    (tmp_path / "bytes.jsonl").write_bytes(b'\n{"id": "\xff"}\n')
    assert open_files(page, tmp_path / "bytes.jsonl")["problem"] == "bytes.jsonl, line 2: not UTF-8 text"
    other = write("other.jsonl", make_record("b").to_dict())
    assert open_beside(page, other)["problem"] == ('the two sets of traces have no id in common (first ids: "made" and "b")')
    assert open_files(page, other, other, other)["problem"] == "3 files at once: two can be compared, not more"


def test_a_byte_order_mark_and_windows_line_ends(page, make_record, tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(make_record().to_dict()).encode() + b"\r\n\r\n")
    shown = open_files(page, path)
    assert (shown["problem"], shown["numRecords"]) == ("", 1)


DRAG = """
    const data = new DataTransfer();
    for (const [name, text] of files) data.items.add(new File([text], name));
    const send = (kind, node) =>
      node.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
"""


def test_files_can_be_dropped(page, make_record):
    line = json.dumps(make_record("made", prompt_text="dropped").to_dict())
    outcome = act(
        page,
        f"const files = {json.dumps([['d.jsonl', line]])}; {DRAG}"
        """
        send("dragenter", find("h1"));
        const zone = find('[data-drop="beside"]');
        const over = { shown: !find("#drop").hidden, refused: send("dragover", zone), lit: zone.classList.contains("is-over") };
        send("drop", zone);
        await theFiles.taking;
        const beside = unmaskPlayer.state().panels.map((panel) => panel.label);
        send("dragenter", find("h1"));
        send("drop", find('[data-drop="open"]'));
        await theFiles.taking;
        return { over, beside, hidden: find("#drop").hidden, options: texts('[data-role="record"] option') };
        """,
    )
    assert outcome["problems"] == []
    assert outcome["over"] == {"shown": True, "refused": False, "lit": True}
    assert outcome["beside"] == ["unmask: made", "d"]
    assert (outcome["hidden"], outcome["options"]) == (True, ["✓  dropped"])


def test_a_file_plays_by_itself_unless_less_motion_is_wanted(pages, page, write, make_record):
    path = write("new.jsonl", make_record().to_dict())
    assert open_files(page, path)["problem"] == ""
    assert page.evaluate("unmaskPlayer.state().isPlaying") is False
    moving = pages.show(render_player([make_record("made")], "t"))
    moving.evaluate("unmaskPlayer.pause()")
    moving.set_input_files(CHOOSER, path)
    wait_until(moving, "unmaskPlayer.state().isPlaying")


class TestBlocks:
    def blocks(self, page, *arguments) -> list:
        return page.evaluate("(sizes) => canvasBlocks(...sizes)", arguments)

    def test_the_prompts_tail_heads_the_first_block(self, page):
        assert self.blocks(page, 11, 10, 4) == [[2, 3, 0, 1], [3, 0, 1, 5], [4, 0, 5, 9], [5, 0, 9, 10]]
        assert self.blocks(page, 8, 8, 4) == [[2, 0, 0, 4], [3, 0, 4, 8]]
        assert self.blocks(page, 5, 6, 64) == [[0, 5, 0, 6]]
        assert self.blocks(page, 5, 0, 4) == []

    def test_every_token_is_in_the_block_of_its_absolute_position(self, page):
        for num_prompt in range(10):
            for block_size in (1, 3, 4):
                blocks = self.blocks(page, num_prompt, 9, block_size)
                indices = [index for index, _, first, stop in blocks for _ in range(first, stop)]
                assert indices == [(num_prompt + i) // block_size for i in range(9)]
                assert [before for _, before, _, _ in blocks] == [num_prompt % block_size] + [0] * (len(blocks) - 1)

    @pytest.mark.parametrize(
        ("step_map", "edges"),
        [
            ([0, 1, 2, 2, 1, 3, 4, 3], [1, 5, 8]),  # in order on the grid of absolute positions
            ([3, 1, 2, 0, 7, 5, 4, 6], [4, 8]),  # only windows that begin with the canvas are in order
            ([0, 1, 2, 3, 4, 5, 6, 7], [1, 5, 8]),  # from left to right both are
            ([7, 0, 1, 2, 3, 4, 5, -1], [1, 5, 8]),  # and here neither
        ],
    )
    def test_windows_are_told_from_blocks_by_their_order(self, page, step_map, edges):
        trace = {"prompt_ids": [0] * 3, "canvas_ids": [0] * 8, "step_map": step_map, "block_size": 4}
        blocks = page.evaluate("(trace) => traceBlocks(trace)", trace)
        assert [stop for *_, stop in blocks] == edges
