"""Rollouts: decode examples with the weights in memory, read the answers, reward them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from unmask.data.chat import ChatTokenizer
from unmask.dist import ALONE, Ranks
from unmask.engine.request import RequestOutput
from unmask.models import Decoder
from unmask.rewards import Score
from unmask.rl.scoring import RewardPool
from unmask.types import Example, Rollout, RolloutGroup, SamplingParams, Trace


class Sampler(Protocol):
    """What decodes: an `Engine`, one for each rank, or a fleet of actors, for all of them."""

    @property
    def model(self) -> Decoder: ...

    def stream(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> Iterator[tuple[int, RequestOutput]]:
        """(number of the prompt, news) as soon as there are any; the last news of each have its trace."""
        ...

    def update_weights(self, *, policy_version: int) -> None:
        """The model's weights have changed in place."""
        ...


def derive_seed(*keys: int | str) -> int:
    """A seed in [0, 2**62) from whatever names the sequence, for example (run seed, step, prompt, member)."""
    return int.from_bytes(hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()) >> 2


def seeded_params(
    engine: Sampler, tokenizer: ChatTokenizer, params: SamplingParams, num_examples: int, group_size: int = 1,
    seed_keys: tuple[int | str, ...] = (),
) -> list[SamplingParams]:  # fmt: skip
    """Parameters of every response, group by group: a seed of its own each, and the stop tokens of model and template."""
    if params.stop_token_ids is None and not params.ignore_eos:
        params = params.model_copy(update={"stop_token_ids": tokenizer.stop_ids(engine.model.spec.eos_token_ids)})
    return [
        params.model_copy(update={"seed": derive_seed(params.seed, *seed_keys, index, member)})
        for index in range(num_examples)
        for member in range(group_size)
    ]


class GroupScoring:
    """Scores responses beside the decoding, each as soon as it is there.

    Responses are numbered by example times `group_size` plus member. rewards: None leaves rewards unset.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, examples: Sequence[Example], group_size: int, rewards: RewardPool | None
    ):  # fmt: skip
        self.tokenizer, self.examples, self.group_size, self.rewards = tokenizer, examples, group_size, rewards
        self._rollouts: dict[int, Rollout] = {}
        self._scores: dict[int, Future[Score]] = {}
        self._whole: list[int] = []  # examples with all their responses

    def add(self, index: int, trace: Trace) -> None:
        place, member = divmod(index, self.group_size)
        name = f"{self.examples[place].id}#{member}"
        rollout = self._rollouts[index] = Rollout(trace, self.tokenizer.decode(trace.response_ids), name=name)
        if self.rewards is not None:
            if self.rewards.needs_pieces:
                rollout.pieces = self.tokenizer.shares(trace.response_ids)
            self._scores[index] = self.rewards.submit(rollout, self.examples[place])
        if all(member in self._rollouts for member in self._members(place)):
            self._whole.append(place)

    def scored(self) -> list[int]:
        """Places of the examples for which `group` would not wait."""
        if self.rewards is None:
            return self._whole.copy()
        return [place for place in self._whole if all(self._scores[index].done() for index in self._members(place))]

    def group(self, place: int) -> RolloutGroup:
        """All responses to the example, with their final rewards, once; waits for them. Raises what the reward raised."""
        self._whole.remove(place)
        group = RolloutGroup(self.examples[place], [self._rollouts.pop(index) for index in self._members(place)])
        if self.rewards is not None:
            scores = [self._scores.pop(index).result() for index in self._members(place)]
            final = self.rewards.finish_group(group.rollouts, scores, group.example)
            for rollout, given in zip(group.rollouts, final, strict=True):
                rollout.reward, rollout.reward_reason, rollout.token_rewards, rollout.reward_parts = given
        return group

    def _members(self, place: int) -> range:
        return range(place * self.group_size, (place + 1) * self.group_size)


def make_rollouts(
    engine: Sampler, tokenizer: ChatTokenizer, examples: Sequence[Example], params: SamplingParams, rewards: RewardPool | None,
    *, group_size: int = 1, seed_keys: tuple[int | str, ...] = (), finished: Mapping[int, Trace] | None = None,
    on_finished: Callable[[int, Trace], None] | None = None, ranks: Ranks = ALONE,
) -> list[RolloutGroup]:  # fmt: skip
    """`group_size` rewarded responses for each example.

    Each response draws from its own seed, derived from params.seed, `seed_keys` and its place (example, member), and does
    not depend on the others. Responses stop at the model's end tokens and at the token that ends a turn of the chat
    template, unless params.stop_token_ids says otherwise. A response is scored as soon as it is decoded. rewards: None
    leaves rewards unset (plain decoding).

    finished: traces that are there already, by the number of the response (example times `group_size` plus member); they are
    scored, not decoded. on_finished: called with each other trace as soon as it is decoded. ranks: each decodes and scores
    its share of the examples, and all get all groups.
    """
    if rewards is not None:
        rewards.check(examples)
    prompts = [tokenizer.prompt_ids(example) for example in examples]
    by_length = sorted(range(len(examples)), key=lambda place: -len(prompts[place]))
    mine = sorted(by_length[ranks.rank :: ranks.size])
    seeded = seeded_params(engine, tokenizer, params, len(examples), group_size, seed_keys)
    scoring = GroupScoring(tokenizer, examples, group_size, rewards)
    for index, trace in (finished or {}).items():
        scoring.add(index, trace)
    indices = [place * group_size + member for place in mine for member in range(group_size)]
    left = [index for index in indices if index not in (finished or {})]
    for number, output in engine.stream([prompts[i // group_size] for i in left], [seeded[i] for i in left]):
        if output.trace is not None:
            if on_finished is not None:
                on_finished(left[number], output.trace)
            scoring.add(left[number], output.trace)
    start = time.monotonic()
    groups = {place: scoring.group(place) for place in mine}
    if rewards is not None:
        rewards.waited_s += time.monotonic() - start
    everywhere = {place: group for of_rank in ranks.gather(groups) for place, group in of_rank.items()}
    return [everywhere[place] for place in range(len(examples))]
