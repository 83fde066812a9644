"""New weights while requests are in flight."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import make_model, random_prompts
from tests.engine.plain import assert_nothing_left, assert_same, full_attention_model, run
from unmask.diffusion.generate import generate
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.types import SamplingParams

PARAMS = SamplingParams(max_new_tokens=16, block_size=4, confidence_threshold=0.3, stop_token_ids=())
PROMPTS = random_prompts([9, 5, 20, 3])


def begun_engine(model, num_steps: int = 5, **limits) -> Engine:
    """Two requests have begun, two wait."""
    engine = Engine(model, max_sequences=2, num_pages=40, **limits)
    for i, prompt in enumerate(PROMPTS):
        engine.add_request(prompt, PARAMS.model_copy(update={"seed": i}))
    for _ in range(num_steps):
        assert not any(output.trace for output in engine.step())
    return engine


@pytest.mark.parametrize("form", ["module", "state dict", "state dict without the tied head"])
def test_begun_requests_finish_with_the_old_weights(form) -> None:
    model, new = make_model(), make_model(seed=7)
    old_traces, new_traces = generate(model, PROMPTS, PARAMS), generate(new, PROMPTS, PARAMS)
    engine = begun_engine(model)
    weights = new if form == "module" else new.state_dict()
    if form == "state dict without the tied head":
        weights = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    engine.update_weights(weights, policy_version=12)
    traces = run(engine, 200)
    assert_same([traces[i] for i in range(4)], [*old_traces[:2], *new_traces[2:]])
    assert [traces[i].policy_version for i in range(4)] == [0, 0, 12, 12]
    assert_nothing_left(engine)


def test_begun_requests_start_over() -> None:
    model, new = make_model(), make_model(seed=7)
    want = generate(new, PROMPTS, PARAMS)
    engine = begun_engine(model)
    engine.update_weights(new, in_flight="recompute")
    seen, restarts, traces = {i: [] for i in range(4)}, set(), {}
    while engine.has_work:
        for output in engine.step():
            if output.is_restart:
                restarts.add(output.id)
                assert seen[output.id] == []  # the first news after the update
            seen[output.id] += output.new_ids
            if output.trace:
                traces[output.id] = output.trace
    assert_same([traces[i] for i in range(4)], want)
    assert restarts == {0, 1}
    assert [seen[i] for i in range(4)] == [t.response_ids for t in want]
    assert {t.policy_version for t in traces.values()} == {1}


def test_full_attention_starts_over_too() -> None:
    model, new = full_attention_model("llada"), full_attention_model("llada", seed=3)
    engine = begun_engine(model)
    engine.update_weights(new, in_flight="recompute")
    traces = run(engine, 200)
    assert_same([traces[i] for i in range(4)], generate(new, PROMPTS, PARAMS))


def test_weights_changed_in_place() -> None:
    """A trainer's step on the engine's own model: what is known of prompts is forgotten."""
    model = make_model()
    engine = Engine(model)
    engine.generate(PROMPTS, PARAMS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    engine.update_weights(policy_version=3)
    traces = engine.generate(PROMPTS, PARAMS)
    assert_same(traces, generate(model, PROMPTS, PARAMS))
    assert engine.stats.num_shared_tokens == 0
    assert {t.policy_version for t in traces} == {3}


def test_what_was_known_of_old_weights_is_found_again_only_for_new_ones() -> None:
    model = make_model()
    engine = Engine(model, num_pages=12, page_size=4)
    for seed in (5, 6):
        engine.update_weights(make_model(seed=seed))
        for _ in range(2):
            assert_same(engine.generate(PROMPTS[:3], PARAMS), generate(make_model(seed=seed), PROMPTS[:3], PARAMS))
        assert_nothing_left(engine)


def test_old_pages_of_running_requests_are_not_found(model) -> None:
    """Pages registered before an update may still be in use after it (by nobody's fault): they must not be found."""
    engine = Engine(make_model(), page_size=4, num_pages=40)
    first = engine.add_request(PROMPTS[2], PARAMS)
    engine.step()
    with torch.no_grad():
        engine.model.norm.weight.mul_(1.5)
    engine.update_weights(in_flight="recompute")
    second = engine.add_request(PROMPTS[2], PARAMS)
    traces = run(engine, 100)
    want = generate(engine.model, [PROMPTS[2]], PARAMS)[0]
    assert_same([traces[first], traces[second]], [want, want])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"norm.weight": 3}), "new weights: 'norm.weight' is not a tensor"),
        (lambda s: s.update({"lm_head.weight": torch.ones(40, 48)}), "the model's head is tied to its embedding; here they"),
        (lambda s: s.pop("norm.weight"), "new weights: tensor 'norm.weight' is missing"),
        (lambda s: s.update(extra=torch.ones(1)), "new weights: the model has no tensor 'extra'"),
        (lambda s: s.update({"norm.weight": torch.ones(3)}), r"new weights: 'norm.weight' has shape \[3\], expected \[48\]"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, message) -> None:
    model = make_model()
    engine, state = begun_engine(model), make_model(seed=9).state_dict()
    change(state)
    with pytest.raises(UnmaskError, match=message):
        engine.update_weights(state)
    traces = run(engine, 200)
    assert_same([traces[i] for i in range(4)], generate(make_model(), PROMPTS, PARAMS))
    assert {t.policy_version for t in traces.values()} == {0}


def test_changed_weights_cannot_finish_what_has_begun() -> None:
    engine = begun_engine(make_model())
    for weights in (None, engine.model):
        with pytest.raises(UnmaskError, match="they can only start over"):
            engine.update_weights(weights)
