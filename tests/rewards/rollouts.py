"""Made-up rollouts for tests of rewards."""

from __future__ import annotations

from unmask.types import Rollout, Trace


def make_rollout(
    text: str, pieces: list[str] | None = None, step_map: list[int] | None = None, finish: str = "stop"
) -> Rollout:
    pieces = [*text] if pieces is None else pieces
    steps = list(range(len(pieces))) if step_map is None else step_map
    num = len(pieces)
    trace = Trace([1], [2] * num, steps, [0.0] * num, [1.0] * num, num, max(1, num), num, finish)  # type: ignore[arg-type]
    return Rollout(trace, text, pieces=pieces)
