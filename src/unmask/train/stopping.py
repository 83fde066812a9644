"""What evaluations decide: whether a run has reached its target or its patience is over, and which checkpoint is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from unmask.config.sections import StopConfig

Reason = Literal["target", "patience"]


def goodness(metric: str, value: float) -> float:
    """More is better: of a loss, its negative. What is no number is worse than all."""
    return -math.inf if math.isnan(value) else -value if metric.startswith("loss") else value


class Stopping:
    """Follows the evaluations of a run; `state` is kept in its checkpoints.

    stop: when the run ends. keep_best: the metric whose best checkpoint is kept; empty = none.
    """

    def __init__(self, stop: StopConfig, keep_best: str):
        self.stop, self.keep_best = stop, keep_best
        # The best value of `stop.metric` and the number of evaluations since; the best of `keep_best` and the step it was at.
        self.state: dict[str, Any] = {
            "metric": stop.metric, "best": None, "num_since": 0, "keep_best": keep_best, "kept": None, "kept_step": None,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint's state; what it says of a metric that is followed no more does not count."""
        for name, values in (("metric", ("best", "num_since")), ("keep_best", ("kept", "kept_step"))):
            if state[name] == self.state[name]:
                self.state |= {key: state[key] for key in values}

    def see(self, evaluation: Mapping[str, float], num_steps: int) -> Reason | None:
        """After an evaluation: why the run ends now, if it does."""
        s, state = self.stop, self.state
        if self.keep_best:
            value = goodness(self.keep_best, evaluation[self.keep_best])
            if state["kept"] is None or value > state["kept"]:
                state["kept"], state["kept_step"] = value, num_steps
        if not s.metric:
            return None
        value = goodness(s.metric, evaluation[s.metric])
        is_better = state["best"] is None or value > state["best"]
        state["best"], state["num_since"] = (value, 0) if is_better else (state["best"], state["num_since"] + 1)
        if num_steps < s.min_steps:
            return None
        if self.is_target_reached(evaluation, num_steps):
            return "target"
        return "patience" if s.patience and state["num_since"] >= s.patience else None

    def is_target_reached(self, evaluation: Mapping[str, float], num_steps: int) -> bool:
        s = self.stop
        if not s.metric or s.at_least is None or num_steps < s.min_steps:
            return False
        return goodness(s.metric, evaluation[s.metric]) >= goodness(s.metric, s.at_least)
