"""Padded, static forwards without a GPU: the recording is replaced by a function that computes again from the buffers."""

from __future__ import annotations

import pytest

from tests.conftest import make_model, random_prompts
from tests.engine.plain import any_model, assert_same
from unmask.diffusion.generate import generate
from unmask.engine import Engine
from unmask.engine.graphs import StaticForwards
from unmask.engine.paged import ROW_BACKENDS
from unmask.errors import UnmaskError
from unmask.types import SamplingParams


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.slow if name == "flex" else ()) for name in ROW_BACKENDS]
)
def test_replayed_forwards_decode_the_same(model, backend) -> None:
    prompts = random_prompts([*range(10), 40, 40, 3])
    params = [
        SamplingParams(max_new_tokens=5 + 3 * i, block_size=(4, 8)[i % 2], confidence_threshold=0.3, seed=i)
        for i in range(len(prompts))
    ]
    engine = Engine(model, num_pages=60, page_size=4, attention_backend=backend, max_sequences=7)
    engine.runner.static = static = StaticForwards(model, engine.runner.kv, ROW_BACKENDS[backend], capture=lambda run: run)
    for _ in range(2):
        assert_same(engine.generate(prompts, params), generate(model, prompts, params))
    assert static.num_replays > 0.5 * engine.stats.num_forwards
    assert len(static._static) < 0.5 * static.num_replays  # shapes come again


def test_recordings_do_not_outlive_the_pages(model, monkeypatch) -> None:
    """After a failed forward the memory is another one."""
    prompts, params = random_prompts([9, 5, 12]), SamplingParams(max_new_tokens=16, block_size=4, stop_token_ids=())
    engine = Engine(model, num_pages=60)
    engine.runner.static = static = StaticForwards(model, engine.runner.kv, ROW_BACKENDS["dense"], capture=lambda run: run)
    engine.generate(prompts, params)
    with monkeypatch.context() as patched:
        patched.setattr(model, "head", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate(prompts, params)
    assert_same(engine.generate(prompts, params), generate(model, prompts, params))
    assert static.num_replays > 0


def test_shifted_logits_and_windows() -> None:
    model = any_model("dream")
    params = SamplingParams(max_new_tokens=20, block_size=8, cache="dual", stop_token_ids=())
    prompts = random_prompts([3, 9, 5])
    want = Engine(model, num_pages=30).generate(prompts, params)
    engine = Engine(model, num_pages=30)
    engine.runner.static = StaticForwards(model, engine.runner.kv, ROW_BACKENDS["dense"], capture=lambda run: run)
    assert_same(engine.generate(prompts, params), want)


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UnmaskError, match="use_cuda_graphs needs a model on a GPU; this one is on cpu"):
        Engine(make_model(), use_cuda_graphs=True)
