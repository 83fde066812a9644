"""What an engine has done so far. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Counts since the engine was made.

    num_forwards: forwards of the whole batch. num_denoising_forwards: the same, once for every sequence that had a denoising
    step. num_prefill_forwards: once for every sequence of which they computed only clean tokens. num_tokens: tokens
    forwarded. num_prefill_tokens: of them, clean ones that are no block just finished (prompts, recomputation).
    num_finished, num_response_tokens: finished sequences and their tokens. num_shared_tokens: prompt tokens whose keys and
    values were taken over. peak_pages: most in use at a time.
    """

    num_forwards: int = 0
    num_denoising_forwards: int = 0
    num_prefill_forwards: int = 0
    num_tokens: int = 0
    num_prefill_tokens: int = 0
    num_finished: int = 0
    num_response_tokens: int = 0
    num_shared_tokens: int = 0
    num_preemptions: int = 0
    peak_pages: int = 0
