"""Chrome traces of single steps (`train.profile_steps`) through torch's profiler: RUN/profiles/step-00000003-rank-0.json.gz."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from unmask.errors import UnmaskError
from unmask.files import new_file

PROFILES = "profiles"


class StepProfiler:
    """Records the steps of these numbers, each between `begin` and `end`, on this rank."""

    def __init__(self, folder: Path, steps: Collection[int], device: torch.device, rank: int):
        self.folder, self.steps, self.rank = folder / PROFILES, frozenset(steps), rank
        self.activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profile: profile | None = None
        self._step = 0

    def begin(self, step: int) -> None:
        """step: counted from 1."""
        if step in self.steps:
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler says on stderr when it starts and stops
            self._step, self._profile = step, profile(activities=self.activities, record_shapes=True)
            self._profile.start()

    def end(self) -> Path | None:
        """The trace that was written, if this step is one to be recorded. Raises `UnmaskError` where it cannot be."""
        if self._profile is None:
            return None
        recorded, self._profile = self._profile, None
        recorded.stop()
        path = self.folder / f"step-{self._step:08d}-rank-{self.rank}.json.gz"
        with new_file(path) as temporary:
            plain = temporary.with_name(f"{temporary.name}.json")
            try:
                recorded.export_chrome_trace(str(plain))
                check_whole(plain, path)
                with open(plain, "rb") as source, gzip.open(temporary, "wb", compresslevel=3) as target:
                    shutil.copyfileobj(source, target)
            finally:
                plain.unlink(missing_ok=True)
        return path

    def close(self) -> None:
        """Drops a step that has not come to its end."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None


def check_whole(plain: Path, path: Path) -> None:
    """Raises `UnmaskError` unless the JSON has its end: the profiler writes it without a word about a full disk."""
    with open(plain, "rb") as stream:
        stream.seek(-min(16, os.fstat(stream.fileno()).st_size), os.SEEK_END)
        if not stream.read().rstrip().endswith(b"}"):
            raise UnmaskError(f"{path}: the trace could not be written whole; is the disk full?")
