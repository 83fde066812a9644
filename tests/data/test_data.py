"""Sources, order, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.recipes import RL, SFT, unmask, write_recipe
from unmask.config import Plugin
from unmask.data.chained_arithmetic import ChainedArithmetic, count_steps
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import EpochOrder, open_source
from unmask.errors import UnmaskError
from unmask.rewards.answers import last_boxed
from unmask.types import Example

SHARED = Path(__file__).parents[3] / "shared" / "data"


def arithmetic(split="train", seed=0, **options) -> ChainedArithmetic:
    return ChainedArithmetic(ChainedArithmetic.Options(**options), split, seed)


def test_clean_demonstrations_are_right() -> None:
    source = arithmetic(min_operations=1, max_operations=6)
    for i in range(200):
        example = source[i]
        question = example.messages[0].content.removesuffix("=?")
        value = int(question[0])
        for sign, term in zip(question[1::2], question[2::2], strict=True):
            value = eval(f"{value} {sign} {term}") % 10
        assert example.answer == str(value) == last_boxed(example.response)
        for step in example.response.split(";")[:-1]:
            left, right = step.split("=")
            assert eval(left) % 10 == int(right)


def test_splits_are_disjoint_and_examples_are_functions_of_their_index() -> None:
    train, held_out = arithmetic(min_operations=1, max_operations=2), arithmetic("held_out", min_operations=1, max_operations=2)
    questions = [{s[i].messages[0].content for i in range(3000)} for s in (train, held_out)]
    assert not questions[0] & questions[1]
    assert train[17] == arithmetic(min_operations=1, max_operations=2)[17]
    assert train[17] != arithmetic(seed=1, min_operations=1, max_operations=2)[17]
    with pytest.raises(IndexError):
        train[len(train)]


def test_sloppy_teacher() -> None:
    slips = arithmetic(slip_rate=0.5)
    wrong = sum(last_boxed(slips[i].response) != slips[i].answer for i in range(300))
    assert 200 < wrong < 295  # five steps on average: few come out right
    terse = arithmetic(terse_rate=0.3)
    short = [terse[i] for i in range(1000) if ";" not in terse[i].response]
    assert 250 < len(short) < 350
    assert all(last_boxed(e.response) == e.answer for e in short)


def test_steps_are_counted() -> None:
    assert count_steps("9+4=3;3-7=6;6*2=1;\\boxed{1}") == (3, 1)
    assert count_steps("\\boxed{1}") == (0, 0)


def test_order_is_seeded_epochs_without_replacement() -> None:
    order = EpochOrder(10, seed=3)
    numbers = [order[n] for n in range(30)]
    assert [epoch for _, epoch in numbers] == [0] * 10 + [1] * 10 + [2] * 10
    for epoch in range(3):
        assert sorted(i for i, e in numbers if e == epoch) == list(range(10))
    assert numbers[:10] != [(i, 0) for i, _ in numbers[10:20]]
    assert EpochOrder(10, seed=3)[25] == numbers[25]  # stateless
    assert [EpochOrder(10, seed=4)[n] for n in range(10)] != numbers[:10]


def test_tiny_tokenizer_round_trip(tmp_path) -> None:
    tokenizer = ChatTokenizer.tiny(ChainedArithmetic.vocabulary)
    example = arithmetic()[3]
    prompt, response = tokenizer.prompt_ids(example), tokenizer.response_ids(example)
    assert tokenizer.decode(response) == example.response
    pieces = tokenizer.pieces([*prompt, *response])
    assert pieces[0] == "<|user|>"
    assert pieces[len(prompt) - 1] == "<|assistant|>"
    assert pieces[-4:] == ["\\boxed{", last_boxed(example.response), "}", "<|im_end|>"]
    tokenizer.save(tmp_path)
    again = ChatTokenizer.load(tmp_path)
    assert again.prompt_ids(example) == prompt
    assert (again.turn_end_id, len(again.tokenizer)) == (tokenizer.turn_end_id, len(tokenizer.tokenizer))


@pytest.mark.skipif(not SHARED.exists(), reason=f"benchmark data is not at {SHARED}")
def test_real_chat_template_ends_turns_with_im_end() -> None:
    tokenizer = ChatTokenizer.load(SHARED / "tokenizers" / "qwen2.5")
    assert tokenizer.pieces([tokenizer.turn_end_id]) == ["<|im_end|>"]
    example = Example(id="0", messages=({"role": "user", "content": "2+2?"},), response="It is #### 4")
    assert tokenizer.decode(tokenizer.prompt_ids(example)).endswith("assistant\n")
    assert tokenizer.decode(tokenizer.response_ids(example)) == "It is #### 4"


@pytest.mark.skipif(not SHARED.exists(), reason=f"benchmark data is not at {SHARED}")
def test_shares_of_tokens_are_the_text() -> None:
    """Also where a character is several tokens, or only a part of one is there."""
    tokenizer = ChatTokenizer.load(SHARED / "tokenizers" / "qwen2.5")
    text = "x² ≤ ∞ 🙂, 𝔽₂ 求解<|im_end|>"
    ids = tokenizer.encode(text)
    shares = tokenizer.shares(ids)
    assert (len(shares), "".join(shares), shares[-1]) == (len(ids), text, "<|im_end|>")
    assert "".join(tokenizer.pieces(ids)) != text
    [*whole, broken] = tokenizer.shares(tokenizer.encode("≤ ∞")[:-1])
    assert ("".join(whole).strip(), broken[-1]) == ("≤", "\ufffd")
    assert tokenizer.shares(tokenizer.encode("∞")[:-1] * 9 + tokenizer.encode("ab"))[-1] == "ab"


@pytest.mark.skipif(not SHARED.exists(), reason=f"benchmark data is not at {SHARED}")
def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path) -> None:
    shutil.copy(SHARED / "tokenizers" / "qwen2.5" / "tokenizer_config.json", tmp_path)
    with pytest.raises(UnmaskError, match="the tokenizer has no vocabulary"):
        ChatTokenizer.load(tmp_path)


@pytest.mark.skipif(not SHARED.exists(), reason=f"benchmark data is not at {SHARED}")
@pytest.mark.parametrize("is_remote_class", [False, True], ids=["Qwen2Tokenizer", "DreamTokenizer"])
def test_real_vocabulary_gives_the_published_ids(tmp_path, is_remote_class) -> None:
    """Qwen's merges (96 of them begin with #) without tokenizer.json, also under the name of a class in remote code."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(SHARED / "tokenizers" / "qwen2.5", folder)
    folder.chmod(0o755)
    if is_remote_class:
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text())
        config["tokenizer_class"] = "DreamTokenizer"
        config["auto_map"] = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
        file.chmod(0o644)
        file.write_text(json.dumps(config))
        (folder / "tokenization_dream.py").write_text("raise SystemExit('remote code was run')")
    tokenizer = ChatTokenizer.load(folder)
    for vector in json.loads((SHARED / "tokenizers" / "golden_vectors.derived.json").read_text()):
        assert tokenizer.encode(vector["text"]) == vector["ids"]
        assert tokenizer.decode(vector["ids"]) == vector["text"]
    assert tokenizer.pieces(tokenizer.encode("#### 4")) == ["####", " ", "4"]
    assert len(tokenizer.tokenizer) == 151665  # added tokens are counted
    tokenizer.save(tmp_path / "saved")
    assert ChatTokenizer.load(tmp_path / "saved").encode("#### 4") == tokenizer.encode("#### 4")


@pytest.mark.skipif(not SHARED.exists(), reason=f"benchmark data is not at {SHARED}")
def test_real_benchmark_rows() -> None:
    options = {"path": str(SHARED / "gsm8k" / "train_head1000.jsonl"), "held_out_path": str(SHARED / "gsm8k" / "test.jsonl")}
    plugin = Plugin(name="jsonl", options={**options, "answer_key": "answer"})
    assert (len(open_source(plugin, "train", 0)), len(open_source(plugin, "held_out", 0))) == (1000, 1319)


def jsonl(tmp_path, *lines: str, **options):
    (tmp_path / "d.jsonl").write_text("\n".join(lines) + "\n")
    return open_source(Plugin(name="jsonl", options={"path": str(tmp_path / "d.jsonl"), **options}), "train", 0)


def test_jsonl_rows(tmp_path) -> None:
    source = jsonl(
        tmp_path,
        json.dumps({"id": 7, "question": "2+2", "ground_truth_answer": 4}),
        "",
        json.dumps({"messages": [{"role": "user", "content": "hi"}], "response": "hello"}),
        prompt_template="Q: {question} {x}",
    )
    assert source[0] == Example(id="7", messages=({"role": "user", "content": "Q: 2+2 {x}"},), answer="4")
    nothing = jsonl(tmp_path, '\ufeff{"question": "a", "response": null, "ground_truth_answer": null}')[0]
    assert (nothing.response, nothing.answer) == (None, None)
    assert source[1] == Example(id="3", messages=({"role": "user", "content": "hi"},), response="hello")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"question": "a"}', '{"question": '], "d.jsonl:2: not valid JSON"),
        (["[1]"], "d.jsonl:1: expected a JSON object, found list"),
        (['{"text": "a"}'], "d.jsonl:1: needs the text field 'question' (or messages); found text"),
        (
            ['{"messages": [{"role": 1}]}'],
            "d.jsonl:1: messages.0.role: Input should be 'system', 'developer', ",
        ),
        (['{"messages": [{"role": "user"}]}'], "d.jsonl:1: key 'messages.0.content' is missing"),
        (['{"question": "a", "ground_truth_answer": NaN}'], "d.jsonl:1: ground_truth_answer is nan, which is no number"),
        (['{"question": "a", "response": [1]}'], "d.jsonl:1: response must be text or a number, found list"),
        (["[" * 100000], "d.jsonl:1: not usable JSON"),
        (['{"messages": []}'], "d.jsonl:1: messages: Tuple should have at least 1 item"),
        ([""], "d.jsonl: no rows"),
    ],
)
def test_bad_rows_are_named(tmp_path, lines, message) -> None:
    with pytest.raises(UnmaskError) as error:
        jsonl(tmp_path, *lines)
    assert message in str(error.value)


def test_bad_sources_are_named(tmp_path) -> None:
    with pytest.raises(UnmaskError, match="unknown source 'mnist'; known: chained_arithmetic, jsonl"):
        open_source(Plugin(name="mnist"), "train", 0)
    with pytest.raises(UnmaskError, match=r"nope.jsonl: no such file"):
        open_source(Plugin(name="jsonl", options={"path": str(tmp_path / "nope.jsonl")}), "train", 0)
    with pytest.raises(UnmaskError, match="min_operations 5 is above max_operations 2"):
        arithmetic(min_operations=5, max_operations=2)
    with pytest.raises(UnmaskError, match="held_out_path is missing; evaluation needs it"):
        open_source(Plugin(name="jsonl", options={"path": "x"}), "held_out", 0)
    with pytest.raises(UnmaskError, match="no usable tokenizer here"):
        ChatTokenizer.load(tmp_path)


@pytest.mark.parametrize(("kind", "field"), [("sft", "response"), ("rl", "ground_truth_answer")])
def test_every_row_of_a_file_is_looked_at_before_a_run_begins(tmp_path, kind, field) -> None:
    base = tmp_path / "base"
    assert unmask("sft", write_recipe(tmp_path, "sft", SFT), "train.max_steps=1", f"run.dir={base}").returncode == 0
    rows = [{"id": str(i), "question": "1+2=?", "response": "\\boxed{3}", "ground_truth_answer": "3"} for i in range(40)]
    del rows[37][field]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = {"sft": SFT, "rl": RL}[kind].replace('[model]\npreset = "sdar/tiny"\n', "")
    words = [f"model={{path='{base}'}}", "source.name=jsonl", f"source.options={{path='{path}'}}", "eval.every_steps=0"]
    done = unmask(kind, write_recipe(tmp_path, kind, text), *words, f"run.dir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "example 37: has no " in done.stderr
    assert not (tmp_path / "run").exists()
