"""Log-probabilities of given tokens without a table of logits: head and log-softmax in chunks of the vocabulary.

Memory is positions x chunk instead of positions x vocabulary, forward and backward (the backward pass computes the logits
again). Sums over the vocabulary are accumulated in float32 with a running maximum (Milakov and Gimelshein 2018).

Shape suffixes: N positions, D model width, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.models import Decoder

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}  # logits at a time: 16 and 256 MB of float32
LEAST_CHUNK = 512  # tokens; matrix products narrower than this are slow
_NEVER = -1e30  # a logit of probability 0 that can be multiplied by 0


class TargetStats(NamedTuple):
    """What a loss may know of the targets; float32 [N]. Only `logprobs_N` carries a gradient.

    entropy_N: of the distribution the target is scored under, in nats. is_top_N: 1 where no token is more probable.
    """

    logprobs_N: Tensor
    entropy_N: Tensor
    is_top_N: Tensor


def target_stats(
    model: Decoder, hidden_ND: Tensor, target_ids_N: Tensor, *, temperature: float = 1.0, excluded_token_id: int | None = None
) -> TargetStats:
    """Of softmax(logits / temperature) without the excluded token, as `draw_logprobs` defines it (temperature 0 as 1)."""
    head = model.lm_head
    dtype = hidden_ND.dtype
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
    excluded = -1 if excluded_token_id is None else excluded_token_id
    with torch.autocast(hidden_ND.device.type, enabled=False):  # the function says itself what is computed in which dtype
        stats = _FusedHead.apply(hidden_ND, head.weight, head.bias, target_ids_N, temperature or 1.0, excluded, dtype)
    return TargetStats(*stats)


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, target_ids_N, temperature, excluded, dtype):
        ctx.temperature, ctx.excluded, ctx.dtype = temperature, excluded, dtype
        shape = (len(target_ids_N),)
        largest_N = hidden_ND.new_full(shape, _NEVER, dtype=torch.float32)
        sum_N, weighted_N, target_N = (torch.zeros_like(largest_N) for _ in range(3))
        for first, logits_NC in _chunks(ctx, hidden_ND, weight_VD, bias_V):
            new_N = torch.maximum(largest_N, logits_NC.amax(1))
            scale_N = torch.exp(largest_N - new_N)
            is_here_N, column_N1 = _columns(target_ids_N, first, logits_NC.shape[1])
            target_N = torch.where(is_here_N, logits_NC.gather(1, column_N1)[:, 0], target_N)
            p_NC = torch.exp(logits_NC - new_N[:, None])
            sum_N = sum_N * scale_N + p_NC.sum(1)
            weighted_N = weighted_N * scale_N + torch.linalg.vecdot(p_NC, logits_NC)
            largest_N = new_N
        log_sum_N = largest_N + sum_N.log()
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, target_ids_N, log_sum_N)
        stats = (target_N - log_sum_N, log_sum_N - weighted_N / sum_N, (target_N >= largest_N).float())
        ctx.mark_non_differentiable(*stats[1:])
        return stats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_N, *_):
        """d logprob / d logits = one-hot(target) - softmax."""
        hidden_ND, weight_VD, bias_V, target_ids_N, log_sum_N = ctx.saved_tensors
        hidden = hidden_ND.to(ctx.dtype)
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=torch.float32)
        grad_weight_VD = torch.empty_like(weight_VD) if ctx.needs_input_grad[1] else None
        grad_bias_V = None if bias_V is None else torch.empty_like(bias_V)
        for first, logits_NC in _chunks(ctx, hidden_ND, weight_VD, bias_V):
            chunk = slice(first, first + logits_NC.shape[1])
            is_here_N, column_N1 = _columns(target_ids_N, first, logits_NC.shape[1])
            grad_NC = torch.exp(logits_NC - log_sum_N[:, None]).mul_(-grad_N[:, None])
            grad_NC.scatter_add_(1, column_N1, torch.where(is_here_N, grad_N, 0.0)[:, None])
            grad_NC.div_(ctx.temperature)
            if grad_bias_V is not None:
                grad_bias_V[chunk] = grad_NC.sum(0)
            grad_NC = grad_NC.to(ctx.dtype)
            grad_hidden_ND += grad_NC @ weight_VD[chunk].to(ctx.dtype)
            if grad_weight_VD is not None:
                grad_weight_VD[chunk] = grad_NC.T @ hidden
        return grad_hidden_ND.to(hidden_ND.dtype), grad_weight_VD, grad_bias_V, None, None, None, None


def _chunks(ctx, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """(first token, float32 logits [N, C] over the temperature) of each chunk."""
    hidden = hidden_ND.to(ctx.dtype)
    size = max(LEAST_CHUNK, CHUNK_ELEMENTS[hidden.device.type] // max(1, len(hidden)))
    for first in range(0, len(weight_VD), size):
        chunk = slice(first, first + size)
        bias_C = None if bias_V is None else bias_V[chunk].to(ctx.dtype)
        logits_NC = torch.nn.functional.linear(hidden, weight_VD[chunk].to(ctx.dtype), bias_C).float()
        if ctx.temperature != 1.0:
            logits_NC = logits_NC / ctx.temperature
        if 0 <= ctx.excluded - first < logits_NC.shape[1]:
            logits_NC[:, ctx.excluded - first] = _NEVER
        yield first, logits_NC


def _columns(target_ids_N: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """Whether a target lies in the chunk, and its column there (0 if not)."""
    column_N = target_ids_N - first
    is_here_N = (column_N >= 0) & (column_N < size)
    return is_here_N, torch.where(is_here_N, column_N, 0)[:, None]
