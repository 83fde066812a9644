"""Rotary position embeddings (Su et al. 2021, rotate-half convention), unscaled or scaled as a config says.

Shape suffixes: B rows, L tokens, H heads, K head_dim.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from unmask.models.spec import RotarySpec


@lru_cache(maxsize=64)
def rotary_frequencies(rotary: RotarySpec, head_dim: int, device: torch.device) -> tuple[Tensor, float]:
    """Angle per position, float32 [K/2], and the factor that cos and sin are multiplied with."""
    with torch.inference_mode(False):  # cached: must be usable in training, too
        if rotary.scaling:
            # Only here, since it takes seconds to import. Keys and formulas (linear, YaRN, Llama 3) are the library's.
            from transformers import PreTrainedConfig
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            # The published factor of YaRN counts, as in the paper and in today's tools, not the ratio of the two lengths.
            parameters = {**dict(rotary.scaling), "rope_theta": rotary.theta}
            original = parameters.get("original_max_position_embeddings", 1)
            config = PreTrainedConfig(  # type: ignore[call-arg]  # it takes any keys
                rope_parameters=parameters, head_dim=head_dim, hidden_size=head_dim, num_attention_heads=1,
                max_position_embeddings=int(original * parameters["factor"]),
            )  # fmt: skip
            frequency_K, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
            return frequency_K.float().to(device), float(factor)
        exponent_K = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
        return 1.0 / rotary.theta**exponent_K, 1.0


def rotary_table(position_BL: Tensor, head_dim: int, rotary: RotarySpec) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [B, 1, L, K/2]."""
    frequency_K, factor = rotary_frequencies(rotary, head_dim, position_BL.device)
    angle = position_BL[:, None, :, None].float() * frequency_K
    if factor == 1.0:
        return angle.cos(), angle.sin()
    return angle.cos() * factor, angle.sin() * factor


def rotate(x_BHLK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair (i, i + K/2) of a head by its angle; float32 inside, x's dtype outside."""
    a, b = x_BHLK.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x_BHLK.dtype)
