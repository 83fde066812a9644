"""Whose weights decode which step: in turns with the updates, or one step ahead, beside them."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

import torch

from unmask.dist import Ranks
from unmask.rl.collect import Collected
from unmask.rl.fleet import Fleet
from unmask.rl.rollout import Sampler
from unmask.train.stopwatch import Stopwatch
from unmask.train.trainer import Trainer
from unmask.types import Example, Rollout, RolloutGroup, Trace

AHEAD = "ahead"  # key of the loop's state in a checkpoint


class StepRollouts:
    """The rollouts of one step after the other.

    With `max_staleness` 0, those of a step are decoded with the weights that it is about to train. With 1, they are decoded in
    a thread while the step before trains: with the weights that that step began with (the first step aside). In both, weights,
    prompts and seeds follow from the number of the step, and so do the rollouts.

    collect_step: all of a step's rollouts, with the sampler's weights. state: the loop's, which a checkpoint keeps. Of several
    ranks, each decodes its share; with a fleet the first does everything, and the others are told.
    """

    def __init__(
        self, sampler: Sampler, collect_step: Callable[[int], Collected], trainer: Trainer, num_steps: int,
        state: dict[str, Any], examples: Callable[[int, int], list[Example]],
    ):  # fmt: skip
        self.sampler, self.collect_step, self.trainer, self.num_steps = sampler, collect_step, trainer, num_steps
        self.state = state
        self.ranks: Ranks = trainer.ranks
        self.fleet = sampler if isinstance(sampler, Fleet) else None
        self.is_ahead = self.fleet is not None and self.fleet.config.max_staleness > 0
        self._next: Future[Collected] | None = None
        if AHEAD in state and self.is_ahead:
            self._next = Future()
            self._next.set_result(load_collected(state[AHEAD], examples))

    def of_step(self, step: int, clock: Stopwatch) -> Collected:
        """Raises what decoding and rewards raise. clock: is told what takes the time; "rollout_s" goes on."""
        self.state.pop(AHEAD, None)
        if self._next is None:
            self._send_weights(clock)
            collected = self._on_first(lambda: self.collect_step(step))
        else:
            clock.begin("rollout_s")
            collected = self._on_first(self._next.result)
            self._next = None
        if self.is_ahead and step + 1 < self.num_steps:
            self._send_weights(clock)
            self._next = in_thread(lambda: self.collect_step(step + 1)) if self.ranks.is_first else Future()
        return collected

    def keep(self) -> None:
        """Before a checkpoint: the rollouts of the next step, which the weights of the checkpoint did not make, are kept in it.
        Waits for them, as the next step would."""
        if self._next is not None and self.ranks.is_first:
            self.state[AHEAD] = dump_collected(self._next.result(), self.state["num_prompts"])

    def _send_weights(self, clock: Stopwatch) -> None:
        clock.begin("publish_s")
        if self.fleet is None:
            self.trainer.publish(self.sampler.model)
        self.sampler.update_weights(policy_version=self.trainer.optimizer_step)
        clock.begin("rollout_s")

    def _on_first(self, collect: Callable[[], Collected]) -> Collected:
        if self.fleet is None:
            return collect()
        return self.ranks.of_first(collect() if self.ranks.is_first else Collected([], [], 0))


def in_thread(function: Callable[[], Collected]) -> Future[Collected]:
    """Its result, or what it raises. The thread does not keep the process from ending."""
    future: Future[Collected] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised where the result is wanted
            future.set_exception(error)

    threading.Thread(target=run, name="unmask rollouts", daemon=True).start()
    return future


def dump_collected(collected: Collected, num_prompts: int) -> dict[str, Any]:
    """As plain numbers and one tensor of compressed JSON. num_prompts: how many prompts the run has taken, these included."""
    where = {id(group): place for place, group in enumerate(collected.groups)}
    groups = [[asdict(rollout) for rollout in group.rollouts] for group in collected.groups]
    packed = zlib.compress(json.dumps(groups).encode(), 1)
    return {
        "first_prompt": num_prompts - len(groups),
        "kept": [where[id(group)] for group in collected.kept],
        "num_rounds": collected.num_rounds,
        "groups": torch.frombuffer(bytearray(packed), dtype=torch.uint8),
    }


def load_collected(state: dict[str, Any], examples: Callable[[int, int], list[Example]]) -> Collected:
    """Inverse of `dump_collected`. examples: so many of the run's order, from that place on."""
    groups = json.loads(zlib.decompress(state["groups"].numpy().tobytes()))
    made = [
        RolloutGroup(example, [Rollout(**{**rollout, "trace": Trace(**rollout["trace"])}) for rollout in rollouts])
        for example, rollouts in zip(examples(state["first_prompt"], len(groups)), groups, strict=True)
    ]
    return Collected(made, [made[place] for place in state["kept"]], state["num_rounds"])
