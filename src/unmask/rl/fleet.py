"""Rollout actors: started, given weights and tasks, replaced when they die."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from unmask.config.training import FleetConfig
from unmask.dist import ALONE, Ranks
from unmask.engine.request import RequestOutput
from unmask.errors import UnmaskError
from unmask.models import Decoder
from unmask.rl.actor import ActorPlan, RolloutActor
from unmask.rl.cluster import machines_of, num_gpus, num_with_room, start_ray
from unmask.rl.member import Member
from unmask.rl.sending import WeightSender
from unmask.types import SamplingParams, Trace

DEATHS_PER_ACTOR = 5  # so many in a row without a result, and the run ends
_TICK_S = 0.5  # between looks at what should have come


class Fleet:
    """Decodes as an `Engine` does, with the trainer's weights as they were at the last `update_weights`. A context manager.

    Prompts, the longest first, make tasks of even size, and actors take one after the other. The results of a task follow from
    it alone: one whose actor died is decoded again, whole, and gives the same. `num_replaced` counts actors. Where a cluster
    has not room for all, those that have begin, and others join as machines do.

    Of several ranks all have one: the first alone has actors, the others help to put weights together. `say` gets a line for
    the user now and then.
    """

    def __init__(self, config: FleetConfig, model: Decoder, plan: ActorPlan, ranks: Ranks = ALONE):
        self.config, self.model, self.plan, self.ranks = config, model, plan, ranks
        self.say: Callable[[str], None] = lambda line: None
        self.num_replaced = 0
        self._note = ""  # for the user, as soon as it can be said
        self.sender = WeightSender(
            config,
            model,
            plan.precision,
            ranks,
            config.weight_transfer == "collective"
            or (config.weight_transfer == "auto" and model.device.type == plan.device == "cuda"),
        )
        self._members: list[Member] = []
        self._deaths = 0  # since the last result
        self._is_closed, self._streaming = False, threading.Lock()

    def __enter__(self) -> Fleet:
        if self.ranks.is_first:
            self._ray, self._owns_ray = start_ray(self.config, self.model.device)
            self.sender.ray, self._plan = self._ray, self._ray.put(self.plan)
            num = num_with_room(self.config, self.model.device, machines_of(self._ray))
            if num < self.config.num_actors:
                self._note = f"fleet: {num} of {self.config.num_actors} actors have room in the cluster; others wait for it"
            self._members = [self._new_member() for _ in range(self.config.num_actors)]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_closed = True
        if self.ranks.is_first:
            self._streaming.acquire(timeout=10 * _TICK_S)  # a stream in another thread ends first
            for member in self._members:
                with suppress(self._ray.exceptions.RayError):
                    self._ray.kill(member.handle)
            if self._owns_ray:
                self._ray.shutdown()

    def _new_member(self) -> Member:
        gpus = num_gpus(self.config, self.model.device)
        kind = self._ray.remote(RolloutActor).options(
            num_cpus=self.config.num_cpus_per_actor, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        handle = kind.remote()
        return Member(handle, handle.build.remote(self._plan))

    def pids(self) -> list[int]:
        """Process ids of the actors that are ready."""
        return [member.pid for member in self._members if member.is_ready]

    def counts(self) -> dict[str, float]:
        """For the timings of the first rank: actors that are ready, and that were replaced so far."""
        if not self.ranks.is_first:
            return {}
        return {"num_actors": len(self.pids()), "num_replaced_actors": self.num_replaced}

    def update_weights(self, *, policy_version: int) -> None:
        """The model's weights, as they are now, are those of this version. Called on all ranks, and not during a stream."""
        self.sender.say = self.say
        if self._note:
            self.say(self._note)
            self._note = ""
        self.sender.announce(policy_version, [member for member in self._members if member.is_ready and not member.task])

    def stream(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> Iterator[tuple[int, RequestOutput]]:
        """(number of the prompt, its trace), each once, as they come.

        Raises `UnmaskError` when actors die again and again, or there is none for `timeout_s`; what an actor raises, is raised.
        """
        with self._streaming:
            waiting = deque(self._tasks(prompts))
            missing = set(range(len(prompts)))
            self._alive_at = time.monotonic()
            while waiting or any(member.task for member in self._members):
                for member in self._members:
                    if waiting and member.is_ready and not member.task:
                        self._begin(member, waiting.popleft(), prompts, params)
                for member in self._with_news():
                    number = member.task
                    try:
                        traces = self._read(member)
                    except self._ray.exceptions.RayTaskError as error:
                        if isinstance(error.cause, UnmaskError):
                            raise UnmaskError(f"rollout actor: {error.cause}") from None
                        raise
                    except self._ray.exceptions.RayError as error:  # the actor is gone, or what it had sent
                        waiting.extendleft([number] if number else [])
                        has_died = isinstance(error, self._ray.exceptions.ActorDiedError)
                        self._replace(member, "its process died" if has_died else str(error).strip().splitlines()[0])
                        continue
                    for place, trace in traces:
                        index = number[place]
                        if index in missing:  # not from the actor that died before it had finished the task
                            missing.remove(index)
                            yield index, RequestOutput(index, [], trace)
                waiting.extendleft(self._late())

    def _tasks(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Which prompts are decoded together: it follows from them and the recipe, and not from who is there to do it."""
        most = self.config.responses_per_task or min(
            -(-len(prompts) // (2 * self.config.num_actors)), self.plan.limits.max_sequences
        )
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        return [order[i : i + most] for i in range(0, len(order), most)]

    def _begin(
        self, member: Member, task: list[int], prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> None:
        version = self.sender.bring(member)
        decode = member.handle.decode.options(num_returns="streaming")
        member.news = decode.remote(version, [prompts[i] for i in task], [params[i] for i in task])
        member.task, member.heard_at = task, time.monotonic()

    def _with_news(self) -> list[Member]:
        """Members that have started, sent traces, finished or died; waits for a tick, at most."""
        if self._is_closed:
            raise RuntimeError("the fleet was closed")
        awaited = [member.awaited for member in self._members if member.task or not member.is_ready]
        self._ray.wait(awaited, num_returns=1, timeout=_TICK_S)
        ready, _ = self._ray.wait(awaited, num_returns=len(awaited), timeout=0)
        return [member for member in self._members if (member.task or not member.is_ready) and member.awaited in ready]

    def _read(self, member: Member) -> list[tuple[int, Trace]]:
        """What is there of a member. Raises Ray's errors."""
        member.heard_at = self._alive_at = time.monotonic()
        if not member.is_ready:
            member.pid, member.is_ready = self._ray.get(member.started), True
            return []
        try:
            traces = self._ray.get(next(member.news))
        except StopIteration:
            member.task, member.news = [], None
            return []
        self._deaths = 0
        return traces

    def _late(self) -> list[list[int]]:
        """Replaces actors without news for too long; their tasks. Raises `UnmaskError` where there is none at all."""
        now, limit = time.monotonic(), self.config.timeout_s
        if not any(member.is_ready for member in self._members) and now - self._alive_at > limit:
            raise UnmaskError(
                f"fleet: no rollout actor was ready within {limit:g} seconds (fleet.timeout_s): none started, or others have "
                "taken the GPUs and CPUs of the cluster"
            )
        tasks = []
        for member in [m for m in self._members if m.task and now - m.heard_at > limit]:
            tasks.append(member.task)
            self._replace(member, f"no news for {limit:g} seconds")
        return tasks

    def _replace(self, member: Member, reason: str) -> None:
        """Raises `UnmaskError` when too many have died in a row."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.handle)
        self._deaths += 1
        self.num_replaced += 1
        limit = DEATHS_PER_ACTOR * self.config.num_actors
        if self._deaths >= limit:
            num = f"{limit} rollout actor{'s' * (limit > 1)} died"
            raise UnmaskError(f"fleet: {num} in a row without a result; the last one: {reason}")
        self._members[self._members.index(member)] = self._new_member()
        self.say(f"rollout actor {member.pid or 'that was starting'} is replaced: {reason}")
