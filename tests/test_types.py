"""Traces and records survive the trip through JSON; broken ones are named."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html.parser import HTMLParser

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


class Reader(HTMLParser):
    """The text of a piece of HTML, the titles in it, and what tags and attributes it has."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.text, self.titles, self.tags, self.attributes, self.depth = "", [], set(), set(), 0
        self.feed(markup)
        self.close()
        assert self.depth == 0

    def handle_starttag(self, tag, attrs) -> None:
        self.depth += 1
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_endtag(self, tag) -> None:
        self.depth -= 1

    def handle_data(self, data) -> None:
        self.text += data


HTML_TRACE = Trace([1], [5, 6, 7, 2], [1, 0, 1, -1], [-1.0] * 3 + [0.0], [0.4, 0.999, 0.6, 0.0], 2, 4, 2, "stop")


def test_notebooks_show_a_trace() -> None:
    shown = Reader(HTML_TRACE._repr_html_())
    assert shown.titles == [
        "step 1 · confidence 0.4 · id 5", "step 0 · confidence 0.999 · id 6", "step 1 · confidence 0.6 · id 7",
    ]  # fmt: skip
    assert "5 6 7" in shown.text
    assert "▒ 1 positions never unmasked" in shown.text
    assert "2 response tokens on a canvas of 4 · 2 forwards · 1.00 tokens per forward · finish reason: stop" in shown.text


def test_notebooks_show_a_record_with_its_texts() -> None:
    record = TraceRecord("q", HTML_TRACE, "1 < 2?", "yes", ["p"], ["ye\n", "s", "", "[mask]"], "yes", 0.5)
    shown = Reader(record._repr_html_())
    assert "prompt 1 < 2?" in shown.text
    assert "right answer yes" in shown.text
    assert "reward 0.5" in shown.text
    assert "ye↵\ns[7]" in shown.text  # a token without a text has its id
    family = "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"  # one picture
    assert family in Reader(replace(record, canvas_pieces=[family, "a", "b", "c"])._repr_html_()).text
    assert Reader(replace(record, canvas_pieces=[], reward=None)._repr_html_()).text.count("reward") == 0


def test_notebooks_run_nothing_that_a_model_writes() -> None:
    evil = ['</span><script>alert("1")</script>', "<img src=x onerror=alert(1)>", '" onmouseover="x', "\u202e\x00"]
    record = TraceRecord("q", HTML_TRACE, evil[0], evil[1], [evil[1]], evil, evil[2], 1.0)
    for markup in (record._repr_html_(), HTML_TRACE._repr_html_()):
        shown = Reader(markup)
        assert shown.tags <= {"div", "span", "b"}
        assert shown.attributes <= {"style", "title"}
        assert "\u202e" not in markup
        assert "http" not in markup
    assert evil[0] in Reader(record._repr_html_()).text


def test_traces_at_their_edges_are_shown() -> None:
    for trace in (
        Trace([], [], [], [], [], 0, 4, 0, "abort"),
        replace(HTML_TRACE, step_map=[-1] * 4, num_response_tokens=0),
        replace(HTML_TRACE, confidences=[math.nan, 1.5, -1.0, math.inf]),
    ):
        assert "finish reason" in Reader(trace._repr_html_()).text


def test_repr_is_one_short_line_and_equality_is_of_the_fields() -> None:
    trace = replace(HTML_TRACE, canvas_ids=list(range(5000)))
    assert repr(trace) == "<Trace: 1 prompt and 5000 canvas tokens, response of 2, 2 forwards, stop, seed 0>"
    record = TraceRecord("q", HTML_TRACE, response_text="a\nb" * 1000, reward=1.0)
    assert repr(record).startswith("<TraceRecord 'q': 'a\\nb")
    assert len(repr(record)) < 250
    assert "\n" not in repr(record)
    assert replace(HTML_TRACE) == HTML_TRACE
    assert replace(HTML_TRACE, seed=1) != HTML_TRACE
