"""From logits to drawn tokens: temperature, top-k, top-p, and the log-probabilities that sampler and trainer share.

Shape suffixes: N positions, V vocabulary. Settings are one number for all positions or a tensor [N, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_logprobs(
    logits_NV: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    excluded_token_id: int | None = None,
    banned: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Float32 log-probabilities [N, V] of the distribution tokens are drawn from.

    Order: the excluded token (the mask token) and the `banned` (index into N, token id) pairs are removed, logits are
    divided by the temperature, cut to the `top_k` largest, then to the smallest set whose probability reaches `top_p`;
    what is left is renormalised. Ties go to the smallest id. Temperature 0 means argmax, whose distribution is a point:
    the log-probabilities are then those at temperature 1 without cuts, so that traces decoded greedily can be scored.

    The sampler and the trainer both call this function: exact replay depends on it.
    """
    logits_NV = logits_NV.float()
    if excluded_token_id is not None:
        is_excluded_V = torch.arange(logits_NV.shape[-1], device=logits_NV.device) == excluded_token_id
        logits_NV = logits_NV.masked_fill(is_excluded_V, -torch.inf)
    if banned is not None:
        logits_NV = logits_NV.index_put(banned, logits_NV.new_tensor(-torch.inf))
    if isinstance(temperature, Tensor):
        logits_NV = logits_NV / torch.where(temperature == 0, 1.0, temperature)
    elif temperature not in (0.0, 1.0):
        logits_NV = logits_NV / temperature
    has_cuts = isinstance(top_k, Tensor) or isinstance(top_p, Tensor) or top_k > 0 or top_p < 1.0
    if has_cuts and (isinstance(temperature, Tensor) or temperature > 0):
        logits_NV = _filter(logits_NV, temperature, top_k, top_p)
    return torch.log_softmax(logits_NV, -1)


def _filter(logits_NV: Tensor, temperature: float | Tensor, top_k: int | Tensor, top_p: float | Tensor) -> Tensor:
    temperature, top_k, top_p = (torch.as_tensor(value, device=logits_NV.device) for value in (temperature, top_k, top_p))
    sorted_NV, order_NV = logits_NV.detach().sort(dim=-1, descending=True, stable=True)
    is_dropped_NV = (top_k > 0) & (torch.arange(logits_NV.shape[-1], device=logits_NV.device) >= top_k).expand_as(sorted_NV)
    probs_NV = torch.softmax(sorted_NV.masked_fill(is_dropped_NV, -torch.inf), -1)
    is_dropped_NV = is_dropped_NV | ((top_p < 1.0) & (probs_NV.cumsum(-1) - probs_NV >= top_p))
    is_dropped_NV[:, 0] = False  # a top_p that float32 takes for 0 leaves one, too
    is_dropped_NV &= temperature > 0
    return logits_NV.masked_fill(torch.zeros_like(is_dropped_NV).scatter(1, order_NV, is_dropped_NV), -torch.inf)


def draw(logprobs_NV: Tensor, uniform_N: Tensor, temperature: float | Tensor) -> Tensor:
    """Token ids [N]: the argmax at temperature 0, else the inverse of the cumulative distribution at `uniform_N`."""
    if not isinstance(temperature, Tensor):
        return logprobs_NV.argmax(-1) if temperature == 0 else _invert(logprobs_NV, uniform_N)
    return torch.where(temperature[:, 0] == 0, logprobs_NV.argmax(-1), _invert(logprobs_NV, uniform_N))


def _invert(logprobs_NV: Tensor, uniform_N: Tensor) -> Tensor:
    cumulative_NV = logprobs_NV.double().exp_().cumsum(-1)
    total_N1 = cumulative_NV[:, -1:]
    # Strictly below the total, so that a token of probability 0 at the end of the vocabulary is never drawn.
    target_N1 = torch.minimum(uniform_N[:, None] * total_N1, torch.nextafter(total_N1, torch.zeros_like(total_N1)))
    return torch.searchsorted(cumulative_NV, target_N1, right=True)[:, 0].clamp(max=logprobs_NV.shape[1] - 1)  # NaNs
