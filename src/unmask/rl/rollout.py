"""Rollouts: decode examples with the weights in memory, read the answers, reward them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence

from unmask.data.chat import ChatTokenizer
from unmask.engine import Engine
from unmask.rewards import Score
from unmask.rl.scoring import RewardPool
from unmask.types import Example, Rollout, RolloutGroup, SamplingParams, Trace


def derive_seed(*keys: int | str) -> int:
    """A seed in [0, 2**62) from whatever names the sequence, for example (run seed, step, prompt, member)."""
    return int.from_bytes(hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()) >> 2


def seeded_params(
    engine: Engine, tokenizer: ChatTokenizer, params: SamplingParams, num_examples: int, group_size: int = 1,
    seed_keys: tuple[int | str, ...] = (),
) -> list[SamplingParams]:  # fmt: skip
    """Parameters of every response, group by group: a seed of its own each, and the stop tokens of model and template."""
    if params.stop_token_ids is None and not params.ignore_eos:
        # A config may not list the token with which the chat template ends a turn.
        stops = tuple(sorted({*engine.model.spec.eos_token_ids, tokenizer.turn_end_id}))
        params = params.model_copy(update={"stop_token_ids": stops})
    return [
        params.model_copy(update={"seed": derive_seed(params.seed, *seed_keys, index, member)})
        for index in range(num_examples)
        for member in range(group_size)
    ]


def reward_group(
    rollouts: Sequence[Rollout], example: Example, rewards: RewardPool | None, tokenizer: ChatTokenizer
) -> None:  # fmt: skip
    """Sets the rewards of all responses to an example; None leaves them unset."""
    if rewards is None:
        return
    for rollout in rollouts if rewards.needs_pieces else ():
        rollout.pieces = tokenizer.shares(rollout.trace.response_ids)
    scores = [rewards.submit(rollout, example) for rollout in rollouts]
    set_rewards(rollouts, rewards.finish_group(rollouts, [score() for score in scores], example))


def set_rewards(rollouts: Sequence[Rollout], scores: Sequence[Score]) -> None:
    for rollout, given in zip(rollouts, scores, strict=True):
        rollout.reward, rollout.reward_reason, rollout.token_rewards, rollout.reward_parts = given


def make_rollouts(
    engine: Engine, tokenizer: ChatTokenizer, examples: Sequence[Example], params: SamplingParams, rewards: RewardPool | None,
    *, group_size: int = 1, seed_keys: tuple[int | str, ...] = (), finished: Mapping[int, Trace] | None = None,
    on_finished: Callable[[int, Trace], None] | None = None,
) -> list[RolloutGroup]:  # fmt: skip
    """`group_size` rewarded responses for each example.

    Each response draws from its own seed, derived from params.seed, `seed_keys` and its place (example, member), and does
    not depend on the others. Responses stop at the model's end tokens and at the token that ends a turn of the chat
    template, unless params.stop_token_ids says otherwise. A response is scored as soon as it is decoded. rewards: None
    leaves rewards unset (plain decoding).

    finished: traces that are there already, by the number of the response (example times `group_size` plus member); they are
    scored, not decoded. on_finished: called with each other trace as soon as it is decoded.
    """
    if rewards is not None:
        rewards.check(examples)
    prompts = [ids for example in examples for ids in [tokenizer.prompt_ids(example)] * group_size]
    seeded = seeded_params(engine, tokenizer, params, len(examples), group_size, seed_keys)
    rollouts: dict[int, Rollout] = {}
    scores: dict[int, Callable[[], Score]] = {}

    def take(index: int, trace: Trace) -> None:
        rollout = rollouts[index] = Rollout(trace, tokenizer.decode(trace.response_ids))
        if rewards is not None:
            if rewards.needs_pieces:
                rollout.pieces = tokenizer.shares(trace.response_ids)
            scores[index] = rewards.submit(rollout, examples[index // group_size])

    for index, trace in (finished or {}).items():
        take(index, trace)
    left = [index for index in range(len(prompts)) if index not in rollouts]
    for number, output in engine.stream([prompts[index] for index in left], [seeded[index] for index in left]):
        if output.trace is not None:
            if on_finished is not None:
                on_finished(left[number], output.trace)
            take(left[number], output.trace)
    start = time.monotonic()
    groups = []
    for first, example in zip(range(0, len(prompts), group_size), examples, strict=True):
        members = range(first, first + group_size)
        group = RolloutGroup(example, [rollouts[index] for index in members])
        if rewards is not None:
            final = rewards.finish_group(group.rollouts, [scores[index]() for index in members], example)
            set_rewards(group.rollouts, final)
        groups.append(group)
    if rewards is not None:
        rewards.waited_s += time.monotonic() - start
    return groups
