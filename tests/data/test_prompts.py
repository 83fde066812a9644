"""Templates, system prompt, shots and the prefix of the answer, down to token ids."""

from __future__ import annotations

import pytest

from tests.data.shared import SHARED, examples, needs_shared, questions, write_rows
from unmask.data.chat import ChatTokenizer
from unmask.errors import UnmaskError
from unmask.types import Example, Message


def one(tmp_path, row, name="jsonl", split="train", **options) -> Example:
    return examples(name, split, path=write_rows(tmp_path / "one.jsonl", [row]), **options)[0]


def test_templates(tmp_path) -> None:
    row = {"question": "f of {tests}?", "test_list": ["assert f(1) == 1", "assert f(2) == {question}"]}
    turn = one(tmp_path, row, prompt_template="{question}|{tests}|{other}").messages[0].content
    assert turn == "f of {tests}?|assert f(1) == 1\nassert f(2) == {question}|{other}"  # what was put in is not looked at again
    math = one(tmp_path, questions(1)[0], "math500", "held_out").messages[0].content
    assert math == "What is 0 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert (
        one(tmp_path, questions(1)[0], "math500", "held_out", prompt_template="Q: {question}").messages[0].content[:3] == "Q: "
    )
    stdio = {"question": "Echo.", "test_input": ["1"], "test_output": ["1"]}
    both = [one(tmp_path, r, "livecodebench", "held_out").messages[0].content for r in (stdio, row)]
    assert "input()" in both[0]
    assert "input()" not in both[1]
    assert one(tmp_path, stdio, "livebench", "held_out", stdio_template="{question}!").messages[0].content == "Echo.!"


def test_templates_that_cannot_be_filled(tmp_path) -> None:
    with pytest.raises(UnmaskError, match=r"source.options: prompt_template: should have \{question\} in it"):
        one(tmp_path, questions(1)[0], prompt_template="Hello")
    with pytest.raises(
        UnmaskError, match=r"one.jsonl:1: prompt_template has \{tests\}, but the row has no tests of a function"
    ):
        one(tmp_path, questions(1)[0], prompt_template="{question}{tests}")


def test_order_of_turns(tmp_path) -> None:
    shots = write_rows(tmp_path / "shots.jsonl", questions(3))
    example = one(
        tmp_path, {"question": "Now?"}, system_prompt="Be brief.", num_shots=2, shots_path=shots, prompt_template="Q {question}"
    )
    assert [(m.role, m.content) for m in example.messages] == [
        ("system", "Be brief."),
        ("user", "Q What is 0 + 1?"), ("assistant", "It is 1."), ("user", "Q What is 1 + 1?"), ("assistant", "It is 2."),
        ("user", "Q Now?"),
    ]  # fmt: skip
    turns = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi {question}"}]
    own = one(tmp_path, {"messages": turns}, system_prompt="Be brief.", prompt_template="Q {question}")
    assert own.messages == tuple(Message(**turn) for turn in turns)  # turns of a row stay as they are


def test_shots_are_of_the_training_rows_and_never_the_question_itself(tmp_path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    write_rows(there / "train.jsonl", questions(6))
    write_rows(there / "test.jsonl", [*questions(2), {"question": "What  is 3 + 1?", "ground_truth_answer": "4"}])
    options = {"path": str(there), "num_shots": 3, "prompt_template": "{question}"}
    shown = set()
    for split in ("train", "held_out"):
        for example in examples("math500", split, **options):
            *shots, question = [" ".join(m.content.split()) for m in example.messages if m.role == "user"]
            assert (len(set(shots)), question in shots) == (3, False)
            shown |= set(shots)
    assert len(shown) == 4  # the first three by hash, and the fourth where one of them is the question
    write_rows(back / "train.jsonl", questions(6)[::-1])
    write_rows(back / "test.jsonl", questions(1))
    first, again = (examples("math500", "held_out", **{**options, "path": str(path)})[0] for path in (there, back))
    assert first.messages == again.messages  # whatever the order of the training rows


def test_shots_that_are_not_there(tmp_path) -> None:
    path = write_rows(tmp_path / "test.jsonl", questions(3))
    with pytest.raises(UnmaskError, match="num_shots: there are no training rows to take them from; give shots_path"):
        examples("math500", "held_out", path=path, num_shots=2)
    with pytest.raises(UnmaskError, match=r"test.jsonl:1: num_shots is 3, but there are 2 other questions with a response"):
        examples("math500", "held_out", path=path, num_shots=3, shots_path=path)
    assert len(examples("math500", "held_out", path=path, num_shots=2, shots_path=path)) == 3


def test_prefix_of_the_answer(tmp_path) -> None:
    row = {"question": "q", "response": "<think>\nHm.</think>4"}
    example = one(tmp_path, row, response_prefix="<think>\n")
    assert (example.response_prefix, example.response) == ("<think>\n", "Hm.</think>4")  # not twice
    assert one(tmp_path, {**row, "response": "4"}, response_prefix="<think>\n").response == "4"
    own = one(tmp_path, {**row, "response_prefix": "So: "}, response_prefix="<think>\n")
    assert (own.response_prefix, own.response) == ("So: ", row["response"])  # a row's own is before the option


@needs_shared
def test_prefix_ends_the_prompt_and_the_demonstration_follows(tmp_path) -> None:
    tokenizer = ChatTokenizer.load(SHARED / "tokenizers" / "qwen2.5")
    row = {"question": "2+2?", "response": "Hm.\n4"}
    plain, thinking = one(tmp_path, row), one(tmp_path, row, response_prefix="<think>\n", system_prompt="You think.")
    text = tokenizer.prompt_text(thinking)
    assert (
        text == "<|im_start|>system\nYou think.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert "".join(tokenizer.pieces(tokenizer.prompt_ids(thinking))) == text
    assert tokenizer.prompt_text(plain).endswith("<|im_start|>assistant\n")
    assert tokenizer.response_ids(thinking) == tokenizer.response_ids(plain)  # the prefix is in no response


@needs_shared
def test_a_template_that_refuses_a_conversation_is_named() -> None:
    tokenizer = ChatTokenizer.load(SHARED / "tokenizers" / "qwen2.5")
    tokenizer.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UnmaskError, match=r"example a: the chat template refuses the conversation \(roles must alternate\)"):
        tokenizer.prompt_ids(Example(id="a", messages=(Message(role="user", content="x"),)))
