"""Conversations, thoughts and given orders as demonstrations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.data.jsonl import JsonlSource, to_row
from unmask.errors import UnmaskError


def source(folder: Path, *rows: dict, split: str = "train", **options) -> JsonlSource:
    file = folder / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(JsonlSource.Options(path=str(file), **options), split, 0)


def turns(*contents: str, first: str = "user") -> list[dict]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def test_every_turn_of_the_assistant_is_a_demonstration(tmp_path) -> None:
    row = {"messages": [{"role": "system", "content": "S"}, *turns("a", "b", "c", "d", "e", "f")], "ground_truth_answer": "7"}
    found = source(tmp_path, row)
    assert [(found[i].id, len(found[i].messages), found[i].response, found[i].answer) for i in range(len(found))] == [
        ("1/1", 2, "b", None), ("1/2", 4, "d", None), ("1/3", 6, "f", "7"),
    ]  # fmt: skip
    assert [m.content for m in found[2].messages] == ["S", "a", "b", "c", "d", "e"]
    last = source(tmp_path, row, trained_turns="last")
    assert [(last[0].id, last[0].response, len(last))] == [("1/3", "f", 1)]
    named = source(tmp_path, row | {"id": "x"})
    assert named[0].id == "x/1"


def test_one_turn_keeps_its_id_and_what_ends_with_the_user_is_a_prompt(tmp_path) -> None:
    one = source(tmp_path, {"messages": turns("a", "b")})
    assert (one[0].id, one[0].response, len(one)) == ("1", "b", 1)
    prompt = source(tmp_path, {"messages": turns("a", "b", "c")})
    assert (prompt[0].response, len(prompt[0].messages)) == (None, 3)
    given = source(tmp_path, {"messages": turns("a", "b", "c"), "response": "d"})
    assert (given[0].response, len(given)) == ("d", 1)


def test_turns_of_one_conversation_are_on_the_same_side(tmp_path) -> None:
    rows = [{"messages": turns(f"q{i}", "b", f"c{i}", "d")} for i in range(50)]
    sides = [source(tmp_path, *rows, split=split, held_out_share=0.4) for split in ("train", "held_out")]
    heads = [{s[i].id.split("/")[0] for i in range(len(s))} for s in sides]
    assert not heads[0] & heads[1]
    assert [len(s) for s in sides] == [2 * len(h) for h in heads]
    assert all(heads)


def test_thoughts_in_a_field_of_their_own_stand_before_the_answer(tmp_path) -> None:
    row = {"messages": [*turns("a"), {"role": "assistant", "content": "so 7", "reasoning_content": "3+4\n"}]}
    assert source(tmp_path, row)[0].response == "<think>\n3+4\n</think>\n\nso 7"
    began = source(tmp_path, row, response_prefix="<think>\n")[0]
    assert (began.response_prefix, began.response) == ("<think>\n", "3+4\n</think>\n\nso 7")
    none = {"messages": [*turns("a"), {"role": "assistant", "content": "so 7", "reasoning_content": None}]}
    assert source(tmp_path, none)[0].response == "so 7"


def test_fields_without_a_value_are_none(tmp_path) -> None:
    """In a table every row has the fields of all others."""
    empty = {"name": None, "tool_calls": None, "reasoning_content": None}
    chat = {"messages": [turn | empty for turn in turns("a", "b")], "prompt": None, "response": None}
    plain = {"messages": None, "question": None, "prompt": "a", "response": "b"}
    found = source(tmp_path, chat, plain)
    assert [(found[i].messages[0].content, found[i].response) for i in range(len(found))] == [("a", "b")] * 2


def test_parts_of_text_are_joined(tmp_path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = source(tmp_path, {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]})[0]
    assert (found.messages[0].content, found.response) == ("ab", "c")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "gpt", "content": "b"}]}, "d.jsonl:1: messages.1.role: "),
        ({"messages": turns("a", "b"), "response": "c"}, "d.jsonl:1: messages end with the assistant's turn, and there is a"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "d.jsonl:1: messages.0.content: "),
    ],
)
def test_turns_that_mean_nothing_are_refused(row, message, tmp_path) -> None:
    with pytest.raises(UnmaskError) as error:
        source(tmp_path, row)
    assert message in str(error.value)


def test_the_published_layout_with_an_order(tmp_path) -> None:
    found = source(tmp_path, {"prompt": "2+2?", "response": "4", "step_map": [0, 1]})[0]
    assert (found.messages[0].content, found.response, found.step_map) == ("2+2?", "4", (0, 1))
    assert to_row(found)["step_map"] == [0, 1]
    assert source(tmp_path, to_row(found))[0] == found


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": turns("b", first="assistant")}, "d.jsonl:1: messages begin with the assistant's turn"),
        ({"prompt": "a", "response": "b", "step_map": "01"}, "d.jsonl:1: step_map"),
        ({"prompt": "a", "response": "b", "step_map": [0.5]}, "d.jsonl:1: step_map.0"),
        (
            {"messages": [*turns("a"), {"role": "assistant", "content": None, "reasoning_content": "so"}]},
            "d.jsonl:1: messages.1.content: Input should be a valid string, found None",
        ),
        ({"messages": [{"role": "user", "content": "a", "name": "x"}]}, "d.jsonl:1: unknown key 'messages.0.name'"),
        ({"prompt": 7}, "d.jsonl:1: needs the text field 'question' (or messages); found prompt"),
    ],
)
def test_bad_rows_are_named(row, message, tmp_path) -> None:
    with pytest.raises(UnmaskError) as error:
        source(tmp_path, row)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
