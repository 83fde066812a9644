"""Made-up responses, and rewards that score them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from unmask.config import Plugin
from unmask.rewards import Score, make_reward
from unmask.types import Example, Rollout, Trace


def example(answer: str | None = "7", question: str = "?", **fields: Any) -> Example:
    return Example(id="q", messages=({"role": "user", "content": question},), answer=answer, **fields)


def rollout(
    text: str, finish_reason: str = "stop", num_tokens: int = 1, pieces: Sequence[str] = (), step_map: Sequence[int] = ()
) -> Rollout:
    n = len(pieces) or num_tokens
    trace = Trace([], [5] * n, list(step_map) or [0] * n, [0.0] * n, [0.0] * n, n, 4, 1, finish_reason)
    return Rollout(trace, text, pieces=list(pieces))


def scored(name: str, *rollouts: Rollout, of: Example | None = None, **options: Any) -> Any:
    """The score of each response (of one, the score alone), started and closed as a run does it."""

    async def run() -> list[Score]:
        reward = make_reward(Plugin(name=name, options=options))
        try:
            await reward.start()
            return list(await asyncio.gather(*(reward(each, of or example()) for each in rollouts)))
        finally:
            await reward.close()

    scores = asyncio.run(run())
    return scores[0] if len(scores) == 1 else scores
