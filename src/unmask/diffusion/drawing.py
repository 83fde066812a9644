"""From logits to drawn tokens: temperature, top-k, top-p, and the log-probabilities that sampler and trainer share.

Shape suffixes: N positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_logprobs(
    logits_NV: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    excluded_token_id: int | None = None,
) -> Tensor:
    """Float32 log-probabilities [N, V] of the distribution tokens are drawn from.

    Order: the excluded token (the mask token) is removed, logits are divided by the temperature, cut to the `top_k`
    largest, then to the smallest set whose probability reaches `top_p`; what is left is renormalised. Ties go to the
    smallest id. Temperature 0 means argmax, whose distribution is a point: the log-probabilities are then those at
    temperature 1, so that traces decoded greedily can still be scored.

    The sampler and the trainer both call this function: exact replay depends on it.
    """
    logits_NV = logits_NV.float()
    if excluded_token_id is not None:
        is_excluded_V = torch.arange(logits_NV.shape[-1], device=logits_NV.device) == excluded_token_id
        logits_NV = logits_NV.masked_fill(is_excluded_V, -torch.inf)
    if temperature not in (0.0, 1.0):
        logits_NV = logits_NV / temperature
    if (0 < top_k < logits_NV.shape[-1] or top_p < 1.0) and temperature > 0:
        logits_NV = _filter(logits_NV, top_k, top_p)
    return torch.log_softmax(logits_NV, -1)


def _filter(logits_NV: Tensor, top_k: int, top_p: float) -> Tensor:
    sorted_NV, order_NV = logits_NV.detach().sort(dim=-1, descending=True, stable=True)
    is_dropped_NV = torch.zeros_like(sorted_NV, dtype=torch.bool)
    if top_k > 0:
        is_dropped_NV[:, top_k:] = True
    if top_p < 1.0:
        probs_NV = torch.softmax(sorted_NV.masked_fill(is_dropped_NV, -torch.inf), -1)
        is_dropped_NV |= probs_NV.cumsum(-1) - probs_NV >= top_p
    return logits_NV.masked_fill(torch.zeros_like(is_dropped_NV).scatter(1, order_NV, is_dropped_NV), -torch.inf)


def draw(logprobs_NV: Tensor, uniform_N: Tensor, temperature: float) -> Tensor:
    """Token ids [N]: the argmax at temperature 0, else the inverse of the cumulative distribution at `uniform_N`."""
    if temperature == 0:
        return logprobs_NV.argmax(-1)
    cumulative_NV = logprobs_NV.double().exp().cumsum(-1)
    total_N1 = cumulative_NV[:, -1:]
    # Strictly below the total, so that a token of probability 0 at the end of the vocabulary is never drawn.
    target_N1 = torch.minimum(uniform_N[:, None] * total_N1, torch.nextafter(total_N1, torch.zeros_like(total_N1)))
    return torch.searchsorted(cumulative_NV, target_N1, right=True)[:, 0]
