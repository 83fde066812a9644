"""The count of operations is what the matrix products of a model really are."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unmask.attention import DenseAttention
from unmask.models import ValueModel
from unmask.models.checkpoint import new_model
from unmask.models.flops import Work, model_flops

ROWS, LENGTH = 2, 12


def counted(run) -> int:
    """By PyTorch. The plain kernel of attention: each pair of a row is computed, as two products that are counted; fused ones
    are not counted on CPUs."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def all_pairs(num_scored: int) -> Work:
    """Dense attention computes every pair, seen or not."""
    num_tokens, num_pairs = ROWS * LENGTH, ROWS * LENGTH * LENGTH
    return Work(num_tokens, num_pairs, num_tokens, num_pairs, num_scored)


@pytest.mark.parametrize("preset", ["sdar/tiny", "sdar_moe/tiny", "llada/tiny", "dream/tiny"])
def test_forward_and_backward(preset: str) -> None:
    """Exactly: both count the same products."""
    model = new_model(preset, 0).train()
    ids = torch.randint(3, 40, (ROWS, LENGTH))
    layout = model.layout(ids, "model", None, None)
    work = all_pairs(num_scored=ROWS * 3)

    def forward() -> torch.Tensor:
        return model.head(model(ids, layout)[:, :3]).sum()

    assert counted(forward) == model_flops(model.spec, work)
    assert counted(lambda: forward().backward()) == model_flops(model.spec, work, backward="all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "embed_tokens.weight" and not model.spec.is_tied)
    hook = model.embed_tokens.register_forward_hook(lambda module, given, out: out.requires_grad_())  # as adapters have it
    assert counted(lambda: forward().backward()) == model_flops(model.spec, work, backward="inputs")
    hook.remove()


def test_only_some_tokens_are_read() -> None:
    model = new_model("sdar/tiny", 0).train()
    ids, read_N = torch.randint(3, 40, (1, LENGTH)), torch.tensor([2, 5, 6])
    layout = model.layout(ids, "model", None, None)
    work = Work(LENGTH, LENGTH**2, 3, 3 * LENGTH, 3)

    def run() -> None:
        model.head(model(ids, layout, DenseAttention, read_N=read_N)).sum().backward()

    assert counted(run) == model_flops(model.spec, work, backward="all")


def test_a_value_head_has_one_output() -> None:
    model = ValueModel.from_policy(new_model("sdar/tiny", 0))
    ids = torch.randint(3, 40, (ROWS, LENGTH))
    wanted = model_flops(model.spec, all_pairs(num_scored=ROWS * LENGTH), num_outputs=1)
    with torch.enable_grad():
        assert counted(lambda: model.values(ids)) == wanted


def test_six_operations_for_each_parameter_and_token() -> None:
    model = new_model("sdar/tiny", 0)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and name != "embed_tokens.weight")
    head = model.spec.is_tied * model.embed_tokens.weight.numel()
    assert model_flops(model.spec, Work(10, 0, 10, 0, 10), backward="all") == 6 * (matrices + head) * 10
