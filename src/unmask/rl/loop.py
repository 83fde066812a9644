"""TraceRL, read from top to bottom: rollouts -> rewards -> advantages -> updates. The optimizers live across steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from unmask.config import RlRecipe
from unmask.config.training import RlTrainConfig
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import EpochOrder, Source
from unmask.dist import ALONE
from unmask.engine import Engine
from unmask.models import Decoder
from unmask.objectives.advantages import get_advantage
from unmask.objectives.policy import kl_estimate
from unmask.objectives.rows import RowBatch, TrainRow, fit_rows, score_targets
from unmask.objectives.trace_views import trace_rows
from unmask.objectives.views import Grid
from unmask.rl.ahead import StepRollouts
from unmask.rl.collect import Collected, collect
from unmask.rl.critic import Critic, set_process_advantages
from unmask.rl.fleet import Fleet
from unmask.rl.metrics import rollout_metrics, staleness_metrics, update_metrics
from unmask.rl.minibatches import minibatches
from unmask.rl.rollout import Sampler, derive_seed, make_rollouts
from unmask.rl.scoring import RewardPool
from unmask.rl.stages import Stage, enter_stage, stage_of
from unmask.train.run import Outcome, Run
from unmask.train.techniques import reshard
from unmask.train.trainer import Trainer
from unmask.types import Example, Rollout, RolloutGroup

NUM_REPLAYED = 2  # responses a step whose own views are scored where the update's are others, to measure the sampler


def train_rl(
    recipe: RlRecipe, run: Run, engine: Engine, source: Source, tokenizer: ChatTokenizer, stages: list[Stage],
    rewards: RewardPool, critic: Critic | None = None, reference: Decoder | None = None, fleet: Fleet | None = None,
) -> Outcome:  # fmt: skip
    """Trains until the measured target or `train.max_steps`. What a step does follows from its number, the weights, and how
    many prompts have been taken before it.

    engine: decodes with the trainer's own model. rewards: entered. reference: the frozen model of
    `objective.options.kl_to = "reference"`. fleet: decodes the rollouts instead; entered.
    """
    trainer, settings, seed = run.trainer, recipe.train, recipe.run.seed
    advantage = get_advantage(recipe.advantage)
    # A baseline that is not the group's gives groups of equal rewards a signal, too.
    keeps_all = bool(advantage(np.array([[1.0, 1.0], [0.0, 0.0]])).any())
    order = EpochOrder(len(source), seed)
    progress = run.loop_state
    progress.setdefault("num_prompts", 0)
    progress.setdefault("num_skipped_steps", 0)

    sampler: Sampler = fleet or engine

    def examples_from(first: int, num: int) -> list[Example]:
        return [source[order[n][0]] for n in range(first, first + num)]

    def take(num: int) -> list[Example]:
        progress["num_prompts"] += num
        return examples_from(progress["num_prompts"] - num, num)

    def decode(step: int, examples: Sequence[Example], number: int) -> list[RolloutGroup]:
        keys = (seed, step, number) if number else (seed, step)
        with trainer.autocast():
            return make_rollouts(
                sampler, tokenizer, examples, stage_of(stages, step).params, rewards, group_size=settings.group_size,
                seed_keys=keys, ranks=ALONE if fleet else trainer.ranks,
            )  # fmt: skip

    def collect_step(step: int) -> Collected:
        return collect(take, partial(decode, step), settings, keeps_all=keeps_all)

    def loss_fn(stage: Stage, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        stats = score_targets(trainer.model, batch, trainer.backend, temperature=stage.params.temperature)
        return stage.objective.loss(stats, batch)

    models = [trainer.model, *([critic.model] if critic else [])]
    enter_stage(stages, run.num_steps, models)  # for an evaluation before the first step
    rollouts = StepRollouts(sampler, collect_step, trainer, settings.max_steps, progress, examples_from)
    run.before_save = rollouts.keep
    with run:
        for step in run.steps():
            clock = run.stopwatch(lambda: engine.runner.num_flops)
            stage = enter_stage(stages, step, models)
            views = partial(stage.views, spec=trainer.model.spec)

            # 1. Prompts in seeded epochs; rollouts with the weights as they are (or were a step ago), rewarded; groups without
            # signal replaced.
            collected = rollouts.of_step(step, clock)
            groups = collected.kept
            if not rollouts.is_ahead:
                clock.move("reward_s", rewards.waited_s)
            rewards.waited_s = 0.0
            staleness = staleness_metrics(collected, trainer.optimizer_step) if rollouts.is_ahead else {}

            # 2. Advantages: of whole responses, or of each token over the steps of its trace.
            clock.begin("rows_s")
            set_advantages(groups, advantage)
            signal = [rollout for group in groups for rollout in group.rollouts]
            if settings.drops_cut_responses:
                signal = [rollout for rollout in signal if rollout.trace.finish_reason != "length"]
            value_rows: list[list[TrainRow]] = []
            value_metrics: dict[str, float] = {}
            if critic is not None:
                clock.begin("value_s")
                value_rows, value_metrics["explained_variance"] = critic.prepare(signal, views)
            else:
                set_process_advantages(groups, views, advantage, recipe.value.gamma)
                signal = [r for r in signal if np.any(r.advantage if r.token_advantages is None else r.token_advantages)]

            # 3. Rows of all policy updates: several epochs over even, seeded minibatches.
            clock.begin("rows_s")
            is_waiting = critic is not None and step < recipe.value.warmup_steps
            updates = [] if is_waiting else plan_updates(stage, signal, settings, (seed, step), trainer.max_tokens)

            # 4. Old log-probabilities: the sampler's own, unless its arithmetic or its views are not the trainer's.
            if needs_old_logprobs(recipe, stage, trainer):
                clock.begin("old_logprobs_s")
                for rows in updates:
                    set_logprobs("old_logprobs", rows, trainer.model, trainer, stage.params.temperature)
            if reference is not None:
                clock.begin("ref_logprobs_s")
                for rows in updates:
                    set_logprobs("ref_logprobs", rows, reference, trainer, stage.params.temperature)

            mismatch = {}
            if not stage.objective.has_sampler_views:
                clock.begin("old_logprobs_s")
                mismatch = sampler_mismatch(signal[:NUM_REPLAYED], trainer, stage.params.temperature)

            # 5. The updates.
            clock.begin("update_s")
            stats = [trainer.update(rows, partial(loss_fn, stage)) for rows in updates]
            if critic is not None:
                clock.begin("value_s")
                value_metrics |= critic.update(value_rows, (seed, step))
            if not stats and not any(value_rows):
                progress["num_skipped_steps"] += 1
                run.say(f"step {step + 1}: no group carries a signal; nothing was trained")

            # 6. Metrics, evaluation, checkpoint, end.
            metrics = {**rollout_metrics(collected), **staleness, **update_metrics(stats), **mismatch, **value_metrics}
            metrics["num_skipped_steps"] = progress["num_skipped_steps"]
            timings = clock.timings(metrics["num_trained_tokens"], metrics["num_forwarded_tokens"])
            run.finish_step(metrics, timings | (fleet.counts() if fleet else {}))
    return run.outcome


def set_advantages(groups: Sequence[RolloutGroup], advantage: Callable[[np.ndarray], np.ndarray]) -> None:
    """Sets `Rollout.advantage` from the rewards of all groups."""
    if not groups:
        return
    values = advantage(np.array([[rollout.reward for rollout in group.rollouts] for group in groups], dtype=np.float64))
    for group, row in zip(groups, values, strict=True):
        for rollout, value in zip(group.rollouts, row, strict=True):
            rollout.advantage = float(value)


def plan_updates(
    stage: Stage, rollouts: Sequence[Rollout], config: RlTrainConfig, seed_keys: tuple[int, ...], max_tokens: int
) -> list[list[TrainRow]]:
    """The rows of every optimizer step (none without rows), cut to at most `max_tokens` tokens."""
    updates = []
    for epoch in range(config.num_epochs):
        for part in minibatches(rollouts, config.num_minibatches, derive_seed(*seed_keys, epoch)):
            updates.append(fit_rows(stage.objective.rows(part, num_sequences=len(part), draw=epoch), max_tokens))
    return [rows for rows in updates if rows]


def needs_old_logprobs(recipe: RlRecipe, stage: Stage, trainer: Trainer) -> bool:
    """Whether the sampler's log-probabilities cannot serve as those of the policy before the update."""
    if not stage.objective.has_sampler_views:
        return True
    is_exact = trainer.precision == "float32" and stage.params.cache in ("auto", "none") and not recipe.fleet.max_staleness
    return recipe.train.old_logprobs == "recompute" or (recipe.train.old_logprobs == "auto" and not is_exact)


def set_logprobs(key: str, rows: Sequence[TrainRow], model: Decoder, trainer: Trainer, temperature: float) -> None:
    """Sets values[key] of rows that fit the trainer: the model's log-probs on these views, in the trainer's precision."""
    trainer.set_values(
        key, rows, lambda batch: score_targets(model, batch, trainer.backend, temperature=temperature).logprobs_N
    )
    reshard(model)


def sampler_mismatch(rollouts: Sequence[Rollout], trainer: Trainer, temperature: float) -> dict[str, float]:
    """`mismatch_kl`: mean k3 between sampler and trainer on what the sampler saw of these responses; nothing without any."""
    spec = trainer.model.spec
    exact = [trace_rows(r.trace, Grid.of(spec, r.trace.block_size), spec.mask_token_id) for r in rollouts]
    rows = fit_rows([row for rows in exact for row in rows], trainer.max_tokens)
    if not rows:
        return {}
    set_logprobs("exact_logprobs", rows, trainer.model, trainer, temperature)
    names = ("exact_logprobs", "rollout_logprobs")
    new, old = (torch.from_numpy(np.concatenate([row.values[name] for row in rows])) for name in names)
    return {"mismatch_kl": float(kl_estimate(new, old, "k3").mean())}
