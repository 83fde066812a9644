"""Seconds and work of the phases of a step, and what follows from them."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import torch

from unmask.dist import ALONE, Ranks
from unmask.train.peak_flops import peak_flops


class Stopwatch:
    """Starts when it is made. `begin` ends the phase before and begins one, whose name ends in "_s"; `timings` ends the last.

    A phase may be begun again; its seconds add up. In a profile (`train.profile_steps`) phases are named ranges.

    num_flops, num_tokens: model FLOPs of this rank so far, and tokens it has forwarded for updates. precision: of its matrix
        products, for the peak they are compared with.
    """

    def __init__(
        self, device: torch.device, ranks: Ranks = ALONE, *, precision: str = "float32",
        num_flops: Callable[[], int] = lambda: 0, num_tokens: Callable[[], int] = lambda: 0,
    ):  # fmt: skip
        self.device, self.ranks, self.num_flops, self.num_tokens = device, ranks, num_flops, num_tokens
        self.peak = peak_flops(device, precision)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.waited: defaultdict[str, float] = defaultdict(float)
        self.flops: defaultdict[str, int] = defaultdict(int)
        self._phase = ""
        self._range: torch.profiler.record_function | None = None
        self._begin = self._last = self._now()
        self._last_waited, self._last_flops, self._first_token = ranks.waited_s, num_flops(), num_tokens()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()

    def begin(self, phase: str) -> None:
        self._end()
        self._phase, self._range = phase, torch.profiler.record_function(phase.removesuffix("_s"))
        self._range.__enter__()

    def _end(self) -> None:
        now, waited, flops = self._now(), self.ranks.waited_s, self.num_flops()
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
            self.seconds[self._phase] += now - self._last
            self.waited[self._phase] += waited - self._last_waited
            self.flops[self._phase] += flops - self._last_flops
        self._last, self._last_waited, self._last_flops = now, waited, flops

    def move(self, part: str, seconds: float) -> None:
        """Of the phase that is going on, so much was for `part`."""
        self.seconds[self._phase] -= seconds
        self.seconds[part] += seconds

    def timings(self, num_trained_tokens: float, num_forwarded_tokens: float) -> dict[str, float]:
        """Of this rank: the phases (`X_s`), of them what it waited for other ranks (`X_wait_s`), the whole step (`step_s`),
        tokens per second of the updates (of all ranks), how many of the forwarded ones were its own, and the peak memory of
        the process so far (GPU: of the device's tensors), in 10^9 bytes.

        Of phases that forward anything, and of the step, `X_tflop_per_s`: 10^12 model FLOPs per second; and `X_mfu`, their
        share of what the device can do at most, where that is known.
        """
        self._end()
        self.seconds["step_s"] = step_s = self._last - self._begin
        self.flops["step_s"] = sum(self.flops.values())
        self.waited["step_s"] = sum(self.waited.values())
        update_s = max(self.seconds["update_s"], 1e-9)
        timings: dict[str, float] = {
            **{phase: seconds for phase, seconds in self.seconds.items() if phase != "step_s"},
            **{f"{phase[:-2]}_wait_s": waited for phase, waited in self.waited.items() if waited},
            "step_s": step_s,
            "trained_tokens_per_s": num_trained_tokens / update_s,
            "forwarded_tokens_per_s": num_forwarded_tokens / update_s,
            "num_own_tokens": self.num_tokens() - self._first_token,
            "peak_memory_gb": self._peak_bytes() / 1e9,
        }
        for phase, flops in self.flops.items():
            if flops:
                per_s = flops / max(self.seconds[phase], 1e-9)
                timings[f"{phase[:-2]}_tflop_per_s"] = per_s / 1e12
                if self.peak is not None:
                    timings[f"{phase[:-2]}_mfu"] = per_s / self.peak
        return timings

    def _peak_bytes(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
