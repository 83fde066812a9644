"""The cost model of benchmarks/scale.py: its formulas against the code they speak of, their limits; the script's arguments."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from unmask.attention import TokenLayout
from unmask.config.training import OptimizerConfig
from unmask.models.checkpoint import new_model
from unmask.models.flops import Work, model_flops
from unmask.objectives.rows import collate, share_packs
from unmask.objectives.trace_rl import TraceRL
from unmask.train.optimizer import make_optimizer
from unmask.train.optimizer_files import optimizer_tensors

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import scale  # noqa: E402
from cost_model import (  # noqa: E402
    H100,
    Link,
    Setting,
    forward_s,
    optimizer_s,
    pack_sizes,
    parameters,
    passes,
    preset_spec,
    publish_s,
    response_work,
    ring_s,
    shard_link,
    update_flops,
)
from cost_of_decoding import decode_parts, flops_of_one, forward_parts, gather_s  # noqa: E402
from cost_of_step import HEAD_CHUNK, activation_bytes, memory_parts, predict, weak  # noqa: E402
from update_runs import Setting as Lengths  # noqa: E402
from update_runs import synthetic_rollouts  # noqa: E402

SPEC = preset_spec("sdar/4b")
TINY = preset_spec("sdar/tiny")


def test_one_rank_exchanges_nothing() -> None:
    assert ring_s(1e9, 1, H100.inside) == 0
    assert publish_s(SPEC, H100, 1) == 0
    assert gather_s(H100, 1e6, 1) == 0
    phase = passes(SPEC, H100, 2.0, 5, 1, 1, backward=True)
    assert phase.seconds == 2.0
    assert phase.parts == {"compute": 2.0}


def test_terms_follow_bytes_bandwidth_and_ranks() -> None:
    link = Link(1e9, 0.0)
    assert ring_s(1e9, 4, link) == pytest.approx(0.75)
    assert ring_s(1e9, 4, Link(2e9, 0.0)) == ring_s(1e9, 4, link) / 2
    assert ring_s(0, 4, Link(1e9, 1e-3)) == pytest.approx(3e-3)
    assert ring_s(1e9, 512, link) > ring_s(1e9, 8, link)
    assert optimizer_s(SPEC, H100, 8) == optimizer_s(SPEC, H100, 1) / 8
    # A node's cards together carry a ring that passes through it.
    assert shard_link(H100, 8) == H100.inside
    assert shard_link(H100, 64).bandwidth == min(H100.inside.bandwidth, 8 * H100.between.bandwidth)


def test_exchanges_are_hidden_behind_the_computing_or_the_other_way_round() -> None:
    slow = replace(H100, inside=Link(1e9, 0.0))
    alone = passes(SPEC, slow, 0.0, 3, 8, 8, backward=True)
    short, long = (passes(SPEC, slow, seconds, 3, 8, 8, backward=True) for seconds in (0.1, 1e4))
    assert short.seconds == alone.seconds
    assert long.seconds == pytest.approx(1e4 + alone.parts["exchange outside layers"])
    one_by_one = passes(SPEC, replace(slow, overlaps=False), 1e4, 3, 8, 8, backward=True)
    assert one_by_one.seconds > long.seconds


def test_flops_are_those_that_runs_count() -> None:
    work = Work(700, 30_000, 300, 12_000, 300)
    assert forward_s(SPEC, H100, work) * H100.peak * H100.efficiency == pytest.approx(model_flops(SPEC, work))
    head = model_flops(SPEC, Work(0, 0, 0, 0, 300))
    of_model = model_flops(SPEC, work, backward="all")
    assert update_flops(SPEC, work, checkpoints_activations=False) == of_model + head
    assert update_flops(SPEC, work) == of_model + model_flops(SPEC, work)
    token, pair, scored = flops_of_one(SPEC)
    assert 700 * token + 30_000 * pair + 300 * scored == model_flops(SPEC, Work(700, 30_000, 700, 30_000, 300))


def test_work_and_packs_are_those_of_real_rows() -> None:
    num, max_tokens = 12, 2048
    rollouts = synthetic_rollouts(Lengths(4, (64, 64), (160, 160), group_size=4), num, 2.4, TINY.vocab_size)
    rows = TraceRL(TraceRL.Options(), TINY).rows(rollouts, num)
    setting = Setting(group_size=4, prompt=64, response=160, sigma=0, longest=160, max_tokens=max_tokens)
    packs = share_packs(rows, max_tokens, 2)
    works = [collate(pack).work for of_rank in packs for pack in of_rank]
    want = response_work(setting, setting.lengths(num))
    for field in ("num_tokens", "num_pairs", "num_read", "num_read_pairs"):
        assert getattr(want, field) == pytest.approx(sum(getattr(work, field) for work in works), rel=0.05), field
    num_packs, largest = pack_sizes(np.full(num, want.num_tokens / num), max_tokens, 2)
    assert num_packs == len(packs[0])
    assert largest == pytest.approx(max(work.num_tokens for work in works), rel=0.15)


def test_memory_is_that_of_tensors() -> None:
    model = new_model("sdar/tiny", 0)
    optimizer = make_optimizer(model, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weights = sum(p.nbytes for p in model.parameters())
    kept = sum(t.nbytes for t in optimizer_tensors({"": (model, optimizer)}).values() if t.dim())
    memory = memory_parts(model.spec, H100, Setting(has_value=False), 1)
    assert memory["weights, gradients, AdamW"] == 2 * weights + kept
    assert 4 * sum(parameters(model.spec)) == weights
    assert memory_parts(model.spec, H100, Setting(has_value=True), 4)["weights, gradients, AdamW"] == (2 * weights + kept) / 2
    assert [sum(parameters(preset_spec(f"sdar/{size}"))) // 10**8 for size in ("4b", "8b")] == [40, 81]


@pytest.mark.parametrize("more", [1, 3])
def test_activations_are_those_that_a_layer_keeps(more: int) -> None:
    """Casts of weights and the mask aside, which have not one dimension of 56 tokens."""
    kept = []
    for num_layers in (1, 1 + more):
        model = make_model(num_hidden_layers=num_layers, head_dim=16)
        own, seen = {p.data_ptr() for p in model.parameters()}, {}

        def pack(tensor: torch.Tensor, own=own, seen=seen) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own and tensor.shape.count(56) == 1:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive: addresses must not come again
            return tensor

        layout = TokenLayout.sequences(56, 4, torch.tensor([56]))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            model(torch.zeros(1, 56, dtype=torch.long), layout)
        kept.append(sum(size for size, _ in seen.values()))
    setting = Setting(max_tokens=56, checkpoints_activations=False)
    want = (activation_bytes(model.spec, setting) - HEAD_CHUNK) / model.spec.num_layers
    assert (kept[1] - kept[0]) / more == pytest.approx(want, rel=0.02)


def test_decoding_waits_for_its_longest_response() -> None:
    setting = Setting(per_forward=2.0, max_sequences=8)
    short = decode_parts(SPEC, H100, setting, np.full(8, 100.0), 1e12).sum()
    with_tail = decode_parts(SPEC, H100, setting, np.array([100.0] * 7 + [1000.0]), 1e12).sum()
    assert short < with_tail < 10 * short
    assert decode_parts(SPEC, H100, setting, np.full(16, 100.0), 1e12).sum() == pytest.approx(2 * short)
    # Weights are read once for all: many sequences take little longer than one, until operations or pages bound them.
    one, many = (forward_parts(SPEC, H100, setting, num, 100.0)[0] for num in (1, 16))
    assert one < many < 1.5 * one
    faster = replace(H100, bandwidth=2 * H100.bandwidth)
    assert forward_parts(SPEC, faster, setting, 1, 100.0)[0] == one / 2


def test_a_step_is_shared_out() -> None:
    small = Setting(prompts=64, group_size=8, response=100, longest=300, max_tokens=2048)
    few, many = (predict(SPEC, H100, small, num, 8) for num in (8, 32))
    assert many.seconds < few.seconds
    assert many.phases["update"].parts["compute"] == pytest.approx(few.phases["update"].parts["compute"] / 4, rel=0.15)
    assert many.memory["weights, gradients, AdamW"] == few.memory["weights, gradients, AdamW"]
    grown = predict(SPEC, H100, weak(small, 32), 32, 8)
    assert grown.phases["update"].parts["compute"] == pytest.approx(few.phases["update"].parts["compute"], rel=0.1)
    assert grown.phases["rows"].seconds == pytest.approx(4 * few.phases["rows"].seconds, rel=0.1)
    assert not predict(preset_spec("sdar/8b"), H100, small, 1, 1).fits


def test_script_predicts_without_measuring(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["scale.py", "--predict-only", "--network-gb-per-s", "25"])
    scale.main()
    out = capsys.readouterr().out
    for size in ("4B", "8B"):
        for num in (8, 64, 512):
            assert f"| {size} strong | {num} | 8 |" in out
    assert "between | 25 GB/s" in out
    assert "Measured" not in out
    monkeypatch.setattr(sys, "argv", ["scale.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        scale.main()
    assert "--predict-only" in capsys.readouterr().out
