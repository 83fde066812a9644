"""The parts of a decoder layer: RMSNorm, attention with rotary embeddings, SwiGLU. Families differ by `ModelSpec` only.

Shape suffixes: B rows, L tokens, D model width, H query heads, G key/value heads, K head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.attention import Attend
from unmask.models.cache import Cache
from unmask.models.experts import MixtureOfExperts
from unmask.models.rotary import rotate
from unmask.models.spec import ModelSpec


class Forward(NamedTuple):
    """What all layers of one forward share.

    The last layer of a forward of which only some tokens are read gets another one: its `read_N` are their columns.
    """

    rotary: tuple[Tensor, Tensor]
    attend: Attend
    cache: Cache | None
    is_real_BL: Tensor  # not padding
    read_N: Tensor | None = None

    def read(self, x: Tensor, dim: int = 1) -> Tensor:
        """What of x [B, L, ...] (or with the tokens in another dimension) is read."""
        return x if self.read_N is None else x.index_select(dim, self.read_N)


class RMSNorm(nn.Module):
    """x / rms(x) * weight (+ bias); the mean square in float32. Zhang & Sennrich 2019."""

    def __init__(self, size: int, eps: float, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # vecdot and one fused scale: 4x faster forward and backward on CPU than F.rms_norm (docs/log.md).
        x32 = x.float()
        with torch.autocast(x.device.type, enabled=False):  # which would compute the mean square in bfloat16
            scale = torch.rsqrt(torch.linalg.vecdot(x32, x32).unsqueeze(-1) / x.shape[-1] + self.eps)
        out = x * (scale * self.weight).to(x.dtype)
        return out if self.bias is None else out + self.bias


class Attention(nn.Module):
    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.head_dim = spec.head_dim
        width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, width, bias=spec.has_qkv_bias)
        self.k_proj = nn.Linear(spec.hidden_size, kv_width, bias=spec.has_qkv_bias)
        self.v_proj = nn.Linear(spec.hidden_size, kv_width, bias=spec.has_qkv_bias)
        self.o_proj = nn.Linear(width, spec.hidden_size, bias=spec.has_out_bias)
        self.q_norm = RMSNorm(spec.head_dim, spec.rms_norm_eps) if spec.has_qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.head_dim, spec.rms_norm_eps) if spec.has_qk_norm else nn.Identity()

    def forward(self, x_BLD: Tensor, shared: Forward, layer: int) -> Tensor:
        heads = (-1, self.head_dim)
        q_rotary = (shared.read(table, -2) for table in shared.rotary)
        q_BHLK = rotate(self.q_norm(self.q_proj(shared.read(x_BLD)).unflatten(-1, heads)).transpose(1, 2), *q_rotary)
        k_BGLK = rotate(self.k_norm(self.k_proj(x_BLD).unflatten(-1, heads)).transpose(1, 2), *shared.rotary)
        v_BGLK = self.v_proj(x_BLD).unflatten(-1, heads).transpose(1, 2)
        if shared.cache is not None:
            k_BGLK, v_BGLK = shared.cache.extend(layer, k_BGLK, v_BGLK)
        out_BHLK = shared.attend(q_BHLK, k_BGLK, v_BGLK)
        return self.o_proj(out_BHLK.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). Shazeer 2020."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        bias = spec.has_mlp_bias
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=bias)

    def forward(self, x_BLD: Tensor, is_real_BL: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BLD)) * self.up_proj(x_BLD))


class Layer(nn.Module):
    def __init__(self, spec: ModelSpec, index: int):
        super().__init__()
        has_experts = spec.experts is not None and index in spec.experts.layers
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, spec.has_norm_bias)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, spec.has_norm_bias)
        self.mlp = MixtureOfExperts(spec) if has_experts else SwiGLU(spec)

    def forward(self, x_BLD: Tensor, shared: Forward, layer: int) -> Tensor:
        x_BLD = shared.read(x_BLD) + self.self_attn(self.input_layernorm(x_BLD), shared, layer)
        return x_BLD + self.mlp(self.post_attention_layernorm(x_BLD), shared.read(shared.is_real_BL))
