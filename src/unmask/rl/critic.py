"""The value model in the loop: values of what the policy will be trained on, advantages over trace steps, its own updates.

TraceRL paper, section 4: the value model reads the same noisy views, at the tokens' masked positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from unmask.config.training import ValueConfig
from unmask.models import ValueModel
from unmask.objectives.rows import RowBatch, TrainRow, fit_rows, name_rows, set_weights, target_hidden
from unmask.objectives.value import outcome_rewards, trace_advantages, value_loss
from unmask.rl.minibatches import minibatches
from unmask.rl.rollout import derive_seed
from unmask.train.trainer import Trainer
from unmask.types import Rollout, RolloutGroup

Views = Callable[[Rollout], list[TrainRow]]  # a response's views of its trace, with "view" and "canvas_index"


def target_values(model: ValueModel, batch: RowBatch, trainer: Trainer[ValueModel]) -> Tensor:
    """Float32 values [N] of the targets."""
    return model.head(target_hidden(model, batch, trainer.backend))


class Critic:
    """A value model, its trainer and what became of its predictions."""

    def __init__(self, model: ValueModel, trainer: Trainer[ValueModel], config: ValueConfig):
        self.model, self.trainer, self.config = model, trainer, config

    def prepare(self, rollouts: Sequence[Rollout], views: Views) -> tuple[list[list[TrainRow]], float]:
        """Sets the rollouts' token advantages, from the value model as it is and `Rollout.advantage` as the outcome.

        Returns the rows of each rollout for `update`, and the explained variance of the returns: 1 - var(R - V) / var(R).
        """
        rows_of = [fit_rows(name_rows(views(rollout), rollout.name), self.trainer.max_tokens) for rollout in rollouts]
        rows = [row for rows in rows_of for row in rows]
        self.trainer.set_values("old_value", rows, lambda batch: target_values(self.model, batch, self.trainer))
        errors, returns = [np.zeros(0)], [np.zeros(0)]
        for rollout, rows in zip(rollouts, rows_of, strict=True):
            if rows:
                value, target = set_token_advantages(rollout, rows, rollout.advantage, self.config.gamma, self.config.lam)
                errors.append(target - value)
                returns.append(target)
        variance = np.concatenate(returns).var() if len(returns) > 1 else 0.0
        explained = 1 - np.concatenate(errors).var() / variance if variance > 1e-12 else 0.0
        return rows_of, float(explained)

    def update(self, rows_of: Sequence[Sequence[TrainRow]], seed_keys: tuple[int, ...]) -> dict[str, float]:
        """The step's optimizer steps of the value model, on minibatches of responses."""
        stats = []
        for epoch in range(self.config.num_epochs):
            for part in minibatches(rows_of, self.config.num_minibatches, derive_seed(*seed_keys, epoch, "value")):
                set_weights(part, self.config.loss_normalization, 1, num_sequences=len(part))
                rows = [row for rows in part for row in rows]
                if rows:
                    stats.append(self.trainer.update(rows, self._loss))
        if not stats:
            return {}
        taken = [s for s in stats if not s["num_nonfinite_updates"]]
        counts: dict[str, float] = {"num_nonfinite_value_updates": len(stats) - len(taken)}
        if not taken:
            return counts
        mean = {key: sum(s[key] for s in taken) / len(taken) for key in ("loss", "grad_norm")}
        return {"value_loss": mean["loss"], "value_grad_norm": mean["grad_norm"], "value_lr": taken[-1]["lr"], **counts}

    def _loss(self, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return value_loss(target_values(self.model, batch, self.trainer), batch, self.config.clip_eps)


def set_token_advantages(
    rollout: Rollout, rows: Sequence[TrainRow], outcome: float, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sets `rollout.token_advantages` and the rows' "return"; returns old values and returns, float64 [N].

    Rewards are the outcome, on the last step, and the process rewards, if there are any. Rows without "old_value" are taken
    to have value 0: with lam 1 the advantage is then the discounted rewards to come.
    """
    view, index = (np.concatenate([row.values[key] for row in rows]) for key in ("view", "canvas_index"))
    value = np.concatenate([row.values.get("old_value", np.zeros(len(row.target_ids))) for row in rows], dtype=np.float64)
    reward = outcome_rewards(view, outcome)
    if rollout.token_rewards is not None:
        reward = reward + np.array(rollout.token_rewards)[index]
    target, advantage = trace_advantages(view, reward, value, gamma, lam)
    rollout.token_advantages = np.zeros(len(rollout.trace.canvas_ids))
    rollout.token_advantages[index] = advantage
    for row, part in zip(rows, np.split(target, np.cumsum([len(row.target_ids) for row in rows])[:-1]), strict=True):
        row.values["return"] = part
    return value, target


def set_process_advantages(
    groups: Sequence[RolloutGroup], views: Views, advantage: Callable[[np.ndarray], np.ndarray], gamma: float
) -> None:
    """Without a value model: token advantages, if any response has process rewards; without any, nothing is set.

    For a token at canvas position k they are what `advantage` makes, across the group, of outcome + process rewards still to
    come at k. Equal responses thus have advantage 0 everywhere, and process rewards of 0 leave those of the outcome.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if all(rollout.token_rewards is None for rollout in rollouts):
        return
    length = max(len(rollout.trace.canvas_ids) for rollout in rollouts)
    to_come = np.zeros((len(rollouts), length))
    for rollout, row in zip(rollouts, to_come, strict=True):
        row += rollout.reward or 0.0
        if rollout.token_rewards is not None and (rows := views(rollout)):
            set_token_advantages(rollout, rows, 0.0, gamma, 1.0)
            row[: len(rollout.token_advantages)] += rollout.token_advantages
    by_group = to_come.reshape(len(groups), -1, length)
    values = np.stack([advantage(by_group[:, :, k]) for k in range(length)], axis=-1).reshape(to_come.shape)
    for rollout, row in zip(rollouts, values, strict=True):
        rollout.token_advantages = row[: len(rollout.trace.canvas_ids)]
