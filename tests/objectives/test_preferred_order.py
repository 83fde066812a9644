"""The order of given answers: against a plain loop over logits, by replay, and alone as in company."""

from __future__ import annotations

import json
import random

import pytest
import torch

from tests.conftest import make_model
from unmask.attention import DenseAttention, TiledAttention
from unmask.data.traces import TraceSource
from unmask.models import Decoder
from unmask.models.checkpoint import new_model
from unmask.objectives import TraceSft
from unmask.objectives.preferred_order import OrderParams, preferred_orders
from unmask.objectives.trace_views import replay_logprobs
from unmask.types import Demonstration, Trace, TraceRecord

IDS = {"vocab_size": 40, "mask_token_id": 2, "pad_token_id": 0, "eos_token_id": [1]}
CASES = {
    "one token a step": OrderParams(),
    "three tokens a step": OrderParams(tokens_per_step=3),
    "threshold": OrderParams(confidence_threshold=0.05),
    "threshold and two": OrderParams(tokens_per_step=2, confidence_threshold=0.05),
    "other blocks": OrderParams(tokens_per_step=2, block_size=6),
}


def models() -> dict[str, Decoder]:
    """With weights large enough for opinions: where two tokens are equally probable, rounding would decide."""
    dream = new_model("dream/tiny", 1, initializer_range=0.2, **IDS)
    llada = new_model("llada/tiny", 1, init_std=0.2, embedding_size=40, **IDS)
    return {"sdar": make_model(), "dream": dream, "llada": llada}


MODELS = models()


def answers(num: int = 11) -> list[tuple[list[int], list[int]]]:
    rng = random.Random(5)

    def ids(length: int) -> list[int]:
        return [rng.randrange(3, 40) for _ in range(length)]

    return [(ids(i), [*ids(rng.randrange(1, 13)), 1]) for i in range(num)]


def plain_trace(model: Decoder, prompt: list[int], response: list[int], order: OrderParams) -> tuple[list[int], list[float]]:
    """Steps and log-probabilities, one forward for each step of one window at a time."""
    is_full = model.spec.attention != "block_causal"
    size = order.block_size or (32 if is_full else model.spec.block_size)
    start, end = len(prompt), len(prompt) + len(response)
    edge = start if is_full else 0
    total = edge + -(-(end - edge) // size) * size
    truth = prompt + response + [2] * (total - end)
    state = prompt + [2] * (total - start)
    steps, logprobs, step = [-1] * (total - start), [0.0] * (total - start), 0
    for first in range(edge, total, size):
        while left := [i for i in range(first, first + size) if start <= i < end and state[i] == 2]:
            seen = state if is_full else state[: first + size]
            with torch.no_grad():
                logits = model.logits(torch.tensor([seen]), block_size=None if is_full else size)[0].double()
            logits[:, 2] = -torch.inf
            table = logits.log_softmax(-1)
            value = {i: table[i, truth[i]].item() for i in left}
            chosen = sorted(left, key=lambda i: (-value[i], i))[: order.tokens_per_step]
            if order.confidence_threshold is not None:
                passing = [i for i in left if value[i] > torch.tensor(order.confidence_threshold).log().item()]
                chosen = passing if len(passing) >= order.tokens_per_step else chosen
            for i in chosen:
                steps[i - start], logprobs[i - start] = step, value[i]
            for i in chosen:
                state[i] = truth[i]
            step += 1
    return steps, logprobs


def orders(model: Decoder, items, order: OrderParams, **options) -> list[Trace]:
    options = {"backend": TiledAttention, **options}
    found = dict(preferred_orders(model, items, order, **options))
    return [found[i] for i in range(len(items))]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", MODELS)
def test_against_a_plain_loop_and_by_replay(family: str, case: str) -> None:
    """Every prompt length against the grid; the trainer's log-probabilities are those that were recorded."""
    model, order, items = MODELS[family], CASES[case], answers()
    traces = orders(model, items, order)
    for trace, (prompt, response) in zip(traces, items, strict=True):
        steps, logprobs = plain_trace(model, prompt, response, order)
        assert trace.step_map == steps
        assert trace.logprobs == pytest.approx(logprobs, abs=1e-5)
        assert (trace.prompt_ids, trace.response_ids, trace.finish_reason) == (prompt, response, "stop")
        assert set(trace.canvas_ids[len(response) :]) <= {2}
        assert trace.num_forwards == max(steps) + 1
    for trace, replayed in zip(traces, replay_logprobs(model, traces), strict=True):
        assert replayed == pytest.approx(trace.logprobs, abs=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_company_changes_nothing(family: str, monkeypatch) -> None:
    model, items = MODELS[family], answers()
    together = orders(model, items, OrderParams())
    alone = [orders(model, [item], OrderParams(), backend=DenseAttention, max_tokens=1)[0] for item in items]
    monkeypatch.setattr("unmask.objectives.preferred_order.ACTIVE", 3)
    in_threes = orders(model, items, OrderParams(), max_tokens=50)
    for a, b, c in zip(together, alone, in_threes, strict=True):
        assert a.step_map == b.step_map == c.step_map
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        assert a.logprobs == pytest.approx(c.logprobs, abs=1e-5)


def test_answers_of_any_length_take_as_many_forwards_as_a_block(monkeypatch) -> None:
    model, calls = MODELS["sdar"], 0
    forward = Decoder.forward

    def counted(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Decoder, "forward", counted)
    orders(model, [*answers(9), ([5] * 7, [7] * 200)], OrderParams(), max_tokens=10**6)
    assert calls == model.spec.block_size


def test_empty_and_cut_answers() -> None:
    empty, cut = orders(MODELS["sdar"], [([3, 4], []), ([3], [5, 6])], OrderParams())
    assert (empty.num_response_tokens, empty.num_forwards, empty.finish_reason) == (0, 0, "length")
    assert (cut.num_response_tokens, cut.finish_reason) == (2, "length")
    # A chat template may end turns with a token that the model's config does not list.
    (ended,) = orders(MODELS["sdar"], [([3], [5, 6])], OrderParams(stop_token_ids=(1, 6)))
    assert ended.finish_reason == "stop"


@pytest.mark.parametrize("family", MODELS)
def test_they_are_trained_on(family: str, tmp_path) -> None:
    """Through the file and the source: the same rows as of an answer whose order is given."""
    model, items = MODELS[family], answers(4)
    traces = orders(model, items, OrderParams(tokens_per_step=2))
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(TraceRecord(str(i), t).to_dict()) + "\n" for i, t in enumerate(traces)))
    source = TraceSource(TraceSource.Options(path=str(file)), "train", 0)
    source.check_model(model.spec)
    objective = TraceSft(TraceSft.Options(), model.spec, 0)
    for i, (prompt, response) in enumerate(items):
        trace = source[i].trace
        rows = objective.rows([Demonstration(i, 0, prompt, response, trace)])
        given = objective.rows([Demonstration(i, 0, prompt, response, step_map=trace.step_map[: len(response)])])
        assert [row.target_ids.tolist() for row in rows] == [row.target_ids.tolist() for row in given]
        assert sum(len(row.target_ids) for row in rows) == len(response)
