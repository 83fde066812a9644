"""Rollout actors through Ray: started, given weights and tasks, replaced when they die. The one importer of ray."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from unmask.config.training import FleetConfig
from unmask.dist import ALONE, Ranks
from unmask.engine.request import RequestOutput
from unmask.errors import UnmaskError
from unmask.models import Decoder
from unmask.rl.actor import ActorPlan, RolloutActor
from unmask.rl.weights import TensorInfo, cut, describe, split_names, whole_tensors
from unmask.types import SamplingParams, Trace

DEATHS_PER_ACTOR = 3  # so many in a row without a result, and the run ends
_TICK_S = 0.5  # between looks at what should have come
_CONNECT_S = 5.0


def num_gpus(config: FleetConfig, device: torch.device) -> float:
    """Of an actor, where the training is on `device`."""
    return float(device.type == "cuda") if config.num_gpus_per_actor is None else config.num_gpus_per_actor


def check_fleet(config: FleetConfig, device: torch.device) -> None:
    """Raises `UnmaskError` for what can be known to be missing before anything is started."""
    if not config.num_actors:
        return
    if importlib.util.find_spec("ray") is None:
        raise UnmaskError("fleet.num_actors needs the package ray; install it with: pip install 'unmask[ray]'")
    if config.address.startswith("ray://"):
        raise UnmaskError(f"fleet.address {config.address!r} is a Ray client's; give auto, or HOST:PORT of the head")
    if not config.address:
        check_room(config, device, {"GPU": float(torch.cuda.device_count()), "CPU": float("inf")})


def check_room(config: FleetConfig, device: torch.device, there: dict[str, float]) -> None:
    """Raises `UnmaskError` where the actors need more than there is."""
    for name, each in (("GPU", num_gpus(config, device)), ("CPU", config.num_cpus_per_actor)):
        wanted, found = config.num_actors * each, there.get(name, 0.0)
        if wanted > found:
            raise UnmaskError(
                f"fleet.num_actors: {config.num_actors} actors with {each:g} {name}s each need {wanted:g}, there are {found:g}"
            )


@dataclass(slots=True, eq=False)
class Member:
    """One actor. It is starting (`started` will be there), then idle, or busy with a task (`news` of it come)."""

    handle: Any
    started: Any
    is_ready: bool = False
    pid: int = 0
    version: int | None = None  # of the weights it was last sent
    task: list[int] = field(default_factory=list)  # numbers of prompts
    news: Any = None
    heard_at: float = 0.0

    @property
    def awaited(self) -> Any:
        return self.news if self.is_ready else self.started


class Fleet:
    """Decodes as an `Engine` does, with the trainer's weights as they were at the last `update_weights`. A context manager.

    Prompts, the longest first, make tasks of even size, and actors take one after the other. The results of a task follow from
    it alone: one whose actor died is decoded again, whole, and gives the same. `num_replaced` counts actors.

    Of several ranks all have one: the first alone has actors, the others help to put weights together. `say` gets a line for
    the user now and then.
    """

    def __init__(self, config: FleetConfig, model: Decoder, plan: ActorPlan, ranks: Ranks = ALONE):
        self.config, self.model, self.plan, self.ranks = config, model, plan, ranks
        self.say: Callable[[str], None] = lambda line: None
        self.num_replaced = 0
        self.version: int | None = None
        self._fixed, self._trained = split_names(model)
        self._members: list[Member] = []
        self._deaths = 0  # since the last result
        self._infos: dict[str, list[TensorInfo]] = {}
        self._chunks: dict[str, list[Any]] = {}  # in the object store: of what never changes, and of the present version
        self._is_closed, self._streaming = False, threading.Lock()

    def __enter__(self) -> Fleet:
        if self.ranks.is_first:
            self._ray = start_ray(self.config, self.model.device)
            self._plan = self._ray.put(self.plan)
            self._members = [self._new_member() for _ in range(self.config.num_actors)]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_closed = True
        if self.ranks.is_first:
            with suppress(Exception), self._streaming:  # a stream in another thread ends first
                for member in self._members:
                    self._ray.kill(member.handle)
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

    def update_weights(self, *, policy_version: int) -> None:
        """The model's weights, as they are now, are those of this version. Called on all ranks."""
        if policy_version == self.version:
            return
        self.version = policy_version
        for kind, names in (("fixed", self._fixed), ("trained", self._trained)):
            if kind == "fixed" and kind in self._infos:
                continue
            self._infos[kind] = describe(self.model, names)
            chunks = cut(whole_tensors(self.model, names), self.config.chunk_mb * 10**6)
            self._chunks[kind] = [self._ray.put(c.cpu().numpy()) for c in chunks] if self.ranks.is_first else list(chunks)[:0]

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
                        self._replace(member, str(error).strip().splitlines()[0])
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
        version: Any = self.version
        if member.version != self.version:
            kinds = ("fixed", "trained") if member.version is None else ("trained",)
            infos = [info for kind in kinds for info in self._infos[kind]]
            chunks = [chunk for kind in kinds for chunk in self._chunks[kind]]
            version = member.handle.set_weights.remote(self.version, infos, *chunks)
            member.version = self.version
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
            raise UnmaskError(f"fleet: no rollout actor was ready within {limit:g} seconds (fleet.timeout_s)")
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
            raise UnmaskError(f"fleet: {limit} rollout actors died in a row without a result; the last one: {reason}")
        self._members[self._members.index(member)] = self._new_member()
        self.say(f"rollout actor {member.pid or 'that was starting'} is replaced: {reason}")


def start_ray(config: FleetConfig, device: torch.device) -> Any:
    """The package, connected to the cluster of the recipe or to one of its own. Raises `UnmaskError`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else each actor without a GPU warns
    import ray
    import ray._private.worker as noise

    # Ray prints the death of every worker to stdout, which is ours. A private name: without it the lines are printed.
    noise.print_to_stdstream = lambda *args, **kwargs: None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if config.address:
        _check_address(config.address)
    else:
        options |= {"num_cpus": config.num_actors * config.num_cpus_per_actor, "include_dashboard": False}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        if not config.address:
            gpus = _free_gpus(device) if num_gpus(config, device) else []
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            options["num_gpus"] = len(gpus)
        ray.init(address=config.address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = f"fleet.address {config.address}: no Ray cluster there" if config.address else "fleet: Ray did not start"
        raise UnmaskError(f"{where}: {' '.join(str(error).split())[:300]}") from None
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
    try:
        check_room(config, device, ray.cluster_resources())
    except UnmaskError:
        ray.shutdown()
        raise
    return ray


def _free_gpus(device: torch.device) -> list[str]:
    """Those of this machine that no rank trains on; all of them, to be shared, where there is no other."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    names = [name for name in visible.split(",") if name]
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cuda" else 0
    return names[num_ranks:] or names


def _check_address(address: str) -> None:
    """Ray itself tries for minutes. Raises `UnmaskError`."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise UnmaskError(
            f"fleet.address {address}: no Ray cluster there: {error}; give auto, or HOST:PORT of its head"
        ) from None
