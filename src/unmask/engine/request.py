"""A request on its way through the engine. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from unmask.diffusion.sequence import DecodingSequence
from unmask.types import Trace

RequestId = int | str


@dataclass(slots=True, eq=False)
class Request:
    """waiting (no pages) -> running (pages; prefilling, then decoding) -> finished. Preemption leads back to waiting.

    Attributes:
        arrival: order of arrival; the earlier a request came, the higher its priority.
        pages: its pages, by place in the sequence.
        num_committed: tokens at the beginning whose keys and values are in the pages, in whole blocks.
        node: the page pool's node of the last committed block.
        slot: row of the runner's per-request memory while running.
        policy_version: of the weights it is decoded with.
        num_reported: response tokens that the caller has been told; is_restarted: he has yet to learn that they are void.
        reports_steps: he wants to know of every denoising step.
    """

    id: RequestId
    sequence: DecodingSequence
    arrival: int
    pages: list[int] = field(default_factory=list)
    num_committed: int = 0
    node: int = 0
    slot: int = -1
    policy_version: int = 0
    num_reported: int = 0
    is_restarted: bool = False
    reports_steps: bool = False

    @property
    def is_begun(self) -> bool:
        """Some of its tokens are computed, or about to be."""
        return self.sequence.step > 0 or self.slot >= 0

    @property
    def keeps_committed(self) -> bool:
        """Committed blocks stay in the pages (block models)."""
        return self.sequence.is_block_causal and self.sequence.params.cache != "none"

    @property
    def uses_pages(self) -> bool:
        return self.keeps_committed or self.sequence.params.cache in ("prefix", "dual")

    @property
    def num_uncommitted(self) -> int:
        """Clean tokens before the window that a forward has to compute before the window can be denoised."""
        return self.sequence.window[0] - self.num_committed if self.keeps_committed else 0

    @property
    def is_prefilling(self) -> bool:
        """More is to be computed than one finished block."""
        return self.num_uncommitted > self.sequence.block_size

    def denoising_row(self) -> Row:
        """The tokens that the next denoising step forwards, and those it sees."""
        s = self.sequence
        start, end = s.window
        if s.is_block_causal:
            return Row(self, self.num_committed if self.keeps_committed else 0, end, end)
        cache, horizon = s.params.cache, s.params.further_horizon
        if cache not in ("prefix", "dual") or s.block_step == 0:
            return Row(self, 0, s.end, s.end)
        if cache == "dual":
            return Row(self, start, end, s.end)
        end = s.end if horizon is None else min(end + horizon, s.end)
        return Row(self, start, end, end)


@dataclass(slots=True)
class Row:
    """One request's part of a forward: positions query_start .. query_end - 1 are computed and see positions < key_end.

    is_denoising: the request's window is among them and gets a denoising step; else they are only prefilled.
    """

    request: Request
    query_start: int
    query_end: int
    key_end: int
    is_denoising: bool = True

    @property
    def num_tokens(self) -> int:
        return self.query_end - self.query_start

    @property
    def num_prefill_tokens(self) -> int:
        """Clean tokens before the window, unless they are the block that was finished a step ago."""
        s = self.request.sequence
        num_clean = min(self.query_end, s.window[0]) - self.query_start if self.request.keeps_committed else 0
        return num_clean if num_clean > s.block_size or s.step == 0 else 0


@dataclass(slots=True)
class StepUnmasked:
    """What one denoising step unmasked: canvas positions (0 = the first after the prompt; ascending, perhaps none), and as in
    `Trace` their tokens, log-probabilities and confidences.

    step: as in `Trace.step_map`. One that is not larger than the last one says that the window was begun anew (a preemption
    under an approximate cache): what was unmasked at this step and later ones is void.
    """

    step: int
    positions: list[int]
    ids: list[int]
    logprobs: list[float]
    confidences: list[float]


@dataclass(slots=True)
class RequestOutput:
    """News of a request: response tokens that have become final since the last news, and at the end its trace.

    is_restart: the request started over with new weights; what was reported before is void. unmasked: by the denoising step
    of this forward, where the request asked for it.
    """

    id: RequestId
    new_ids: list[int]
    trace: Trace | None = None
    is_restart: bool = False
    unmasked: StepUnmasked | None = None
