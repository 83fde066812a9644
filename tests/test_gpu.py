"""What only a GPU can show: compiled FlexAttention against the dense backend, forward and backward, and a short RL run."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import make_model, random_prompts
from tests.engine.plain import full_attention_model
from tests.models.rows import ROWS, build, random_ids
from tests.models.toy_family import ToyFamily
from unmask.attention import BACKENDS, DenseAttention
from unmask.diffusion.generate import generate
from unmask.engine import Engine
from unmask.models import FAMILIES
from unmask.models.checkpoint import load_model, new_model, save_model
from unmask.objectives.rows import collate, score_targets
from unmask.objectives.trace_views import replay_logprobs, trace_rows
from unmask.objectives.views import Grid
from unmask.types import SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.fixture
def gpu_model():
    return make_model(head_dim=16).to("cuda")  # FlexAttention wants head_dim to be a power of two, at least 16


def test_flex_gives_dense_logprobs_and_gradients(gpu_model) -> None:
    traces = generate(gpu_model, random_prompts([5, 9, 14]), SamplingParams(max_new_tokens=24))
    rows = [row for trace in traces for row in trace_rows(trace, Grid.of(gpu_model.spec), gpu_model.spec.mask_token_id)]
    batch = collate(rows, "cuda")
    gradients = []
    for backend in (DenseAttention, BACKENDS["flex"]):
        gpu_model.zero_grad()
        score_targets(gpu_model, batch, backend).logprobs_N.sum().backward()
        gradients.append({name: p.grad.clone() for name, p in gpu_model.named_parameters()})
    for name, gradient in gradients[0].items():
        scale = gradient.abs().max()
        assert (gradients[1][name] - gradient).abs().max() <= 2e-3 * scale, name  # TF32-free float32, other sum order


def test_replay_on_gpu(gpu_model) -> None:
    traces = generate(gpu_model, random_prompts(range(10)), SamplingParams(max_new_tokens=20))
    for backend in BACKENDS.values():
        for trace, replayed in zip(traces, replay_logprobs(gpu_model, traces, backend=backend), strict=True):
            assert max(abs(a - b) for a, b in zip(replayed, trace.logprobs, strict=True)) <= 1e-4


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_family_computes_the_same_on_a_gpu(row, tmp_path, monkeypatch) -> None:
    """Loaded onto the device, in float32 and bfloat16; experts go through the grouped kernel."""
    monkeypatch.setitem(FAMILIES, "toy", ToyFamily())
    model = build(row)
    save_model(model, tmp_path / "m")
    ids = random_ids(model, 2, 17)
    want = model.logits(ids)
    got = load_model(tmp_path / "m", device="cuda").logits(ids.cuda()).cpu()
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-3)
    half = load_model(tmp_path / "m", device="cuda", dtype="bfloat16").logits(ids.cuda()).cpu()
    close = (half - want).abs().amax(-1) < 0.15 * want.abs().max()
    assert close.float().mean() > (0.8 if model.spec.experts else 0.99)


def test_presets_are_the_same_on_every_device() -> None:
    on_gpu, on_cpu = new_model("sdar_moe/tiny", 3, device="cuda"), new_model("sdar_moe/tiny", 3)
    for (name, a), b in zip(on_gpu.named_parameters(), on_cpu.parameters(), strict=True):
        assert torch.equal(a.cpu(), b), name


@pytest.mark.parametrize("attention_backend", ["dense", "flex"])
@pytest.mark.parametrize("strategy", ["low_confidence_static", "low_confidence_dynamic"])
def test_engine_is_generate_on_a_gpu(gpu_model, attention_backend, strategy) -> None:
    """Pages, packed rows, shared prompts, preemption: the same tokens at the same steps as the readable sampler."""
    params = SamplingParams(max_new_tokens=40, block_size=4, remasking_strategy=strategy, confidence_threshold=0.3)
    prompts = [*random_prompts(range(12)), *random_prompts([30]) * 8]
    want = generate(gpu_model, prompts, params)
    for limits in (
        {"num_pages": 64},
        {"num_pages": 4, "max_tokens_per_forward": 32},
        {"num_pages": 64, "use_cuda_graphs": True},
    ):
        got = Engine(gpu_model, attention_backend=attention_backend, **limits).generate(prompts, params)
        same = [(a.canvas_ids, a.step_map) == (b.canvas_ids, b.step_map) for a, b in zip(got, want, strict=True)]
        assert sum(same) >= 19  # float32 sums in another order may turn one close call
        for a, b in zip(got, want, strict=True):
            if (a.canvas_ids, a.step_map) == (b.canvas_ids, b.step_map):
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


@pytest.mark.parametrize("attention_backend", ["dense", "flex"])
def test_engine_in_bfloat16(gpu_model, attention_backend) -> None:
    engine = Engine(gpu_model.to(torch.bfloat16), attention_backend=attention_backend, num_pages=64)
    traces = engine.generate(random_prompts([5, 9, 40] * 20), SamplingParams(max_new_tokens=30, block_size=4))
    assert all(t.num_response_tokens and -1 not in t.step_map for t in traces)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_full_attention_on_a_gpu(cache) -> None:
    model = full_attention_model("dream").to("cuda")
    params = SamplingParams(max_new_tokens=20, block_size=8, cache=cache, temperature=0.0)
    prompts = random_prompts([0, 5, 9, 17])
    together = Engine(model, num_pages=16).generate(prompts, params)
    alone = [Engine(model, num_pages=16).generate([prompt], params)[0] for prompt in prompts]
    assert [t.canvas_ids for t in together] == [t.canvas_ids for t in alone]
