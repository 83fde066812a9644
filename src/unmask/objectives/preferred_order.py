"""Traces of given answers: in which order a model would unmask their tokens, without a rollout.

At every step the model says how probable the TRUE token is at each masked position, and the positions where it is most probable
are unmasked: the comparators are those of the remasking strategies, with that probability in place of a drawn token's. Each
trace can be replayed exactly, as a decoded one.

Block models: all blocks of an answer at once, each given the clean blocks before it, in one row; an answer of any length takes
at most `block_size` forwards. Full attention: windows one after another, a row for each step.

Shape suffixes: S positions of prompt and canvas, C views, T positions of a view, R views of several answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unmask.attention import AttentionBackend
from unmask.diffusion.remasking import StepScores, get_strategy
from unmask.diffusion.sequence import stop_ids_of
from unmask.models import Decoder, ModelSpec
from unmask.objectives.masked_sft import WINDOW
from unmask.objectives.rows import TrainRow, collate, pack_rows, score_targets
from unmask.objectives.views import Grid, grid_tokens, make_rows, view_positions
from unmask.types import SamplingParams, Trace

ACTIVE = 64  # answers that are worked on together; changes speed, not results


@dataclass(frozen=True, slots=True)
class OrderParams:
    """How an order is found.

    tokens_per_step: so many tokens of each block are unmasked in a step, the most probable ones.
    confidence_threshold: instead, all whose probability is larger (full attention: at least as large), if these are at least
        so many; None = none of that.
    block_size: tokens that are chosen among together; None = the model's blocks, with full attention windows of 32.
    stop_token_ids: an answer that ends with one of them is whole; None = the model's end tokens.
    """

    tokens_per_step: int = 1
    confidence_threshold: float | None = None
    block_size: int | None = None
    stop_token_ids: tuple[int, ...] | None = None

    def sampling(self, spec: ModelSpec) -> SamplingParams:
        """The settings of the traces: those of a decode that would choose by the same rule."""
        size = self.block_size or (spec.block_size if spec.attention == "block_causal" else WINDOW)
        choice: dict[str, Any] = {"confidence_threshold": self.confidence_threshold}
        if self.confidence_threshold is None:
            choice = {"remasking_strategy": "low_confidence_static"}
        num_steps = -(-size // self.tokens_per_step)
        return SamplingParams(
            block_size=size, denoising_steps_per_block=num_steps, stop_token_ids=self.stop_token_ids, **choice
        )


class _Answer:
    """The order of one answer, as far as it is known."""

    def __init__(self, spec: ModelSpec, params: SamplingParams, prompt_ids: list[int], response_ids: list[int]):
        assert params.block_size is not None
        self.prompt_ids, self.response_ids = prompt_ids, response_ids
        self.grid = Grid.of(spec, params.block_size)
        num_prompt, size = len(prompt_ids), params.block_size
        # Behind a full-attention answer its last window is filled up; blocks are filled up by the grid.
        num_more = 0 if self.grid.block_size else -len(response_ids) % size
        canvas = [*response_ids, *[spec.mask_token_id] * num_more]
        self.token_ids_S, self.block_S = grid_tokens(prompt_ids, canvas, self.grid, spec.mask_token_id)
        position_S = np.arange(len(self.block_S))
        # Tokens that are chosen among together; a step of a block model is one of every such window.
        self.window_S = self.block_S if self.grid.block_size else (position_S - num_prompt) // size
        self.is_masked_S = position_S >= num_prompt
        self.is_real_S = self.is_masked_S & (position_S < num_prompt + len(response_ids))
        self.step_S = np.full(len(self.block_S), -1)
        self.logprob_S = np.zeros(len(self.block_S))

    def rows(self, mask_token_id: int) -> list[TrainRow]:
        """What the next step forwards; none when all is known."""
        is_left_S = self.is_masked_S & self.is_real_S
        if not is_left_S.any():
            return []
        if self.grid.block_size:
            position_CT = view_positions(self.block_S, np.unique(self.block_S[is_left_S]))
        else:
            position_CT = np.arange(len(self.block_S))[None]
            is_left_S &= self.window_S == self.window_S[is_left_S].min()
        noisy_CT = np.where(self.is_masked_S, mask_token_id, self.token_ids_S)[position_CT]
        is_full = self.grid.block_size is None
        num_prompt = len(self.prompt_ids)
        return make_rows(
            self.token_ids_S, self.block_S, num_prompt, position_CT, noisy_CT, is_left_S[position_CT], is_full=is_full
        )

    def unmask(self, position_N: np.ndarray, logprob_N: np.ndarray) -> None:
        """These tokens are unmasked, in a step of their windows that comes after all others there."""
        window_N = self.window_S[position_N]
        for window in np.unique(window_N):
            here_N = position_N[window_N == window]
            self.step_S[here_N] = self.step_S[self.window_S == window].max() + 1
        self.is_masked_S[position_N], self.logprob_S[position_N] = False, logprob_N

    def trace(self, spec: ModelSpec, params: SamplingParams) -> Trace:
        """Steps counted over the sequence, window by window."""
        begin, step_S = 0, np.full_like(self.step_S, -1)
        for window in np.unique(self.window_S[self.is_real_S]):
            is_here_S = self.is_real_S & (self.window_S == window)
            step_S[is_here_S] = begin + self.step_S[is_here_S]
            begin = int(step_S[is_here_S].max()) + 1
        first, num = len(self.prompt_ids), len(self.response_ids)
        logprobs = self.logprob_S[first:].tolist()
        is_known = step_S[first:] >= 0
        settings = params.model_dump(mode="json") | {"max_new_tokens": max(1, len(self.token_ids_S) - first)}
        has_end = bool(num) and self.response_ids[-1] in stop_ids_of(settings, spec)
        assert params.block_size is not None
        return Trace(
            self.prompt_ids, self.token_ids_S[first:].tolist(), step_S[first:].tolist(), logprobs,
            np.where(is_known, np.exp(logprobs), 0.0).tolist(), num, params.block_size, begin, "stop" if has_end else "length",
            settings=settings,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Scores:
    """A step's true tokens, of all answers: whose they are, where, and how probable."""

    answer_N: np.ndarray
    position_N: np.ndarray
    logprob_N: np.ndarray


@torch.no_grad()
def preferred_orders(
    model: Decoder, answers: Iterable[tuple[list[int], list[int]]], order: OrderParams, *, backend: AttentionBackend,
    max_tokens: int = 16384,
) -> Iterator[tuple[int, Trace]]:  # fmt: skip
    """(index, trace) of every (prompt ids, response ids), as they are finished. What is beside them changes no result.

    max_tokens: of one forward.
    """
    params = order.sampling(model.spec)
    waiting, active = enumerate(answers), dict[int, _Answer]()
    while True:
        while len(active) < ACTIVE and (new := next(waiting, None)) is not None:
            active[new[0]] = _Answer(model.spec, params, *new[1])
        if not active:
            return
        rows_of = {index: answer.rows(model.spec.mask_token_id) for index, answer in active.items()}
        for index in [index for index, rows in rows_of.items() if not rows]:
            yield index, active.pop(index).trace(model.spec, params)
        if not active:
            continue
        scores = _score(model, active, rows_of, backend, max_tokens)
        chosen_N = _choose(model.spec, active, scores, params, order.tokens_per_step)
        for index, answer in active.items():
            is_mine_N = chosen_N & (scores.answer_N == index)
            answer.unmask(scores.position_N[is_mine_N], scores.logprob_N[is_mine_N])


def _score(
    model: Decoder, active: dict[int, _Answer], rows_of: dict[int, list[TrainRow]], backend: AttentionBackend, max_tokens: int
) -> _Scores:
    for index, rows in rows_of.items():
        for row in rows:
            row.values["answer"] = np.full(len(row.target_ids), index)
    found = []
    for pack in pack_rows([row for rows in rows_of.values() for row in rows], max_tokens):
        stats = score_targets(model, collate(pack, model.device), backend)
        answer_N, canvas_N = (np.concatenate([row.values[key] for row in pack]) for key in ("answer", "canvas_index"))
        num_prompt_N = np.array([len(active[index].prompt_ids) for index in answer_N])
        found.append((answer_N, canvas_N + num_prompt_N, stats.logprobs_N.double().cpu().numpy()))
    return _Scores(*map(np.concatenate, zip(*found, strict=True)))


def _choose(
    spec: ModelSpec, active: dict[int, _Answer], scores: _Scores, params: SamplingParams, quota: int
) -> np.ndarray:  # fmt: skip
    """Bool [N]: what the strategy unmasks in each window."""
    window_N = np.array([active[i].window_S[p] for i, p in zip(scores.answer_N, scores.position_N, strict=True)])
    order_N = np.lexsort((scores.position_N, window_N, scores.answer_N))
    key_N2 = np.stack((scores.answer_N, window_N), 1)[order_N]
    _, row_N, size_R = np.unique(key_N2, axis=0, return_inverse=True, return_counts=True)
    row_N = row_N.reshape(-1)
    column_N = np.arange(len(row_N)) - (np.cumsum(size_R) - size_R)[row_N]
    shape = (len(size_R), int(size_R.max()))
    score_RT, is_masked_RT = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.bool)
    score_RT[row_N, column_N] = torch.from_numpy(np.exp(scores.logprob_N[order_N]))
    is_masked_RT[row_N, column_N] = True
    nothing_RT = torch.zeros_like(score_RT)
    step = StepScores(is_masked_RT, score_RT, nothing_RT, nothing_RT, quota, is_inclusive=spec.attention != "block_causal")
    is_chosen_RT = get_strategy(params.remasking_strategy).select(step, torch.full((shape[0],), quota), params)
    chosen_N = np.zeros(len(row_N), dtype=bool)
    chosen_N[order_N] = is_chosen_RT[row_N, column_N].numpy()
    return chosen_N
