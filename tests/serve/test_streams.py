"""JSON of long answers."""

from __future__ import annotations

import json
import math

import pytest

from unmask.serve import streams


@pytest.mark.parametrize("num", [0, 1, streams._PIECE, streams._PIECE + 1, 3 * streams._PIECE])
def test_in_pieces_it_is_the_same(num, monkeypatch) -> None:
    tokens = [{"token": f"\ud800 é {i}", "logprob": -i / 7, "bytes": None} for i in range(num)]
    trace = {"ids": tuple(range(num)), "confidences": [i / 3 for i in range(num)], "settings": {"stop": (), 5: "x"}}
    item = {"choices": [{"logprobs": {"content": tokens}, "unmask": {"trace": trace}}], "odd": math.pi, "none": None, "no": []}
    longest, dumps = 0, json.dumps

    def watched(value, **options) -> str:
        nonlocal longest
        longest = max(longest, len(value) if isinstance(value, list | tuple) else 0)
        assert not isinstance(value, dict) or not {"content", "ids"} & value.keys()
        return dumps(value, **options)

    monkeypatch.setattr(json, "dumps", watched)
    assert streams.encode_long(item) == dumps(item, separators=(",", ":"))
    assert longest <= streams._PIECE
