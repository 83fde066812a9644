"""One denoising step of many rows: hidden states -> drawn tokens and scores -> which positions are unmasked.

Rows may differ in every setting. Nothing here loops over rows or waits for the device; vocabulary-wide work is done at
masked positions only, and in chunks.

Shape suffixes: N masked positions, V vocabulary, D model width, R rows, T positions of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unmask.diffusion.counter_rng import uniform
from unmask.diffusion.drawing import draw, draw_logprobs
from unmask.diffusion.remasking import StepScores, get_strategy
from unmask.diffusion.sequence import DecodingSequence
from unmask.errors import UnmaskError
from unmask.types import SamplingParams

if TYPE_CHECKING:  # diffusion works on any model with this interface and imports none
    from unmask.models.spec import ModelSpec

_DRAW, _ORDER = 0, 1  # what a random number is used for
_MAX_CHUNK = 2**24  # logits at a time


class ParamColumns:
    """The settings of rows under the names of `SamplingParams`: a number where rows agree, else a tensor [R, 1]."""

    def __init__(self, params: Sequence[SamplingParams], device: torch.device):
        self._params, self._device = params, device
        self._columns: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in self._columns:
            values = [getattr(p, name) for p in self._params]
            is_same = all(value == values[0] for value in values)
            dtype = torch.float32 if isinstance(values[0], float) else None
            self._columns[name] = values[0] if is_same else torch.tensor(values, device=self._device, dtype=dtype)[:, None]
        return self._columns[name]

    def at(self, name: str, row_N: Tensor) -> Any:
        """The setting of each position: a number or a tensor [N, 1]."""
        value = getattr(self, name)
        return value[row_N] if isinstance(value, Tensor) else value


@dataclass(slots=True)
class StepRows:
    """What a step knows of its rows without asking the device: windows, masked positions, settings.

    row_N, column_N: row and window column of each masked position; position_N: where it is in its sequence.
    """

    sequences: Sequence[DecodingSequence]
    width: int
    row_N: Tensor
    column_N: Tensor
    position_N: Tensor
    device: torch.device

    @classmethod
    def of(cls, sequences: Sequence[DecodingSequence], device: torch.device) -> StepRows:
        counts = [len(s.masked) for s in sequences]
        row_N = torch.repeat_interleave(torch.arange(len(sequences)), torch.tensor(counts))
        position_N = torch.cat([torch.from_numpy(s.masked) for s in sequences])
        start_R = torch.tensor([s.window[0] for s in sequences])
        table = torch.stack((row_N, position_N - start_R[row_N], position_N)).to(device, non_blocking=True)
        width = max(s.window[1] - s.window[0] for s in sequences)
        return cls(sequences, width, table[0], table[1], table[2], device)


class Unmasked(NamedTuple):
    """What a step unmasked in one row: columns of its window, ascending, with their tokens [n]."""

    columns: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray
    confidences: np.ndarray

    def apply(self, sequence: DecodingSequence) -> bool:
        """Moves the sequence on; whether it ended."""
        return sequence.unmask(self.columns + sequence.window[0], self.ids, self.logprobs, self.confidences)


@dataclass(slots=True)
class StepResult:
    """Tokens drawn in a step, at masked positions of the windows; [R, T], meaningless elsewhere."""

    is_unmasked_RT: Tensor
    token_RT: Tensor
    logprob_RT: Tensor
    confidence_RT: Tensor
    is_finite: Tensor

    def fetch(self, num_rows: int) -> list[Unmasked]:
        """What each row unmasked. The one moment at which the device is waited for. Raises `UnmaskError` for NaNs."""
        row_M, column_M = self.is_unmasked_RT.nonzero(as_tuple=True)
        table = torch.stack(
            (
                row_M.double(), column_M.double(), self.token_RT[row_M, column_M].double(),
                self.logprob_RT[row_M, column_M].double(), self.confidence_RT[row_M, column_M].double(),
            )
        )  # fmt: skip
        values = torch.cat((table.flatten(), self.is_finite.double()[None])).cpu().numpy()
        if not values[-1]:
            raise UnmaskError("the model's outputs are not finite (NaN or infinity): its weights are broken")
        table_5M = values[:-1].reshape(5, -1)
        row, column, token = table_5M[:3].astype(np.int64)
        bounds = np.searchsorted(row, np.arange(num_rows + 1)).tolist()
        parts = [slice(bounds[i], bounds[i + 1]) for i in range(num_rows)]
        return [Unmasked(column[part], token[part], table_5M[3, part], table_5M[4, part]) for part in parts]


def denoise(head: Callable[[Tensor], Tensor], hidden_ND: Tensor, rows: StepRows, spec: ModelSpec) -> StepResult:
    """Draws a token for each masked position and decides which stay.

    head: hidden states [n, D] -> logits [n, V]. hidden_ND: where the prediction of each masked position is read.
    """
    sequences, device = rows.sequences, rows.device
    params = ParamColumns([s.params for s in sequences], device)
    strategies = [(s.params.remasking_strategy, s.params.score) for s in sequences]
    groups = {key: [i for i, k in enumerate(strategies) if k == key] for key in dict.fromkeys(strategies)}
    needs_entropy = any(score == "neg_entropy" or _needs_entropy(name) for name, score in groups)
    needs_margin = any(score == "margin" for _, score in groups)
    seed_step_R2 = torch.tensor([(s.params.seed, s.step) for s in sequences]).to(device, non_blocking=True)
    seed_N, step_N = seed_step_R2[rows.row_N].unbind(1)
    keys = (seed_N, rows.position_N, step_N)
    uniform_N = uniform(*keys, torch.full_like(seed_N, _DRAW))
    settings = {name: params.at(name, rows.row_N) for name in ("temperature", "top_k", "top_p")}
    size = max(1, _MAX_CHUNK // spec.vocab_size)
    banned = _banned(sequences, size, device)

    facts: list[tuple[Tensor, ...]] = []
    for first in range(0, len(hidden_ND), size):
        piece = slice(first, first + size)
        facts.append(
            _draw_chunk(
                head(hidden_ND[piece]), uniform_N[piece],
                {name: value[piece] if isinstance(value, Tensor) else value for name, value in settings.items()},
                spec.mask_token_id, banned.get(first), needs_entropy, needs_margin,
            )
        )  # fmt: skip
    token_N, logprob_N, confidence_N, entropy_N, margin_N = (torch.cat(values) for values in zip(*facts, strict=True))
    is_finite = (torch.isfinite(confidence_N) & torch.isfinite(logprob_N)).all()
    penalty_N = torch.as_tensor(params.at("pad_penalty", rows.row_N), device=device).reshape(-1)
    score_of = {
        "confidence": torch.where(token_N == spec.pad_token_id, confidence_N / penalty_N, confidence_N),
        "margin": margin_N,
        "neg_entropy": -entropy_N,
    }

    def to_window(values_N: Tensor) -> Tensor:
        return values_N.new_zeros(len(sequences), rows.width).index_put_((rows.row_N, rows.column_N), values_N)

    is_masked_RT = to_window(torch.ones_like(token_N, dtype=torch.bool))
    uniform_RT, entropy_RT = to_window(uniform(*keys, torch.full_like(seed_N, _ORDER))), to_window(entropy_N)
    quotas = [s.quota() for s in sequences]
    scores_of = {
        score: StepScores(
            is_masked_RT, to_window(score_of[score]), entropy_RT, uniform_RT, max(quotas),
            is_inclusive=not sequences[0].is_block_causal,
        )
        for _, score in groups
    }  # fmt: skip
    quota_R = torch.tensor(quotas).to(device, non_blocking=True)
    chosen = [
        (get_strategy(name).select(scores_of[score], quota_R, params), rows_of) for (name, score), rows_of in groups.items()
    ]
    is_unmasked_RT = _merge(chosen, len(sequences), device)
    starts = [s.unmasks_block_start for s in sequences]
    if any(starts):
        is_first_T = torch.arange(rows.width, device=device) == 0
        is_unmasked_RT = torch.where(torch.tensor(starts).to(device)[:, None], is_first_T & is_masked_RT, is_unmasked_RT)
    return StepResult(is_unmasked_RT, to_window(token_N), to_window(logprob_N), to_window(confidence_N), is_finite)


def _merge(chosen: list[tuple[Tensor, list[int]]], num_rows: int, device: torch.device) -> Tensor:
    """Of several [R, T] tables, each row from the one that it is listed for."""
    table_RT = chosen[0][0]
    for other_RT, members in chosen[1:]:
        is_member_R = torch.zeros(num_rows, dtype=torch.bool)
        is_member_R[members] = True
        table_RT = torch.where(is_member_R.to(device)[:, None], other_RT, table_RT)
    return table_RT


def _needs_entropy(strategy: str) -> bool:
    return getattr(get_strategy(strategy), "needs_entropy", False)


def _draw_chunk(
    logits_NV: Tensor, uniform_N: Tensor, settings: dict[str, Any], mask_token_id: int,
    banned: tuple[Tensor, Tensor] | None, needs_entropy: bool, needs_margin: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Token, its log-probability when drawn, the model's probability of it, entropy, margin: all [n]."""
    logits_NV = logits_NV.float()
    logprobs_NV = draw_logprobs(logits_NV, **settings, excluded_token_id=mask_token_id, banned=banned)
    token_N = draw(logprobs_NV, uniform_N, settings["temperature"])
    token_N1 = token_N[:, None]
    # Confidence, entropy and margin belong to the model's own distribution, before temperature, cuts and exclusions.
    total_N = logits_NV.logsumexp(-1)
    confidence_N = (logits_NV.gather(1, token_N1)[:, 0] - total_N).exp()
    entropy_N = margin_N = torch.zeros_like(confidence_N)
    if needs_entropy:
        # In float64: an entropy of several nats has noise of 1e-6 in float32, too near to what counts as a tie.
        own_NV = logits_NV.double().log_softmax(-1)
        entropy_N = -(own_NV.exp() * own_NV).nan_to_num_().sum(-1)
    if needs_margin:
        best_N2 = (logits_NV.topk(2, -1).values - total_N[:, None]).exp()
        margin_N = best_N2[:, 0] - best_N2[:, 1]
    return token_N, logprobs_NV.gather(1, token_N1)[:, 0], confidence_N, entropy_N, margin_N


def _banned(sequences: Sequence[DecodingSequence], size: int, device: torch.device) -> dict[int, tuple[Tensor, Tensor]]:
    """For each chunk of `size` positions, (index in it, token id) of stop tokens that may not be drawn yet (`min_tokens`)."""
    if not any(s.params.min_tokens and s.stop_ids for s in sequences):
        return {}
    position, token, first = [], [], 0
    for s in sequences:
        early = first + np.flatnonzero(s.masked < len(s.prompt_ids) + s.params.min_tokens)
        stops = np.array(sorted(s.stop_ids), dtype=np.int64)
        position.append(np.repeat(early, len(stops)))
        token.append(np.tile(stops, len(early)))
        first += len(s.masked)
    pairs = np.stack((np.concatenate(position), np.concatenate(token)))
    table = torch.from_numpy(pairs).to(device, non_blocking=True)
    found = {}
    for start in range(0, first, size):
        a, b = np.searchsorted(pairs[0], (start, start + size)).tolist()
        if a < b:
            found[start] = (table[0, a:b] - start, table[1, a:b])
    return found
