"""When a sequence ends, what counts, how many tokens a step is to unmask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import make_model, random_prompts
from tests.engine.plain import full_attention_model
from unmask.diffusion.generate import generate
from unmask.diffusion.sequence import DecodingSequence, step_quota
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.objectives.trace_views import replay_logprobs
from unmask.types import SamplingParams


def both(model, prompts, params, decode=None):
    """Traces of the readable sampler and of the engine."""
    return generate(model, prompts, params, decode=decode), Engine(model, decode=decode).generate(prompts, params)


def test_quota_spreads_the_remainder_over_the_first_steps() -> None:
    assert [step_quota(i, 3, 8, 8, "even") for i in range(4)] == [3, 3, 2, 2]
    assert [step_quota(i, 4, 4, 4, "even") for i in range(4)] == [1, 1, 1, 1]


def test_quota_of_dreams_timesteps() -> None:
    """Published: int(masks * (1 - t[i + 1] / t[i])), t = linspace(1, 0.001, n + 1); what is left at the last step."""
    for num_steps in (1, 2, 3, 8, 16):
        t = torch.linspace(1, 1e-3, num_steps + 1, dtype=torch.float64)
        for step in range(num_steps):
            for masks in range(1, 33):
                want = masks if step == num_steps - 1 else int(masks * float(1 - t[step + 1] / t[step]))
                assert step_quota(step, num_steps, 32, masks, "dream") == want


def test_steps_of_the_response_are_shared_by_its_blocks(model) -> None:
    """9 steps over 4 blocks: 3, 2, 2, 2."""
    params = SamplingParams(
        max_new_tokens=16, block_size=4, denoising_steps=9, remasking_strategy="sequential", stop_token_ids=()
    )
    for traces in both(model, [[5, 6, 7, 8]], params):
        assert [len(set(traces[0].step_map[i : i + 4])) for i in range(0, 16, 4)] == [3, 2, 2, 2]


def sequence(model, prompt, **params) -> DecodingSequence:
    return DecodingSequence(prompt, SamplingParams(**params), model.spec, decode=lambda ids: "".join(chr(96 + i) for i in ids))


def unmask(s: DecodingSequence, values: dict[int, int]) -> bool:
    """Tokens at canvas positions."""
    positions = np.array(sorted(values), dtype=np.int64) + len(s.prompt_ids)
    zeros = np.zeros(len(values))
    return s.unmask(positions, np.array([values[k] for k in sorted(values)]), zeros, zeros)


def test_block_models_finish_the_block() -> None:
    s = sequence(make_model(), [], max_new_tokens=8, block_size=4, stop_token_ids=(9,))
    assert not unmask(s, {0: 9})
    assert unmask(s, {1: 5, 2: 5, 3: 9})
    assert (s.finish_reason, s.num_response_tokens, s.trace().canvas_ids) == ("stop", 1, [9, 5, 5, 9])


def test_full_attention_ends_when_no_mask_is_left_before_a_stop() -> None:
    model = full_attention_model("llada")
    s = sequence(model, [7], max_new_tokens=8, block_size=8, stop_token_ids=(9,))
    assert not unmask(s, {3: 9, 0: 5})
    assert s.num_final() == 1
    assert not unmask(s, {2: 5, 6: 5})
    assert unmask(s, {1: 5})
    trace = s.trace()
    assert (trace.finish_reason, trace.num_response_tokens) == ("stop", 4)
    mask = model.spec.mask_token_id
    assert (trace.canvas_ids, trace.step_map) == ([5, 5, 5, 9, mask, mask, 5, mask], [0, 2, 1, 0, -1, -1, 1, -1])


def test_a_stop_beyond_the_limit_does_not_count() -> None:
    s = sequence(make_model(), [5], max_new_tokens=2, block_size=4, stop_token_ids=(9,))
    assert unmask(s, {0: 5, 1: 6, 2: 9})
    assert (s.finish_reason, s.num_response_tokens) == ("length", 2)


@pytest.mark.parametrize("kind", ["block", "full"])
def test_stop_strings(kind) -> None:
    """The response ends with the token that completes the string, across blocks, too."""
    model = make_model() if kind == "block" else full_attention_model("llada")
    s = sequence(model, [], max_new_tokens=12, block_size=4, stop_token_ids=(), stop_strings=("zz", "ef"))
    assert not unmask(s, {0: 1, 1: 2, 2: 3, 3: 5})  # "abce"
    ended = unmask(s, {4: 6})  # "abcef"
    assert ended == (kind == "full")
    if not ended:
        assert unmask(s, {5: 7, 6: 8, 7: 9})
    assert (s.finish_reason, s.num_response_tokens) == ("stop", 5)


def test_stop_strings_and_tokens_the_earlier_ends() -> None:
    for stop, want in ((3, 3), (7, 6)):
        s = sequence(make_model(), [], max_new_tokens=8, block_size=8, stop_token_ids=(stop,), stop_strings=("ef",))
        assert unmask(s, {i: i + 1 for i in range(8)})  # "abcdefgh"
        assert (s.finish_reason, s.num_response_tokens) == ("stop", want)


def test_ignore_eos(model) -> None:
    model_stops = model.spec.eos_token_ids
    stops = SamplingParams(max_new_tokens=40, stop_token_ids=(*model_stops, 11, 12, 13, 14))
    assert any(t.finish_reason == "stop" for t in generate(model, [[]] * 8, stops))
    s = sequence(model, [], max_new_tokens=8, block_size=4, ignore_eos=True)
    assert not unmask(s, {0: model_stops[0], 1: 5, 2: 5, 3: 5})
    s = sequence(model, [], max_new_tokens=8, block_size=4, ignore_eos=True, stop_token_ids=(5,))
    assert unmask(s, {0: 4, 1: 5, 2: 5, 3: 5})


@pytest.mark.parametrize("kind", ["block", "full"])
def test_min_tokens(kind) -> None:
    """Stop tokens are not drawn for the first tokens, and the log-probabilities are those of what could be drawn."""
    model = make_model() if kind == "block" else full_attention_model("llada")
    stops = tuple(range(3, 12))
    params = SamplingParams(max_new_tokens=20, block_size=4, min_tokens=9, stop_token_ids=stops, seed=1)
    free = generate(model, random_prompts([3] * 12), params.model_copy(update={"min_tokens": 0}))
    assert min(t.num_response_tokens for t in free) < 9
    for traces in both(model, random_prompts([3] * 12), params):
        assert min(t.num_response_tokens for t in traces) >= 10
        assert not any(token in stops for t in traces for token in t.canvas_ids[:9])
        assert any(t.finish_reason == "stop" for t in traces)
        if kind == "block":
            for trace, replayed in zip(traces, replay_logprobs(model, traces), strict=True):
                assert replayed == pytest.approx(trace.logprobs, abs=1e-5)


def test_min_tokens_of_stop_strings() -> None:
    """A string in the first tokens ends the response as soon as it is long enough, which may be blocks later."""
    s = sequence(make_model(), [], max_new_tokens=12, block_size=4, stop_token_ids=(), stop_strings=("b",), min_tokens=6)
    assert not unmask(s, {i: i + 1 for i in range(4)})
    assert unmask(s, {i: i + 1 for i in range(4, 8)})
    assert (s.finish_reason, s.num_response_tokens) == ("stop", 6)
    trace = s.trace()
    assert type(trace).from_dict(trace.to_dict()) == trace


def test_stop_strings_in_both_samplers(model) -> None:
    def decode(ids):
        return "".join(chr(96 + i) for i in ids)

    params = SamplingParams(max_new_tokens=40, block_size=4, stop_token_ids=(), stop_strings=("k", "mm"), seed=2)
    prompts = random_prompts(range(10))
    traces, engine_traces = both(model, prompts, params, decode)
    assert [t.response_ids for t in traces] == [t.response_ids for t in engine_traces]
    stopped = [decode(t.response_ids) for t in traces if t.finish_reason == "stop"]
    assert stopped
    for text in stopped:
        assert text.endswith(("k", "mm"))
        assert "k" not in text[:-1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"denoising_steps": 4, "denoising_steps_per_block": 2}, "not both"),
        ({"confidence_threshold": -0.5}, "at least 0"),
        ({"min_tokens": 300}, "min_tokens 300 is more than max_new_tokens 256"),
        ({"further_horizon": 3}, "further_horizon belongs to cache"),
        ({"stop_strings": ("",)}, "at least 1 character"),
    ],
)
def test_parameters_that_do_not_go_together(params, message) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**params)


def test_settings_of_full_attention_are_refused_for_block_models(model) -> None:
    with pytest.raises(UnmaskError, match="unmask_block_start is for full-attention models"):
        generate(model, [[3]], SamplingParams(unmask_block_start=True))
