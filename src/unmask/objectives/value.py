"""The value model's side of TraceRL: returns and advantages over the steps of a trace, and the value loss.

TraceRL paper, section 4 (arXiv 2509.06949). With t_j the step of token j, and g, l = `gamma`, `lam`:

    r*_t, V*_t = means over the step's tokens      R*_t = r*_t + g R*_{t+1}      d_t = r*_t - V*_t + g V*_{t+1}
    A*_t = d_t + g l A*_{t+1}                      (what lies behind the last step is 0)
    R_j = r_j + g R*_{t_j + 1}                     A_j = r_j - V_j + g V*_{t_j + 1} + g l A*_{t_j + 1}
    value loss = mean_j 1/2 max((V_j - R_j)^2, (V_old + clip(V_j - V_old, -eps, eps) - R_j)^2)

Shape suffixes: N trained tokens of one response, T its steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unmask.objectives.rows import RowBatch


def outcome_rewards(step_N: np.ndarray, reward: float) -> np.ndarray:
    """Per-token rewards [N]: the outcome on the tokens of the last step, 0 elsewhere."""
    return np.where(step_N == step_N.max(initial=0), reward, 0.0)


def trace_advantages(
    step_N: np.ndarray, reward_N: np.ndarray, value_N: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns R and advantages A, both float64 [N]. Steps are compared over the whole response; their values need no order
    of their own beyond ascending in time."""
    _, t_N, size_T = np.unique(step_N, return_inverse=True, return_counts=True)
    reward_T, value_T = (np.bincount(t_N, weights=x, minlength=len(size_T)) / size_T for x in (reward_N, value_N))
    # One more entry for what lies behind the last step.
    return_T, advantage_T, next_value_T = np.zeros(len(size_T) + 1), np.zeros(len(size_T) + 1), np.append(value_T, 0.0)
    for t in reversed(range(len(size_T))):
        return_T[t] = reward_T[t] + gamma * return_T[t + 1]
        delta = reward_T[t] - value_T[t] + gamma * next_value_T[t + 1]
        advantage_T[t] = delta + gamma * lam * advantage_T[t + 1]
    after_N = t_N + 1
    return_N = reward_N + gamma * return_T[after_N]
    return return_N, reward_N - value_N + gamma * next_value_T[after_N] + gamma * lam * advantage_T[after_N]


def value_loss(value_N: Tensor, batch: RowBatch, clip_eps: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped squared error under the batch's "weight", from its "return" and "old_value"; and sums for the metrics."""
    return_N, old_N, weight_N = (batch.values[key] for key in ("return", "old_value", "weight"))
    near_N = old_N + (value_N - old_N).clamp(-clip_eps, clip_eps)
    error_N = torch.maximum((value_N - return_N).square(), (near_N - return_N).square())
    return 0.5 * (weight_N * error_N).sum(), {"num_targets": torch.tensor(float(len(value_N)))}
