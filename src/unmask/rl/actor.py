"""What a rollout actor does: it has a model and an engine, gets weights, and decodes tasks. It does not know who calls it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unmask.config.sections import EngineLimits
from unmask.config.training import LoraConfig
from unmask.diffusion.sequence import Decode
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.models import Decoder, ModelSpec
from unmask.models.checkpoint import allocate
from unmask.models.lora import add_lora
from unmask.rl.collective import Meeting, SendGroup
from unmask.rl.weights import TensorInfo, fill
from unmask.train.techniques import lower_copy
from unmask.train.trainer import autocast
from unmask.types import SamplingParams, Trace

NEWS_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class ActorPlan:
    """All that an actor is made of but its weights.

    gpu_share: how much of a GPU is the actor's. decode: token ids to text, for stop strings.
    """

    spec: ModelSpec
    dtype: torch.dtype
    device: str
    precision: str
    num_threads: int
    gpu_share: float
    lora: LoraConfig
    limits: EngineLimits
    decode: Decode | None = None


class RolloutActor:
    """Used from one process of its own. `build` comes first, then weights, then tasks."""

    def build(self, plan: ActorPlan) -> int:
        """Makes model and engine; the process's id. Raises `UnmaskError`."""
        torch.set_num_threads(plan.num_threads)
        with torch.device("meta"):
            model = Decoder(plan.spec)
        self.model = allocate(model, plan.device, plan.dtype).eval()
        if plan.lora.rank:
            add_lora(self.model, **plan.lora.model_dump(exclude={"base_bits"}), base="")
        lower_copy(self.model, plan.precision)
        limits = plan.limits.model_dump()
        if self.model.device.type == "cuda" and plan.gpu_share < 1 and plan.limits.kv_memory_gb is None:
            limits["kv_memory_gb"] = 0.8 * plan.gpu_share * torch.cuda.mem_get_info()[0] / 1e9
        self.engine = Engine(self.model, decode=plan.decode, **limits)
        self.precision, self.version = plan.precision, -1
        return os.getpid()

    def set_weights(self, version: int, infos: Sequence[TensorInfo], *chunks: np.ndarray) -> int:
        """New values of some tensors, which are the policy of this version; the version."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # and is not written to
            fill(self.model, infos, map(torch.from_numpy, chunks))
        self.version = version
        return version

    def ping(self) -> None:
        """Answers."""

    def join(self, meeting: Meeting) -> None:
        """Becomes a member of a group through which weights come; leaves the one before."""
        self.group: SendGroup | None = None
        self.group = SendGroup(meeting, self.model.device)

    def receive_weights(self, version: int, infos: Sequence[TensorInfo], chunk_sizes: Sequence[int]) -> int:
        """`set_weights` from the group."""
        assert self.group is not None
        fill(self.model, infos, map(self.group.receive, chunk_sizes))
        self.version = version
        return version

    def decode(
        self, version: int, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> Iterator[list[tuple[int, Trace]]]:
        """Traces by the number of their prompt, soon after they are finished.

        Nothing is left of earlier tasks: what a task gives follows from its prompts, bit for bit, and not from which actor
        does it after what.
        """
        if version != self.version:
            raise UnmaskError(f"an actor was to decode with weights of version {version}, and has {self.version}")
        self.engine.update_weights(policy_version=version)
        with autocast(self.precision, self.model.device):
            finished, last = [], time.monotonic()
            for i, output in self.engine.stream(prompts, params):
                if output.trace is not None:
                    finished.append((i, output.trace))
                if finished and time.monotonic() - last >= NEWS_EVERY_S:
                    yield finished
                    finished, last = [], time.monotonic()
            yield finished
