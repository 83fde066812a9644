"""One sequence being decoded: its canvas, the window in which tokens are unmasked, when it ends, and its trace. No torch.

The readable sampler and the engine both move a sequence through these states; they differ in how they get from token ids
to drawn tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.errors import UnmaskError
from unmask.types import FinishReason, SamplingParams, Trace

if TYPE_CHECKING:  # diffusion works on any model with this interface and imports none
    from unmask.models.spec import ModelSpec

Decode = Callable[[list[int]], str]

_DREAM_EPS = 1e-3  # Dream's last timestep


def step_quota(step: int, num_steps: int, width: int, num_masked: int, schedule: str) -> int:
    """How many tokens step 0, 1, .. of a block unmasks (or at least unmasks, depending on the strategy).

    "even": width // num_steps, plus 1 in the first width mod num_steps steps, at least 1. "dream": the whole part of the
    masks left times 1 - t[step + 1] / t[step], with num_steps + 1 timesteps evenly from 1 to 0.001, which may be 0; all
    that are left at the last step (Ye et al. 2025, published sampler).
    """
    if schedule == "even":
        return max(1, width // num_steps + (step < width % num_steps))
    if step >= num_steps - 1:
        return num_masked
    time, next_time = (1 - i / num_steps * (1 - _DREAM_EPS) for i in (step, step + 1))
    return int(num_masked * (1 - next_time / time))


def stop_ids_of(settings: Mapping[str, Any], spec: ModelSpec) -> frozenset[int]:
    """The tokens that end a response under these settings (`SamplingParams.model_dump()`), as far as the model knows them."""
    ids = settings.get("stop_token_ids")
    if ids is None:
        ids = () if settings.get("ignore_eos") else spec.eos_token_ids
    return frozenset(token for token in ids if token < spec.vocab_size)


class DecodingSequence:
    """The state of one sequence, as NumPy arrays over prompt and canvas [S].

    Block models: windows are the blocks on absolute positions, the first one headed by the prompt's tail, and are decoded
    whole. Full attention: windows of block_size from the canvas's start; the sequence ends as soon as a stop token is
    unmasked with no mask before it.

    Attributes:
        ids, step_map, logprobs, confidences: as in `Trace`, prompt included.
        window: first position of the current window, and the position after its last.
        masked: positions [N] of the window that are still masked, ascending.
        step, block_step: denoising steps so far, in all and in the window.
    """

    def __init__(self, prompt_ids: Sequence[int], params: SamplingParams, spec: ModelSpec, decode: Decode | None = None):
        self.prompt_ids, self.params, self.decode = list(prompt_ids), params, decode
        self.mask_token_id = spec.mask_token_id
        self.is_block_causal = spec.attention == "block_causal"
        self.block_size = b = params.block_size or spec.block_size
        self.stop_ids = stop_ids_of(params.model_dump(include={"stop_token_ids", "ignore_eos"}), spec)
        num_prompt = len(self.prompt_ids)
        start = num_prompt // b * b if self.is_block_causal else num_prompt
        self.end = num_prompt + params.max_new_tokens
        if self.is_block_causal:
            self.end = (self.end + b - 1) // b * b  # blocks are decoded whole
        self._start = start
        self.num_blocks = (self.end - start + b - 1) // b
        self.restart()

    def restart(self) -> None:
        """Back to the state before the first step."""
        num_prompt = len(self.prompt_ids)
        self.ids = np.full(self.end, self.mask_token_id, dtype=np.int64)
        self.ids[:num_prompt] = self.prompt_ids
        self.step_map = np.full(self.end, -1, dtype=np.int64)
        self.logprobs = np.zeros(self.end, dtype=np.float32)
        self.confidences = np.zeros(self.end, dtype=np.float32)
        self.step = self.block_index = self.num_response_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._enter(self._start)

    def _enter(self, start: int) -> None:
        self.window = (start, min(start + self.block_size, self.end))
        self.block_step, self._lead = 0, start  # _lead: first mask of the window when it was last looked for a stop
        self.masked = np.arange(max(start, len(self.prompt_ids)), self.window[1])

    @property
    def num_steps(self) -> int:
        """Denoising steps the current window is planned to take."""
        p, width = self.params, self.window[1] - self.window[0]
        if p.denoising_steps is not None:
            steps = p.denoising_steps // self.num_blocks + (self.block_index < p.denoising_steps % self.num_blocks)
        else:
            steps = p.denoising_steps_per_block or width
        return max(1, min(steps, width) if p.quota_schedule == "even" else steps)

    @property
    def unmasks_block_start(self) -> bool:
        """Whether this step unmasks the window's first position and nothing else."""
        return self.params.unmask_block_start and self.block_step == 0

    def quota(self) -> int:
        width = self.window[1] - self.window[0]
        return step_quota(self.block_step, self.num_steps, width, len(self.masked), self.params.quota_schedule)

    def unmask(self, positions: np.ndarray, ids: np.ndarray, logprobs: np.ndarray, confidences: np.ndarray) -> bool:
        """Records one denoising step: these masked positions [N] (ascending) got these tokens. True = the sequence ended."""
        before = self.masked
        if len(positions):
            self.ids[positions], self.logprobs[positions], self.confidences[positions] = ids, logprobs, confidences
            self.step_map[positions] = self.step
            self.masked = self.masked[self.step_map[self.masked] < 0]
        self.step += 1
        self.block_step += 1
        try:
            self._move_on()
        except Exception:  # of the caller's `decode`: as if the step had not been
            self.ids[positions], self.step_map[positions], self.masked = self.mask_token_id, -1, before
            self.step, self.block_step = self.step - 1, self.block_step - 1
            raise
        return self.finish_reason is not None

    def _move_on(self) -> None:
        """After a step: to the next window or the end, if this one is done."""
        start, end = self.window
        if len(self.masked):
            lead = int(self.masked[0])
            if not self.is_block_causal and lead > self._lead and self._stops(start, lead):
                self._finish(lead)
            self._lead = lead
        elif self._stops(max(start, len(self.prompt_ids)), end) or end == self.end:
            self._finish(end)
        else:
            self.block_index += 1
            self._enter(end)

    def restart_window(self) -> None:
        """Back to the state before the window's first step."""
        window = slice(max(self.window[0], len(self.prompt_ids)), self.window[1])
        self.ids[window], self.step_map[window] = self.mask_token_id, -1
        self.step -= self.block_step
        self._enter(self.window[0])

    def _stops(self, start: int, end: int) -> bool:
        """Whether the response, whose last known part is start..end - 1, has come to a stop."""
        if any(token in self.stop_ids for token in self.ids[start:end].tolist()):
            return True
        return bool(self.params.stop_strings) and self._string_end(end) is not None

    def _string_end(self, end: int) -> int | None:
        """Number of response tokens with which the first stop string is complete."""
        decode = self.decode
        assert decode is not None  # `make_sequence` has seen to it
        response = self.ids[len(self.prompt_ids) : end].tolist()[: self.params.max_new_tokens]
        least = max(1, self.params.min_tokens)

        def has_stop(num: int) -> bool:
            text = decode(response[:num])
            return any(stop in text for stop in self.params.stop_strings)

        if len(response) < least or not has_stop(len(response)):
            return None
        return least + bisect_left(range(least, len(response)), True, key=has_stop)

    def _finish(self, end: int) -> None:
        counted = self.ids[len(self.prompt_ids) : end].tolist()[: self.params.max_new_tokens]
        ends = [i + 1 for i, token in enumerate(counted) if token in self.stop_ids][:1]
        if self.params.stop_strings and (string_end := self._string_end(end)) is not None:
            ends.append(string_end)
        self.num_response_tokens = min(ends, default=len(counted))
        self.finish_reason = "stop" if ends else "length"

    def num_final(self) -> int:
        """How many leading canvas tokens are unmasked (block models: in finished blocks) and will not change."""
        if self.finish_reason is not None:
            return self.num_response_tokens
        start = self.window[0]
        if not self.is_block_causal and len(self.masked):
            start = int(self.masked[0])
        return min(max(0, start - len(self.prompt_ids)), self.params.max_new_tokens)

    def abort(self) -> None:
        """Ends the sequence where it stands."""
        self.num_response_tokens, self.finish_reason = self.num_final(), "abort"

    def trace(self, policy_version: int = 0) -> Trace:
        """The record of a sequence that has ended."""
        assert self.finish_reason is not None
        canvas = slice(len(self.prompt_ids), self.window[1] if self.is_block_causal else self.end)
        return Trace(
            prompt_ids=self.prompt_ids,
            canvas_ids=self.ids[canvas].tolist(),
            step_map=self.step_map[canvas].tolist(),
            logprobs=self.logprobs[canvas].tolist(),
            confidences=self.confidences[canvas].tolist(),
            num_response_tokens=self.num_response_tokens,
            block_size=self.block_size,
            num_forwards=self.step,
            finish_reason=self.finish_reason,
            seed=self.params.seed,
            settings=self.params.model_dump(mode="json"),
            policy_version=policy_version,
        )


def make_sequence(
    name: str, prompt: Sequence[int], params: SamplingParams, spec: ModelSpec, decode: Decode | None
) -> DecodingSequence:
    """Checks prompt and parameters. Raises `UnmaskError` naming the prompt as it is called."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str | bytes):
        raise UnmaskError(f"{name} is {prompt!r}; a prompt is a list of token ids")
    if not all(type(t) is int for t in prompt):
        if bad := [t for t in prompt if not isinstance(t, Integral)]:
            raise UnmaskError(f"{name}: token id {bad[0]!r} is outside the vocabulary of {spec.vocab_size}")
        prompt = [int(t) for t in prompt]
    if prompt and (min(prompt) < 0 or max(prompt) >= spec.vocab_size):
        bad_id = next(t for t in prompt if not 0 <= t < spec.vocab_size)
        raise UnmaskError(f"{name}: token id {bad_id} is outside the vocabulary of {spec.vocab_size}")
    if spec.attention == "block_causal" and params.cache in ("prefix", "dual"):
        raise UnmaskError(
            f'{name}: cache "{params.cache}" is for full-attention models; {spec.family} is a block model: use "auto"'
        )
    if spec.attention == "block_causal" and params.unmask_block_start:
        raise UnmaskError(f"{name}: unmask_block_start is for full-attention models; {spec.family} is a block model")
    if params.stop_strings and decode is None:
        raise UnmaskError("stop_strings need a way to turn ids into text: give decode, for example tokenizer.decode")
    return DecodingSequence(prompt, params, spec, decode)


def one_per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None, prompts: Sequence[Sequence[int]]
) -> list[SamplingParams]:
    """One set of parameters per prompt; a single one is shared, prompt i then draws from seed + i. Raises `UnmaskError`."""
    if not isinstance(prompts, Sequence) or isinstance(prompts, str):
        raise UnmaskError(f"prompts are {prompts!r}; give a list of lists of token ids")
    num_prompts = len(prompts)
    if params is not None and not isinstance(params, SamplingParams | Sequence):
        raise UnmaskError(f"parameters are {params!r}, not SamplingParams (one, or one per prompt)")
    if params is None or isinstance(params, SamplingParams):
        base = params or SamplingParams()
        return [base.model_copy(update={"seed": (base.seed + i) % 2**63}) for i in range(num_prompts)]
    if len(params) != num_prompts:
        raise UnmaskError(f"{len(params)} sampling parameters for {num_prompts} prompts: give one, or one per prompt")
    for i, p in enumerate(params):
        if not isinstance(p, SamplingParams):
            raise UnmaskError(f"prompt {i}: its parameters are {p!r}, not SamplingParams")
    return list(params)
