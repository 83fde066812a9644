"""Text that comes in pieces is the text that comes at once, for every way of cutting tokens, and stops where it should."""

from __future__ import annotations

import random

import pytest

from tests.data.shared import SHARED, needs_shared
from unmask.data.chat import ChatTokenizer
from unmask.data.text_stream import TextStream, cut_at_stop

pytestmark = needs_shared

TEXT = "Zürich: 中文字符 und 😀👨‍👩‍👧 emoji,\n\n  x = [1, 2];  \ufffd half. " * 6


@pytest.fixture(scope="module")
def tokenizer():
    return ChatTokenizer.load(SHARED / "tokenizers" / "qwen2.5")


@pytest.mark.parametrize("seed", range(8))
def test_pieces_make_the_whole(tokenizer, seed) -> None:
    g = random.Random(seed)
    ids = tokenizer.encode(TEXT) if seed % 2 else [g.randrange(tokenizer.tokenizer.vocab_size) for _ in range(400)]
    stream, said, i = TextStream(tokenizer), "", 0
    while i < len(ids):
        num = g.choice([1, 1, 2, 4, 8, 32])
        new = stream.push(ids[i : i + num])
        assert not new.endswith("\ufffd")
        said += new
        i += num
        assert len(said) >= len(tokenizer.decode(ids[:i])) - 30  # what is certain is said
    assert said + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("stops", [("END",), ("x = [", "\n\n"), ("😀",), ("nowhere",), ("}}", "}")])
@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_stop_string_is_never_said_not_even_its_beginning(tokenizer, stops, size) -> None:
    text = "a E EN ENx {}} EEND " + TEXT
    ids = tokenizer.encode(text)
    at = cut_at_stop(text, stops)
    want = text if at is None else text[:at]
    stream = TextStream(tokenizer, stops)
    said = ""
    for i in range(0, len(ids), size):
        said += stream.push(ids[i : i + size])
        assert want.startswith(said)
    assert said + stream.finish() == want
    assert stream.has_stopped == (at is not None)
