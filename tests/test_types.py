"""Traces and records survive the trip through JSON; broken ones are named."""

from __future__ import annotations

import json

import pytest

from tests.conftest import random_prompts
from unmask.diffusion.generate import generate
from unmask.errors import UnmaskError
from unmask.types import SamplingParams, Trace, TraceRecord


def test_round_trip_is_exact(model) -> None:
    for trace in generate(model, random_prompts([0, 5, 9]), SamplingParams(max_new_tokens=10, stop_token_ids=(1, 5))):
        assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace
        record = TraceRecord("x", trace, "p", "r", ["a"] * len(trace.prompt_ids), ["b"] * len(trace.canvas_ids), "7", 1.0)
        assert TraceRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
        assert SamplingParams.model_validate(json.loads(json.dumps(trace.settings))).seed == trace.seed


GOOD = {
    "prompt_ids": [1], "canvas_ids": [5, 6], "step_map": [0, 1], "logprobs": [-1, -0.5], "confidences": [0.4, 0.6],
    "num_response_tokens": 2, "block_size": 3, "num_forwards": 2, "finish_reason": "stop",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_map": [0]}, "line 3: step_map has 1 entries for 2 canvas tokens"),
        ({"canvas_ids": [5, "6"]}, "line 3: canvas_ids.1: Input should be a valid integer, found '6'"),
        ({"logprobs": None}, "line 3: logprobs: Input should be a valid list, found None"),
        ({"num_response_tokens": 3}, "line 3: num_response_tokens 3 is not within the canvas"),
        ({"block_size": 0}, "line 3: block_size: Input should be greater than or equal to 1, found 0"),
        ({"stepmap": []}, "line 3: unknown field 'stepmap'"),
        ({"step_map": [0, -2]}, "line 3: step_map.1: Input should be greater than or equal to -1, found -2"),
        ({"canvas_ids": [5, -6]}, "line 3: canvas_ids.1: Input should be greater than or equal to 0, found -6"),
        ({"finish_reason": "eos"}, "line 3: finish_reason: Input should be 'stop', 'length' or 'abort', found 'eos'"),
    ],
)
def test_broken_traces_are_named(change, message) -> None:
    assert Trace.from_dict(GOOD, "line 3").tokens_per_forward == 1.0
    with pytest.raises(UnmaskError) as error:
        Trace.from_dict({**GOOD, **change}, "line 3")
    assert str(error.value).startswith(message)


def test_missing_field_is_named() -> None:
    data = {k: v for k, v in GOOD.items() if k != "step_map"}
    with pytest.raises(UnmaskError, match="line 3: field 'step_map' is missing"):
        Trace.from_dict(data, "line 3")


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"max_new_tokens": 0}, {"seed": -1}, {"seeds": 1}])
def test_sampling_params_are_checked(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingParams(**bad)
