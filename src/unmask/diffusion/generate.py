"""The readable sampler for block models: batched, with or without the block cache.

One iteration of the loop is one denoising step of every unfinished row. With the cache, the forward carries the row's
newest clean tokens (at first the whole blocks of the prompt, later the block just finished) in front of its current
noisy block: prefill and commits cost no forward of their own, and a block that took K steps costs K forwards.

Shape suffixes: B rows, S absolute positions, T positions of a block, W newly committed positions, N masked positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.attention import TokenLayout
from unmask.diffusion.counter_rng import uniform
from unmask.diffusion.drawing import draw, draw_logprobs
from unmask.diffusion.remasking import StepScores, get_strategy
from unmask.errors import UnmaskError
from unmask.types import SamplingParams, Trace

if TYPE_CHECKING:  # diffusion works on any model with this interface and imports none
    from unmask.models.decoder import Decoder

_DRAW, _ORDER = 0, 1  # what a random number is used for


def step_quota(step_B: Tensor, block_size: int, num_steps: int) -> Tensor:
    """How many tokens step 0, 1, .. of a block unmasks at least: b // D, plus 1 in the first b mod D steps."""
    return block_size // num_steps + (step_B < block_size % num_steps).long()


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] | None = None,
    *,
    max_batch_size: int = 256,
    policy_version: int = 0,
) -> list[Trace]:
    """Decodes each prompt (a list of token ids, possibly empty) and returns its `Trace`, in order.

    params: one for all (then prompt i draws from seed + i), or one per prompt. A sequence's result depends only on its
    prompt, its parameters and the weights, not on the other prompts. Raises `UnmaskError` for bad ids or parameters.
    """
    if params is None or isinstance(params, SamplingParams):
        base = params or SamplingParams()
        params = [base.model_copy(update={"seed": (base.seed + i) % 2**63}) for i in range(len(prompts))]
    if len(params) != len(prompts):
        raise UnmaskError(f"{len(params)} sampling parameters for {len(prompts)} prompts: give one, or one per prompt")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, Sequence):
            raise UnmaskError(f"prompt {i} is {prompt!r}; a prompt is a list of token ids")
        if bad := [t for t in prompt if not (isinstance(t, Integral) and 0 <= t < model.spec.vocab_size)]:
            raise UnmaskError(f"prompt {i}: token id {bad[0]!r} is outside the vocabulary of {model.spec.vocab_size}")
    if model.spec.attention != "block_causal":
        raise UnmaskError(f"generate decodes block models; {model.spec.family} has {model.spec.attention} attention")

    groups: dict[SamplingParams, list[int]] = {}  # rows of one batch share all settings but the seed
    for i, p in enumerate(params):
        groups.setdefault(p.model_copy(update={"seed": 0}), []).append(i)
    traces: dict[int, Trace] = {}
    for shared, members in groups.items():
        members.sort(key=lambda i: len(prompts[i]))
        for start in range(0, len(members), max_batch_size):
            batch = members[start : start + max_batch_size]
            decoded = _BlockDecoding(model, [list(prompts[i]) for i in batch], shared, [params[i].seed for i in batch])
            for i, trace in zip(batch, decoded.run(policy_version), strict=True):
                trace.settings = params[i].model_dump(mode="json")
                traces[i] = trace
    return [traces[i] for i in range(len(prompts))]


class _BlockDecoding:
    """One batch being decoded. All tensors have a row per unfinished sequence; `index_B` says which."""

    def __init__(self, model: Decoder, prompts: list[list[int]], params: SamplingParams, seeds: list[int]):
        spec, device = model.spec, model.device
        self.model, self.params, self.prompts, self.seeds = model, params, prompts, seeds
        self.block_size = params.block_size or spec.block_size
        self.num_steps = min(params.denoising_steps_per_block or self.block_size, self.block_size)
        stop_ids = params.stop_token_ids if params.stop_token_ids is not None else spec.eos_token_ids
        self.stop_ids = torch.tensor(stop_ids, dtype=torch.long, device=device)
        self.strategy = get_strategy(params.remasking_strategy)

        rows, b = len(prompts), self.block_size
        self.index_B = torch.arange(rows, device=device)
        self.seed_B1 = torch.tensor(seeds, device=device)[:, None]
        self.prompt_length_B = torch.tensor([len(p) for p in prompts], device=device)
        self.end_B = (self.prompt_length_B + params.max_new_tokens + b - 1) // b * b  # blocks are decoded whole
        num_positions = int(self.end_B.max())
        self.ids_BS = torch.full((rows, num_positions), spec.mask_token_id, device=device)
        for row, prompt in enumerate(prompts):
            self.ids_BS[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.long, device=device)
        self.step_map_BS = torch.full_like(self.ids_BS, -1)
        self.logprobs_BS = torch.zeros(rows, num_positions, device=device)
        self.confidences_BS = torch.zeros_like(self.logprobs_BS)

        self.block_start_B = self.prompt_length_B // b * b
        self.block_step_B = torch.zeros_like(self.index_B)  # denoising steps the current block has had
        self.cache = None
        if params.cache == "auto":
            self.cache = model.new_cache(rows, num_positions, b)
            self.num_uncommitted_B = self.block_start_B.clone()  # clean tokens before the block, not yet in the cache

    def run(self, policy_version: int) -> list[Trace]:
        traces: list[Trace | None] = [None] * len(self.prompts)
        step = 0
        while len(self.index_B):
            self._denoise(step)
            step += 1
            for row in self._advance().nonzero()[:, 0].tolist():
                traces[int(self.index_B[row])] = self._trace(row, step, policy_version)
            self._drop_finished(traces)
        return traces  # type: ignore[return-value]  # the loop ends when every entry is filled

    def _block_positions(self) -> Tensor:
        return self.block_start_B[:, None] + torch.arange(self.block_size, device=self.index_B.device)

    def _denoise(self, step: int) -> None:
        """One forward: draws a token for every masked position of the current blocks, unmasks those that stay."""
        position_BT = self._block_positions()
        is_masked_BT = (self.step_map_BS.gather(1, position_BT) < 0) & (position_BT >= self.prompt_length_B[:, None])
        row_N, column_N = is_masked_BT.nonzero(as_tuple=True)
        hidden_BTD = self._forward_cached(position_BT) if self.cache else self._forward_plain(position_BT)
        logits_NV = self.model.head(hidden_BTD[row_N, column_N])

        p = self.params
        seed_N, position_N = self.seed_B1[row_N, 0], position_BT[row_N, column_N]
        keys = (seed_N, position_N, torch.full_like(seed_N, step))
        logprobs_NV = draw_logprobs(
            logits_NV,
            temperature=p.temperature,
            top_k=p.top_k,
            top_p=p.top_p,
            excluded_token_id=self.model.spec.mask_token_id,
        )
        token_N = draw(logprobs_NV, uniform(*keys, torch.full_like(seed_N, _DRAW)), p.temperature)
        model_logprobs_NV = torch.log_softmax(logits_NV, -1)

        def to_block(values_N: Tensor) -> Tensor:
            return values_N.new_zeros(is_masked_BT.shape).index_put_((row_N, column_N), values_N)

        confidence_BT = to_block(model_logprobs_NV.gather(1, token_N[:, None])[:, 0].exp())
        scores = StepScores(
            is_masked_BT,
            confidence_BT,
            to_block(-(model_logprobs_NV.exp() * model_logprobs_NV).nan_to_num().sum(-1)),
            to_block(uniform(*keys, torch.full_like(seed_N, _ORDER))),
        )
        quota_B = step_quota(self.block_step_B, self.block_size, self.num_steps).clamp(min=1)
        stays_BT = self.strategy.select(scores, quota_B, p)

        row, column = stays_BT.nonzero(as_tuple=True)
        position = position_BT[row, column]
        self.ids_BS[row, position] = to_block(token_N)[row, column]
        self.logprobs_BS[row, position] = to_block(logprobs_NV.gather(1, token_N[:, None])[:, 0])[row, column]
        self.confidences_BS[row, position] = confidence_BT[row, column]
        self.step_map_BS[row, position] = step
        self.block_step_B += 1

    def _forward_plain(self, position_BT: Tensor) -> Tensor:
        """Hidden states of the current blocks, everything recomputed."""
        length_B = self.block_start_B + self.block_size
        longest = int(length_B.max())
        layout = TokenLayout.sequences(longest, self.block_size, length_B)
        hidden_BSD = self.model(self.ids_BS[:, :longest], layout)
        return hidden_BSD.gather(1, position_BT[:, :, None].expand(-1, -1, hidden_BSD.shape[-1]))

    def _forward_cached(self, position_BT: Tensor) -> Tensor:
        """The same against the cache; commits what is clean and not yet in it."""
        assert self.cache is not None
        num_new = int(self.num_uncommitted_B.max())
        offset_W = torch.arange(num_new, device=self.index_B.device)
        is_new_BW = offset_W < self.num_uncommitted_B[:, None]
        position_BW = torch.where(is_new_BW, self.cache.length_B[:, None] + offset_W, 0)
        clean = TokenLayout.from_positions(position_BW, self.block_size, is_new_BW)
        noisy = TokenLayout.from_positions(position_BT, self.block_size, torch.ones_like(position_BT) > 0, copy=1)
        ids_BL = self.ids_BS.gather(1, torch.cat((position_BW, position_BT), 1))
        hidden_BLD = self.model(ids_BL, clean.cat(noisy), cache=self.cache)
        if num_new:
            self.cache.commit(self.num_uncommitted_B, int(self.block_start_B.max()))
            self.num_uncommitted_B = torch.zeros_like(self.num_uncommitted_B)
        return hidden_BLD[:, num_new:]

    def _advance(self) -> Tensor:
        """Moves rows whose block is complete to their next block; returns bool [B]: finished sequences."""
        position_BT = self._block_positions()
        is_response_BT = position_BT >= self.prompt_length_B[:, None]
        is_complete_B = ~((self.step_map_BS.gather(1, position_BT) < 0) & is_response_BT).any(1)
        is_stop_BT = torch.isin(self.ids_BS.gather(1, position_BT), self.stop_ids) & is_response_BT
        is_last_B = self.block_start_B + self.block_size >= self.end_B
        is_finished_B = is_complete_B & (is_stop_BT.any(1) | is_last_B)
        moves_on_B = (is_complete_B & ~is_finished_B).long()
        self.block_start_B = self.block_start_B + moves_on_B * self.block_size
        self.block_step_B = self.block_step_B * (1 - moves_on_B)
        if self.cache:
            self.num_uncommitted_B = moves_on_B * self.block_size
        return is_finished_B

    def _trace(self, row: int, num_forwards: int, policy_version: int) -> Trace:
        index = int(self.index_B[row])
        prompt = self.prompts[index]
        canvas = slice(len(prompt), int(self.block_start_B[row]) + self.block_size)
        canvas_ids = self.ids_BS[row, canvas]
        counted = canvas_ids[: self.params.max_new_tokens]
        stops = torch.isin(counted, self.stop_ids).nonzero()
        return Trace(
            prompt_ids=prompt,
            canvas_ids=canvas_ids.tolist(),
            step_map=self.step_map_BS[row, canvas].tolist(),
            logprobs=self.logprobs_BS[row, canvas].tolist(),
            confidences=self.confidences_BS[row, canvas].tolist(),
            num_response_tokens=int(stops[0]) + 1 if len(stops) else len(counted),
            block_size=self.block_size,
            num_forwards=num_forwards,
            finish_reason="stop" if len(stops) else "length",
            seed=self.seeds[index],
            policy_version=policy_version,
        )

    def _drop_finished(self, traces: list[Trace | None]) -> None:
        keep = [row for row, index in enumerate(self.index_B.tolist()) if traces[index] is None]
        if len(keep) == len(self.index_B):
            return
        rows = torch.tensor(keep, dtype=torch.long, device=self.index_B.device)
        for name in (
            "index_B", "seed_B1", "prompt_length_B", "end_B", "ids_BS", "step_map_BS", "logprobs_BS", "confidences_BS",
            "block_start_B", "block_step_B",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[rows])
        if self.cache:
            self.cache.select(rows)
            self.num_uncommitted_B = self.num_uncommitted_B[rows]
