"""The trainer's weights on their way to the actors: kept in Ray's object store, or sent through a group."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from unmask.config.training import FleetConfig
from unmask.dist import Ranks
from unmask.models import Decoder
from unmask.rl.collective import Meeting, SendGroup, open_store
from unmask.rl.member import Member
from unmask.rl.weights import TensorInfo, chunk_sizes, cut, describe, split_names, whole_tensors

MEETING_S = 30.0  # that a group may take to come together, or to send a version


class WeightSender:
    """One for each rank; the first alone sends. ray: the package, connected; the first rank sets it.

    Through the object store, each actor fetches a version when it gets a task for it. Through a group, those that are there and
    idle get it at once, and who comes later fetches it from the store, too. What never changes in training is sent once.
    """

    def __init__(self, config: FleetConfig, model: Decoder, precision: str, ranks: Ranks, is_collective: bool):
        self.config, self.model, self.precision = config, model, precision
        self.ranks, self.is_collective = ranks, is_collective
        self.say: Callable[[str], None] = lambda line: None
        self.ray: Any = None
        self.version: int | None = None
        self.num_collective = 0  # versions that were sent through a group
        fixed, trained = split_names(model)
        self._names = {"fixed": fixed, "trained": trained}
        self._infos: dict[str, list[TensorInfo]] = {}
        self._chunks: dict[str, list[Any]] = {}  # in the object store, or arrays that may be put there
        self._group: SendGroup | None = None
        self._met: list[Member] = []  # in the group
        self._store: Any = None
        self._num_meetings = 0

    def announce(self, version: int, members: list[Member]) -> None:
        """The model's weights, as they are now, are those of this version. Called on all ranks, which may each hold a part.

        members: the actors that are idle.
        """
        if version == self.version:
            return
        self.version = version
        for kind, names in self._names.items():
            if kind == "fixed" and kind in self._infos:
                continue
            infos = self._infos[kind] = describe(self.model, names, self.precision)
            tensors = whole_tensors(self.model, infos)
            chunks = cut(tensors, self.config.chunk_mb * 10**6)
            if not self.ranks.is_first:
                deque(tensors, maxlen=0)
            elif kind == "trained" and self.is_collective:
                self._chunks[kind] = self._send(chunks, [m for m in members if m.version is not None])
            else:
                self._chunks[kind] = [self.ray.put(chunk.cpu().numpy()) for chunk in chunks]

    def bring(self, member: Member) -> Any:
        """Makes sure that the actor has the present version before what it is told next; the version, or its promise."""
        if member.version == self.version:
            return self.version
        kinds = ("fixed", "trained") if member.version is None else ("trained",)
        for kind in kinds:
            self._chunks[kind] = [self.ray.put(c) if isinstance(c, np.ndarray) else c for c in self._chunks[kind]]
        infos = [info for kind in kinds for info in self._infos[kind]]
        member.version = self.version
        return member.handle.set_weights.remote(self.version, infos, *(c for kind in kinds for c in self._chunks[kind]))

    def _send(self, chunks: Iterator[Tensor], members: list[Member]) -> list[np.ndarray]:
        """Through the group; where that fails, the actors fetch this version from the store. The chunks, in either case."""
        kept, failure = [], ""  # a text: an exception would keep the group from being freed, and actors waiting
        infos, receipts = self._infos["trained"], []
        limit = min(self.config.timeout_s, MEETING_S)
        try:
            if members := [member for member in members if self._is_there(member, limit)]:
                self._meet(members, limit)
                sizes = chunk_sizes(infos, self.config.chunk_mb * 10**6)
                receipts = [member.handle.receive_weights.remote(self.version, infos, sizes) for member in members]
        except (RuntimeError, self.ray.exceptions.RayError) as error:
            failure = first_line(error)
        for chunk in chunks:  # all of them, whatever happens: other ranks go through them, too
            kept.append(chunk.cpu().numpy())
            if receipts and self._group is not None and not failure:
                try:
                    self._group.send(chunk)
                except RuntimeError as error:
                    failure = first_line(error)
        try:
            if receipts and not failure:
                self.ray.get(receipts, timeout=limit)
                self.num_collective += 1
                for member in members:
                    member.version = self.version
        except self.ray.exceptions.RayError as error:
            failure = first_line(error)
        if failure:
            self._group, self._met = None, []  # whoever waits for more is freed
            self.say(f"weights of optimizer step {self.version} go through Ray's object store: {failure}")
        return kept

    def _is_there(self, member: Member, limit: float) -> bool:
        """Of an actor that died meanwhile, nobody has been told."""
        try:
            self.ray.get(member.handle.ping.remote(), timeout=limit)
        except self.ray.exceptions.RayError:
            return False
        return True

    def _meet(self, members: list[Member], limit: float) -> None:
        """Forms the group anew where others are there than last time. Raises `RuntimeError`, and Ray's errors."""
        if self._met == members:
            return
        self._group, self._met = None, []
        host = self.ray.util.get_node_ip_address()
        if self._store is None:
            self._store = open_store(host, limit)
        self._num_meetings += 1
        meeting = Meeting(host, self._store.port, f"weights-{self._num_meetings}", len(members) + 1, limit)
        joining = [member.handle.join.remote(meeting.of(i)) for i, member in enumerate(members, start=1)]
        self._group = SendGroup(meeting, self.model.device, self._store)
        self.ray.get(joining, timeout=limit)
        self._met = members


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
