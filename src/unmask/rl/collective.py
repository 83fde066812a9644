"""A group in which the trainer sends bytes to all actors at once, by NCCL or gloo, apart from the group of the ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where and as whom to join. The trainer is member 0 and `host` its machine, where it holds the store at `port`."""

    host: str
    port: int
    name: str
    size: int
    timeout_s: float
    member: int = 0

    def of(self, member: int) -> Meeting:
        return replace(self, member=member)


def open_store(host: str, timeout_s: float) -> dist.TCPStore:
    """Where members of later groups find each other; its port is one that is free."""
    return dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


class SendGroup:
    """What member 0 sends, all others get. Members are made at the same time, each by itself, and wait for each other.

    Raises `RuntimeError` (this, and `send`) when one of them does not come or is gone, after `timeout_s` at the latest.
    """

    def __init__(self, meeting: Meeting, device: torch.device, store: dist.TCPStore | None = None):
        timeout = timedelta(seconds=meeting.timeout_s)
        self._store = store or dist.TCPStore(meeting.host, meeting.port, is_master=False, timeout=timeout)
        place = dist.PrefixStore(meeting.name, self._store)
        self.device = device
        self._group: Any
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            self._group = dist.ProcessGroupNCCL(place, meeting.member, meeting.size, options)
        else:
            self._group = dist.ProcessGroupGloo(place, meeting.member, meeting.size, timeout)

    def send(self, chunk: Tensor) -> Tensor:
        """Member 0's uint8 chunk, in the memory of the others' chunks of the same size, too."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([chunk], options).wait()
        return chunk

    def receive(self, size: int) -> Tensor:
        return self.send(torch.empty(size, dtype=torch.uint8, device=self.device))
