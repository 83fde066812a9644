"""Advantages of a step's rollouts, from their rewards: float64 [groups, group_size] -> the same shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unmask.errors import UnmaskError

NO_VARIANCE = 1e-8


def _centred(rewards: np.ndarray) -> np.ndarray:
    """r - mean of its group; exactly zero for a group without variance, where rounding would pass for a signal."""
    has_variance = rewards.std(1, keepdims=True) > NO_VARIANCE
    return np.where(has_variance, rewards - rewards.mean(1, keepdims=True), 0.0)


def group_zscore(rewards: np.ndarray) -> np.ndarray:
    """(r - mean) / population std; zeros for a group without variance (it carries no signal). TraceRL paper, eq. 3."""
    return _centred(rewards) / np.maximum(rewards.std(1, keepdims=True), NO_VARIANCE)


def group_mean_centred(rewards: np.ndarray) -> np.ndarray:
    """r - mean, without dividing by the deviation. Dr. GRPO, arXiv 2503.20783."""
    return _centred(rewards)


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """r - mean of the others; zeros for a group of one. RLOO, arXiv 2402.14740."""
    n = rewards.shape[1]
    return _centred(rewards) * n / max(1, n - 1)


def batch_zscore(rewards: np.ndarray) -> np.ndarray:
    """(r - mean) / population std over all rollouts of the step; zeros where they have no variance. REINFORCE with a
    batch baseline: groups of equal rewards carry signal, too."""
    return group_zscore(rewards.reshape(1, -1)).reshape(rewards.shape)


def none(rewards: np.ndarray) -> np.ndarray:
    """The reward itself: for a value model, which brings its own baseline."""
    return rewards


ADVANTAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "group_zscore": group_zscore,
    "group_mean_centred": group_mean_centred,
    "leave_one_out": leave_one_out,
    "batch_zscore": batch_zscore,
    "none": none,
}


def get_advantage(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """By name. Raises `UnmaskError` listing the known kinds."""
    if name not in ADVANTAGES:
        raise UnmaskError(f"unknown advantage {name!r}; known: {', '.join(ADVANTAGES)}")
    return ADVANTAGES[name]
