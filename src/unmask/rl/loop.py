"""TraceRL, read from top to bottom: rollouts -> rewards -> advantages -> update. The optimizer lives across steps."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unmask.config import RlRecipe
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import EpochOrder, Source
from unmask.engine import Engine
from unmask.objectives import RlObjective
from unmask.objectives.advantages import get_advantage
from unmask.objectives.rows import RowBatch, TrainRow, collate, fit_rows, pack_rows, score_targets
from unmask.rewards import RewardFn
from unmask.rl.rollout import derive_seed, make_rollouts
from unmask.train.run import Outcome, Run
from unmask.train.trainer import Trainer
from unmask.types import Rollout, RolloutGroup, SamplingParams


def train_rl(
    recipe: RlRecipe, run: Run, engine: Engine, source: Source, tokenizer: ChatTokenizer, objective: RlObjective,
    reward: RewardFn,
) -> Outcome:  # fmt: skip
    """Trains until the measured target or `train.max_steps`. Everything a step does follows from its number.

    engine: decodes with the trainer's own model.
    """
    trainer, settings, params = run.trainer, recipe.train, recipe.rollout
    advantage = get_advantage(recipe.advantage)
    order = EpochOrder(len(source), recipe.run.seed)
    is_exact = trainer.precision == "float32" and objective.has_sampler_views
    needs_old_logprobs = settings.old_logprobs == "recompute" or (settings.old_logprobs == "auto" and not is_exact)

    def loss_fn(batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return objective.loss(score_targets(trainer.model, batch, trainer.backend, temperature=params.temperature), batch)

    with run:
        for step in run.steps():
            start = time.monotonic()
            # 1. The step's prompts, from its place in the seeded epochs.
            first = step * settings.prompts_per_step
            examples = [source[order[n][0]] for n in range(first, first + settings.prompts_per_step)]
            # 2. Rollouts with the weights as they are, rewarded.
            engine.update_weights(policy_version=trainer.optimizer_step)
            with trainer.autocast():
                groups = make_rollouts(
                    engine, tokenizer, examples, params, reward, group_size=settings.group_size,
                    seed_keys=(recipe.run.seed, step),
                )  # fmt: skip
            # 3. Advantages within each group; groups without variance carry no signal and are left out.
            for group in groups:
                values = advantage(np.array([rollout.reward for rollout in group.rollouts]))
                for rollout, value in zip(group.rollouts, values, strict=True):
                    rollout.advantage = float(value)
            signal = [rollout for group in groups for rollout in group.rollouts if rollout.advantage != 0]
            after_rollouts = time.monotonic()
            # 4. Rows of all updates: several epochs over even, seeded minibatches.
            parts = [
                part
                for epoch in range(settings.num_epochs)
                for part in minibatches(signal, settings.num_minibatches, derive_seed(recipe.run.seed, step, epoch))
            ]
            updates = [rows for part in parts if (rows := objective.rows(part, num_sequences=len(part)))]
            updates = [fit_rows(rows, trainer.max_tokens) for rows in updates]
            # 5. Old log-probabilities: the sampler's own, unless its arithmetic or its views are not the trainer's.
            if needs_old_logprobs:
                for rows in updates:
                    set_old_logprobs(trainer, rows, params)
            # 6. The updates.
            stats = [trainer.update(rows, loss_fn) for rows in updates]
            # 7. Metrics, evaluation, checkpoint, end.
            end = time.monotonic()
            run.finish_step(
                {**rollout_metrics(groups), **update_metrics(stats)},
                {"step_s": end - start, "rollout_s": after_rollouts - start, "update_s": end - after_rollouts},
            )
    return run.outcome


@torch.no_grad()
def set_old_logprobs(trainer: Trainer, rows: Sequence[TrainRow], params: SamplingParams) -> None:
    """Replaces the rows' old log-probs by the trainer's: from the weights as they are, in its precision, on these views."""
    for pack in pack_rows(rows, trainer.max_tokens):
        batch = collate(pack, trainer.model.device)
        with trainer.autocast():
            stats = score_targets(trainer.model, batch, trainer.backend, temperature=params.temperature)
        for row, values in zip(pack, stats.logprobs_N.split([len(row.target_ids) for row in pack]), strict=True):
            row.values["old_logprobs"] = values.cpu().numpy()


def minibatches(rollouts: Sequence[Rollout], num: int, seed: int) -> list[list[Rollout]]:
    """At most `num` parts of nearly equal size (never empty), shuffled by the seed."""
    if not rollouts:
        return []
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(rollouts))
    parts = np.array_split(order, min(num, len(rollouts)))
    return [[rollouts[i] for i in part] for part in parts]


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    traces = [rollout.trace for rollout in rollouts]
    rewards = np.array([[rollout.reward for rollout in group.rollouts] for group in groups])
    num_tokens = sum(trace.num_response_tokens for trace in traces)
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "groups_without_signal": int((rewards.std(1) < 1e-8).sum()),
        "response_length": num_tokens / len(traces),
        "cut_share": sum(trace.finish_reason == "length" for trace in traces) / len(traces),
        "tokens_per_forward": num_tokens / sum(trace.num_forwards for trace in traces),
    }


def update_metrics(stats: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the step's optimizer steps; token means where the objective gave sums. A step without signal: zeros."""
    num_targets = sum(s["num_targets"] for s in stats)

    def mean(key: str) -> float:
        return sum(s[key] for s in stats) / max(1, len(stats))

    def per_token(key: str) -> float:
        return sum(s[key] for s in stats) / max(1.0, num_targets)

    return {
        "num_updates": len(stats),
        "loss": mean("loss"),
        "grad_norm": mean("grad_norm"),
        "lr": mean("lr"),
        "kl": per_token("kl_sum"),
        "clip_share": per_token("clip_sum"),
        "neg_logprob": per_token("neg_logprob_sum"),
        "num_trained_tokens": num_targets,
        **{key: mean(key) for key in ("expert_load_max", "expert_load_min") if stats and key in stats[0]},
    }
