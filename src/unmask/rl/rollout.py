"""Rollouts: decode examples with the weights in memory, read the answers, reward them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from unmask.data.chat import ChatTokenizer
from unmask.diffusion.generate import generate
from unmask.errors import UnmaskError
from unmask.models import Decoder
from unmask.rewards import RewardFn
from unmask.types import Example, Rollout, RolloutGroup, SamplingParams


def derive_seed(*keys: int | str) -> int:
    """A seed in [0, 2**62) from whatever names the sequence, for example (run seed, step, prompt, member)."""
    return int.from_bytes(hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()) >> 2


def make_rollouts(
    model: Decoder, tokenizer: ChatTokenizer, examples: Sequence[Example], params: SamplingParams,
    reward: RewardFn | None,
    *, group_size: int = 1, seed_keys: tuple[int | str, ...] = (), max_batch_size: int = 256, policy_version: int = 0,
) -> list[RolloutGroup]:  # fmt: skip
    """`group_size` rewarded responses for each example.

    Each response draws from its own seed, derived from params.seed, `seed_keys` and its place (example, member), and does
    not depend on the others. Responses stop at the model's end tokens and at the token that ends a turn of the chat
    template, unless params.stop_token_ids says otherwise. reward: None leaves rewards unset (plain decoding).
    """
    if reward is not None and (unanswered := [e.id for e in examples if not (e.answer or "").strip()]):
        raise UnmaskError(f"example {unanswered[0]}: has no answer; a reward compares with one")
    if params.stop_token_ids is None:  # a config may not list the token with which the chat template ends a turn
        stops = tuple(sorted({*model.spec.eos_token_ids, tokenizer.turn_end_id}))
        params = params.model_copy(update={"stop_token_ids": stops})
    prompts = [ids for example in examples for ids in [tokenizer.prompt_ids(example)] * group_size]
    seeded = [
        params.model_copy(update={"seed": derive_seed(params.seed, *seed_keys, index, member)})
        for index in range(len(examples))
        for member in range(group_size)
    ]
    traces = generate(model, prompts, seeded, max_batch_size=max_batch_size, policy_version=policy_version)
    groups = []
    for index, example in enumerate(examples):
        rollouts = []
        for trace in traces[index * group_size : (index + 1) * group_size]:
            rollout = Rollout(trace, tokenizer.decode(trace.response_ids))
            if reward is not None:
                rollout.reward, rollout.reward_reason = reward(rollout, example)
            rollouts.append(rollout)
        groups.append(RolloutGroup(example, rollouts))
    return groups
