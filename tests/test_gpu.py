"""What only a GPU can show: compiled FlexAttention against the dense backend, forward and backward, and a short RL run."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import make_model, random_prompts
from unmask.attention import BACKENDS, DenseAttention
from unmask.diffusion.generate import generate
from unmask.objectives.rows import collate, target_logprobs
from unmask.objectives.trace_views import replay_logprobs, trace_row
from unmask.types import SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.fixture
def gpu_model():
    return make_model(head_dim=16).to("cuda")  # FlexAttention wants head_dim to be a power of two, at least 16


def test_flex_gives_dense_logprobs_and_gradients(gpu_model) -> None:
    traces = generate(gpu_model, random_prompts([5, 9, 14]), SamplingParams(max_new_tokens=24))
    rows = [trace_row(trace, gpu_model.spec.mask_token_id) for trace in traces]
    batch = collate(rows, gpu_model.spec.pad_token_id, "cuda")
    gradients = []
    for backend in (DenseAttention, BACKENDS["flex"]):
        gpu_model.zero_grad()
        target_logprobs(gpu_model, batch, backend).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in gpu_model.named_parameters()})
    for name, gradient in gradients[0].items():
        scale = gradient.abs().max()
        assert (gradients[1][name] - gradient).abs().max() <= 2e-3 * scale, name  # TF32-free float32, other sum order


def test_replay_on_gpu(gpu_model) -> None:
    traces = generate(gpu_model, random_prompts(range(10)), SamplingParams(max_new_tokens=20))
    for backend in BACKENDS.values():
        for trace, replayed in zip(traces, replay_logprobs(gpu_model, traces, backend=backend), strict=True):
            assert max(abs(a - b) for a, b in zip(replayed, trace.logprobs, strict=True)) <= 1e-4
