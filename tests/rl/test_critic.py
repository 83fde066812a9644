"""The value model's side of the loop against plain recomputation: advantages, explained variance, updates; process rewards."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.conftest import random_prompts
from tests.models.rows import opinionated
from unmask.config.training import OptimizerConfig, ValueConfig
from unmask.diffusion.generate import generate
from unmask.models import ValueModel
from unmask.objectives.advantages import get_advantage
from unmask.objectives.rows import collate, target_hidden
from unmask.objectives.trace_views import trace_rows
from unmask.objectives.views import Grid
from unmask.rl.collect import has_signal
from unmask.rl.critic import Critic, set_process_advantages
from unmask.train.trainer import Trainer
from unmask.types import Example, Message, Rollout, RolloutGroup, SamplingParams


@pytest.fixture(scope="module", params=["sdar", "llada"])
def parts(request):
    """A value model with opinions, how a response is viewed, and decoded responses."""
    policy = opinionated(request.param)
    model = ValueModel.from_policy(policy)
    torch.nn.init.normal_(model.value_head.weight, std=0.3, generator=torch.Generator().manual_seed(3))
    params = SamplingParams(max_new_tokens=14, block_size=4, confidence_threshold=0.3, stop_token_ids=(1, 11, 12, 13))
    traces = generate(policy, random_prompts([0, 3, 5, 9, 6, 4]), params)

    def views(rollout: Rollout):
        return trace_rows(rollout.trace, Grid.of(policy.spec, rollout.trace.block_size), policy.spec.mask_token_id)

    return model, views, traces


def make_critic(model: ValueModel, **options) -> Critic:
    own = copy.deepcopy(model)
    trainer = Trainer(own, OptimizerConfig(lr=1e-2), max_optimizer_steps=10, max_tokens_per_micro_batch=80)
    return Critic(own, trainer, ValueConfig(enabled=True, **options))


def rollouts_of(traces, has_process: bool = False) -> list[Rollout]:
    rng = np.random.default_rng(0)
    rollouts = [Rollout(trace, "", advantage=float(rng.normal())) for trace in traces]
    for rollout in rollouts if has_process else ():
        rollout.token_rewards = rng.normal(size=rollout.trace.num_response_tokens).tolist()
    return rollouts


def plain_steps(rollout: Rollout, num_prompt: int, block_size: int | None) -> list[list[int]]:
    """Canvas indices of the response's tokens that were unmasked together, in the order of the views (blocks, then steps)."""
    trace = rollout.trace
    of: dict[tuple[int, int], list[int]] = {}
    for i in range(trace.num_response_tokens):
        block = (num_prompt + i) // block_size if block_size else 0
        of.setdefault((block, trace.step_map[i]), []).append(i)
    return [of[key] for key in sorted(of)]


def plain_gae(rollout: Rollout, steps: list[list[int]], value: dict[int, float], outcome: float, gamma: float, lam: float):
    """Returns and advantages of every token, by the recursion of the paper written out step by step."""
    reward = dict.fromkeys(value, 0.0)
    for i in steps[-1]:
        reward[i] += outcome
    for i, extra in enumerate(rollout.token_rewards or ()):
        reward[i] += extra
    returns, advantages = {}, {}
    next_return = next_value = next_advantage = 0.0
    for step in reversed(steps):
        for i in step:
            returns[i] = reward[i] + gamma * next_return
            advantages[i] = reward[i] - value[i] + gamma * next_value + gamma * lam * next_advantage
        r, v = (float(np.mean([of[i] for i in step])) for of in (reward, value))
        next_advantage = r - v + gamma * next_value + gamma * lam * next_advantage
        next_return, next_value = r + gamma * next_return, v
    return returns, advantages


@pytest.mark.parametrize("has_process", [False, True])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 1.0), (1.0, 0.8), (0.9, 0.8)])
def test_advantages_and_explained_variance(parts, gamma, lam, has_process) -> None:
    model, views, traces = parts
    critic, rollouts = make_critic(model, gamma=gamma, lam=lam), rollouts_of(traces, has_process)
    rows_of, explained = critic.prepare(rollouts, views)
    errors, every = [], []
    for rollout, rows in zip(rollouts, rows_of, strict=True):
        value = {}
        for row in rows:  # each row alone
            batch = collate([row])
            with torch.no_grad():
                values = critic.model.head(target_hidden(critic.model, batch, critic.trainer.backend))
            value |= dict(zip(row.values["canvas_index"].tolist(), values.tolist(), strict=True))
        block_size = rollout.trace.block_size if model.spec.attention == "block_causal" else None
        steps = plain_steps(rollout, len(rollout.trace.prompt_ids), block_size)
        returns, advantages = plain_gae(rollout, steps, value, rollout.advantage, gamma, lam)
        got = {i: a for i, a in enumerate(rollout.token_advantages.tolist()) if i in advantages}
        assert got == pytest.approx(advantages, abs=1e-5)
        recorded = {i: r for row in rows for i, r in zip(row.values["canvas_index"], row.values["return"], strict=True)}
        assert recorded == pytest.approx(returns, abs=1e-9)
        errors += [returns[i] - value[i] for i in value]
        every += [returns[i] for i in value]
    assert explained == pytest.approx(1 - np.var(errors) / np.var(every), abs=1e-4)
    assert abs(np.mean(errors)) > 1e-3  # a constant error does not count, and there is one


def test_nothing_to_explain(parts) -> None:
    model, views, traces = parts
    critic = make_critic(model)
    assert critic.prepare([], views) == ([], 0.0)
    still = rollouts_of(traces)
    for rollout in still:
        rollout.advantage = 0.5
    assert critic.prepare(still, views)[1] == 0.0  # returns do not vary


@pytest.mark.parametrize(("epochs", "minibatches", "wanted"), [(1, 1, 1), (3, 1, 3), (2, 2, 4)])
def test_updates_are_as_many_as_asked(parts, epochs, minibatches, wanted) -> None:
    model, views, traces = parts
    critic, rollouts = make_critic(model, num_epochs=epochs, num_minibatches=minibatches), rollouts_of(traces)
    rows_of, _ = critic.prepare(rollouts, views)
    assert critic.update(rows_of, (0, 1))["value_loss"] > 0
    assert critic.trainer.optimizer_step == wanted


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_the_loss_is_a_mean_over_what_it_says(parts, kind) -> None:
    model, views, traces = parts
    critic, rollouts = make_critic(model, loss_normalization=kind), rollouts_of(traces)
    rows_of, _ = critic.prepare(rollouts, views)
    squares = [
        np.concatenate([(row.values["old_value"] - row.values["return"]) ** 2 for row in rows]) for rows in rows_of
    ]  # before the first update nothing is clipped
    wanted = np.concatenate(squares).mean() if kind == "token" else np.mean([s.mean() for s in squares])
    assert len({len(s) for s in squares}) > 1
    assert critic.update(rows_of, (0, 1))["value_loss"] == pytest.approx(wanted / 2, abs=1e-5)


@pytest.mark.parametrize("kind", ["group_zscore", "leave_one_out", "none"])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_process_rewards_without_a_value_model(parts, gamma, kind) -> None:
    """At each position, what the advantage makes of outcome + rewards to come in the group; what has ended has its outcome."""
    model, views, traces = parts
    block_size = 4 if model.spec.attention == "block_causal" else None
    example = Example(id="q", messages=(Message(role="user", content="?"),))
    rollouts = rollouts_of(traces, has_process=True)
    rollouts[4].token_rewards = None
    for rollout, reward in zip(rollouts, (1.0, 0.0, 0.0, 1.0, 1.0, 0.0), strict=True):
        rollout.reward = reward
    groups = [RolloutGroup(example, rollouts[:3]), RolloutGroup(example, rollouts[3:])]
    set_process_advantages(groups, views, get_advantage(kind), gamma)
    for group in groups:
        to_come = []
        for rollout in group.rollouts:
            steps = plain_steps(rollout, len(rollout.trace.prompt_ids), block_size)
            nothing = dict.fromkeys(range(rollout.trace.num_response_tokens), 0.0)
            to_come.append(plain_gae(rollout, steps, nothing, 0.0, gamma, 1.0)[1])
        for member, rollout in enumerate(group.rollouts):
            for i in range(rollout.trace.num_response_tokens):
                column = [r.reward + of.get(i, 0.0) for r, of in zip(group.rollouts, to_come, strict=True)]
                wanted = get_advantage(kind)(np.array([column]))[0, member]
                assert rollout.token_advantages[i] == pytest.approx(wanted, abs=1e-9)


def test_equal_process_rewards_are_no_signal(parts) -> None:
    """Equal responses have no advantage anywhere; without process rewards in it, nothing is set."""
    _, views, traces = parts
    example = Example(id="q", messages=(Message(role="user", content="?"),))

    def group(*token_rewards) -> RolloutGroup:
        return RolloutGroup(example, [Rollout(traces[0], "", reward=1.0, token_rewards=rewards) for rewards in token_rewards])

    n = traces[0].num_response_tokens
    right = [0.25, *[0.0] * (n - 2), 0.25]
    same = group(right, right, right)
    set_process_advantages([same], views, get_advantage("group_zscore"), 1.0)
    assert not any(rollout.token_advantages.any() for rollout in same.rollouts)
    assert not has_signal(same)
    assert has_signal(group(right, right, [0.0] * n))
    assert not has_signal(group([0.0] * n, [0.0] * n))
    unpaid = group(None, None)
    set_process_advantages([unpaid], views, get_advantage("group_zscore"), 1.0)
    assert all(rollout.token_advantages is None for rollout in unpaid.rollouts)
