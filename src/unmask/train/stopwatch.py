"""Seconds of the phases of a step, and what follows from them."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict

import torch


class Stopwatch:
    """Starts when it is made; `lap` gives the time since the last one to a phase."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._begin = self._last = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()

    def lap(self, phase: str) -> None:
        now = self._now()
        self.seconds[phase] += now - self._last
        self._last = now

    def move(self, phase: str, part: str, seconds: float) -> None:
        """Of a phase, so much was for `part`."""
        self.seconds[phase] -= seconds
        self.seconds[part] += seconds

    def timings(self, num_trained_tokens: float, num_forwarded_tokens: float) -> dict[str, float]:
        """Phases, the whole step, tokens per second of the updates, and the peak memory of the process so far (GPU: of the
        device's tensors), in 10^9 bytes."""
        update_s = max(self.seconds["update_s"], 1e-9)
        return {
            **self.seconds,
            "step_s": self._now() - self._begin,
            "trained_tokens_per_s": num_trained_tokens / update_s,
            "forwarded_tokens_per_s": num_forwarded_tokens / update_s,
            "peak_memory_gb": self._peak_bytes() / 1e9,
        }

    def _peak_bytes(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
