"""Mixture of experts: a softmax router, the best experts of each token renormalised, and counts of who was chosen.

As in Qwen3-MoE and SDAR-30B-A3B (the published engine always renormalises, whatever `norm_topk_prob` says).

Shape suffixes: N tokens, D model width, F experts' intermediate size, E experts, A active experts per token, M = N * A.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.spec import ModelSpec


class Experts(nn.Module):
    """The weights of all experts of a layer, stacked: [E, out, in]."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        assert spec.experts is not None
        num, size = spec.experts.num_experts, spec.experts.intermediate_size
        self.gate_proj = nn.Parameter(torch.empty(num, size, spec.hidden_size))
        self.up_proj = nn.Parameter(torch.empty(num, size, spec.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num, spec.hidden_size, size))

    def forward(self, x_MD: Tensor, num_tokens_E: Tensor) -> Tensor:
        """SwiGLU of each token by its expert; tokens come sorted by expert, num_tokens_E[e] of them for expert e."""
        hidden_MF = F.silu(grouped_linear(x_MD, self.gate_proj, num_tokens_E)) * grouped_linear(
            x_MD, self.up_proj, num_tokens_E
        )
        return grouped_linear(hidden_MF, self.down_proj, num_tokens_E)


def grouped_linear(x_MI: Tensor, weight_EOI: Tensor, num_tokens_E: Tensor) -> Tensor:
    """Rows of x, sorted by expert, times their expert's matrix: [M, out]."""
    if torch.is_autocast_enabled(x_MI.device.type):  # which the grouped kernel does not know
        dtype = torch.get_autocast_dtype(x_MI.device.type)
        x_MI, weight_EOI = x_MI.to(dtype), weight_EOI.to(dtype)
    if x_MI.is_cuda and all(size * x_MI.element_size() % 16 == 0 for size in weight_EOI.shape[1:]):
        return grouped_kernel(x_MI, weight_EOI, num_tokens_E)
    parts = x_MI.split(num_tokens_E.tolist())
    return torch.cat([part @ weight_OI.T for part, weight_OI in zip(parts, weight_EOI.unbind(), strict=True)])


def grouped_kernel(x_MI: Tensor, weight_EOI: Tensor, num_tokens_E: Tensor) -> Tensor:
    """The same in one kernel, without asking the device for the counts. It needs rows of whole 16 bytes."""
    return F.grouped_mm(x_MI, weight_EOI.transpose(1, 2), offs=num_tokens_E.cumsum(0).to(torch.int32))


class MixtureOfExperts(nn.Module):
    """Takes the place of a layer's MLP. `load_E` counts the real tokens each expert was given since the last reset."""

    load_E: Tensor

    def __init__(self, spec: ModelSpec):
        super().__init__()
        assert spec.experts is not None
        self.num_experts, self.num_active = spec.experts.num_experts, spec.experts.num_active
        self.router = nn.Linear(spec.hidden_size, self.num_experts, bias=False)
        self.experts = Experts(spec)
        self.load_E = torch.zeros(self.num_experts, dtype=torch.long, device="cpu")  # never on "meta"

    def forward(self, x_BLD: Tensor, is_real_BL: Tensor) -> Tensor:
        x_ND = x_BLD.flatten(0, -2)
        share_NE = torch.softmax(self.router(x_ND).float(), -1)
        share_NA, expert_NA = share_NE.topk(self.num_active)
        share_NA = share_NA / share_NA.sum(-1, keepdim=True)

        expert_M, order_M = expert_NA.flatten().sort(stable=True)
        token_M = order_M // self.num_active
        num_tokens_E = self._count(expert_M, torch.ones_like(expert_M))
        out_MD = self.experts(x_ND[token_M], num_tokens_E)
        out_NAD = out_MD[order_M.argsort()].unflatten(0, (-1, self.num_active))  # back in order: sums without atomics
        out_ND = (out_NAD * share_NA[..., None].to(out_NAD.dtype)).sum(1)

        load_E = self._count(expert_M, is_real_BL.flatten()[token_M].long())
        self.load_E = self.load_E.to(load_E.device) + load_E
        return out_ND.view_as(x_BLD).to(x_BLD.dtype)

    def _count(self, expert_M: Tensor, amount_M: Tensor) -> Tensor:
        return torch.zeros(self.num_experts, dtype=torch.long, device=expert_M.device).index_add_(0, expert_M, amount_M)


def expert_balance(load: Tensor) -> dict[str, float]:
    """The busiest and the idlest expert of any layer, as multiples of an even share, of loads [layers, E]."""
    share = load / load.sum(1, keepdim=True).clamp(min=1) * load.shape[1]
    return {"expert_load_max": float(share.max()), "expert_load_min": float(share.min())}


def expert_load(model: nn.Module) -> Tensor | None:
    """Tokens given to each expert since the last reset, int64 [layers with experts, E] on the CPU; None without experts.

    Padding is not counted; a token counts once for each of its active experts.
    """
    layers = _layers(model)
    return torch.stack([layer.load_E for layer in layers]).cpu() if layers else None


def reset_expert_load(model: nn.Module) -> None:
    """Counts from zero again; asks the device for nothing."""
    for layer in _layers(model):
        layer.load_E = torch.zeros_like(layer.load_E)


def _layers(model: nn.Module) -> list[MixtureOfExperts]:
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
