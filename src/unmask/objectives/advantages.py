"""Advantages of a group of rollouts of one prompt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unmask.errors import UnmaskError

_NO_VARIANCE = 1e-8


def _centred(rewards: np.ndarray) -> np.ndarray:
    """r - mean; exactly zero for a group without variance, where rounding would pass for a signal."""
    return rewards - rewards.mean() if rewards.std() > _NO_VARIANCE else np.zeros_like(rewards)


def group_zscore(rewards: np.ndarray) -> np.ndarray:
    """(r - mean) / population std; zeros for a group without variance (it carries no signal). TraceRL paper, eq. 3."""
    return _centred(rewards) / max(float(rewards.std()), _NO_VARIANCE)


def group_mean_centred(rewards: np.ndarray) -> np.ndarray:
    """r - mean, without dividing by the deviation. Dr. GRPO, arXiv 2503.20783."""
    return _centred(rewards)


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """r - mean of the others; zeros for a group of one. RLOO, arXiv 2402.14740."""
    n = len(rewards)
    return _centred(rewards) * n / max(1, n - 1)


ADVANTAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "group_zscore": group_zscore,
    "group_mean_centred": group_mean_centred,
    "leave_one_out": leave_one_out,
}


def get_advantage(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Float64 [group_size] rewards -> advantages. Raises `UnmaskError` listing the known kinds."""
    if name not in ADVANTAGES:
        raise UnmaskError(f"unknown advantage {name!r}; known: {', '.join(ADVANTAGES)}")
    return ADVANTAGES[name]
