"""How much is let in: a bounded queue for all, and a limit for each API key. Whoever finds no place is told at once."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from unmask.serve.errors import ApiError

_LONGEST_WAIT_S = 60


class Admission:
    """Counts answers that are being decoded or wait for it. max_answers: in all; max_per_key: of one key, None = no limit."""

    def __init__(self, max_answers: int, max_per_key: int | None):
        self.max_answers, self.max_per_key = max_answers, max_per_key
        self.num_answers = 0
        self._of_key: Counter[str] = Counter()
        self._durations: deque[float] = deque(maxlen=64)

    @contextmanager
    def place(self, key: str, num_answers: int) -> Iterator[None]:
        """Room for so many answers. Raises `ApiError` 429, or 400 for what never fits."""
        limit = self.max_answers if self.max_per_key is None else min(self.max_answers, self.max_per_key)
        if num_answers > limit:
            raise ApiError(400, f"{num_answers} answers at once are more than this server gives ({limit})", param="n")
        if self.max_per_key is not None and self._of_key[key] + num_answers > self.max_per_key:
            raise self._refusal(f"this key has {self._of_key[key]} answers under way, of {self.max_per_key}")
        if self.num_answers + num_answers > self.max_answers:
            raise self._refusal(f"{self.num_answers} answers are under way or wait, of {self.max_answers}")
        self.num_answers += num_answers
        self._of_key[key] += num_answers
        try:
            yield
        finally:
            self.num_answers -= num_answers
            self._of_key[key] -= num_answers
            if not self._of_key[key]:
                del self._of_key[key]

    def note_duration(self, seconds: float) -> None:
        """Of a request that was answered; the next ones' guess of when there will be room."""
        self._durations.append(seconds)

    def _refusal(self, what: str) -> ApiError:
        # When some of those under way have ended: half of what one usually takes.
        wait = sum(self._durations) / len(self._durations) / 2 if self._durations else 1.0
        seconds = min(_LONGEST_WAIT_S, max(1, round(wait)))
        headers = {"Retry-After": str(seconds)}
        return ApiError(429, f"too many requests: {what}; try again later", code="rate_limit_exceeded", headers=headers)
