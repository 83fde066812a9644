"""Writing checkpoints beside the training: copied at once, written in a thread, there when all of it is.

All ranks copy what they hold of weights and optimizers; a run goes on as soon as that is done. Then the first one gathers and
writes the weights, and each writes its part of the optimizers' tensors.
"""

from __future__ import annotations

import copy
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.dist import Ranks, is_sharded
from unmask.errors import UnmaskError
from unmask.files import describe_os_error, new_folder, sha256
from unmask.metrics import JsonlWriter
from unmask.models.checkpoint import write_adapters, write_weights
from unmask.models.hub import carry_files
from unmask.train.checkpoint import MANIFEST, OPTIMIZER, STATE, list_checkpoints, manifest_text, step_folder
from unmask.train.disk_space import check_space
from unmask.train.optimizer_files import optimizer_tensors
from unmask.train.trainer import Trainer
from unmask.train.weight_parts import WeightParts


class CheckpointWriter:
    """Of one run, one checkpoint after the other.

    trainers: by the folder of their model within a checkpoint, "" for the checkpoint itself. tokenizer_from: a folder.
    """

    def __init__(
        self, folder: Path, trainers: Mapping[str, Trainer], tokenizer_from: Path, ranks: Ranks, *, keep_last: int,
        is_asynchronous: bool = True,
    ):  # fmt: skip
        self.folder, self.trainers, self.tokenizer_from, self.ranks = folder, trainers, tokenizer_from, ranks
        self.keep_last, self.is_asynchronous = keep_last, is_asynchronous
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._group = ranks.new_group()

    def save(
        self, step: int, state: dict[str, Any], best_step: int | None = None, records: Sequence[JsonlWriter] = (),
        on_written: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Begins to write checkpoints/step-N, after the one before; this one and then `on_written` may still be waited for.

        Older ones are removed afterwards, all but the newest `keep_last` and that of `best_step`. records: files that the
        state knows lines of, which are made durable. on_written: called on the first rank. Raises `UnmaskError`, for the
        one before, too.
        """
        from torch.distributed import checkpoint as dcp  # where needed: it takes a second to import

        self.wait()
        self._check_space(step)
        configs = {name: copy.deepcopy(trainer.model.config) for name, trainer in self.trainers.items()}
        parts = {name: WeightParts(trainer.model, self.ranks) for name, trainer in self.trainers.items()}
        tensors = self._optimizer_share()
        stack = ExitStack()
        temporary = None
        if self.ranks.is_first:
            temporary = stack.enter_context(new_folder(self.folder / step_folder(step), marker=MANIFEST))
        shared = self.ranks.of_first(temporary)
        assert shared is not None
        # Files are synced as the folder takes its place.
        # The tensors are on the CPU: nothing has to be copied ahead of writing.
        writer = dcp.FileSystemWriter(shared / OPTIMIZER, sync_files=False, per_thread_copy_ahead=0)

        has_optimizer = any(trainer.optimizer.state for trainer in self.trainers.values())

        def write() -> None:
            with stack:
                weights = {name: part.together(self._group) for name, part in parts.items()}
                if temporary is not None:
                    self._write_first(temporary, weights, configs, state)
                if has_optimizer:
                    try:
                        dcp.save(tensors, storage_writer=writer, process_group=self._group, no_dist=self.ranks.size == 1)
                    except dcp.CheckpointException as error:  # no `Exception`, and not what it is about
                        causes = [cause for cause, _ in error.failures.values()]
                        full = next((cause for cause in causes if isinstance(cause, OSError)), None)
                        raise describe_os_error(full, shared) if full else RuntimeError(str(error)) from error
                if temporary is not None:
                    files = {
                        file.relative_to(temporary).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
                        for file in temporary.rglob("*")
                        if file.is_file()
                    }
                    for record in records:
                        record.sync()
                    (temporary / MANIFEST).write_text(manifest_text(step, dict(sorted(files.items()))), encoding="utf-8")
            if temporary is not None:
                on_written()
                self._remove_old(best_step)

        def write_and_keep_errors() -> None:
            try:
                write()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=write_and_keep_errors, name="checkpoint", daemon=True)
        self._thread.start()
        if not self.is_asynchronous:
            self.wait()

    def wait(self) -> None:
        """Returns when everything is written. Raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises what has gone wrong so far."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Lets a process that is alone finish what it writes, whatever becomes of it; others may be gone."""
        if self._thread is not None and self.ranks.size == 1:
            self._thread.join()

    def _optimizer_share(self) -> dict[str, Tensor]:
        """Copies of this rank's parts of sharded tensors; of those that all ranks have, each takes some."""
        found = optimizer_tensors({name: (trainer.model, trainer.optimizer) for name, trainer in self.trainers.items()})
        size, rank = self.ranks.size, self.ranks.rank
        mine = {key: tensor for i, (key, tensor) in enumerate(found.items()) if is_sharded(tensor) or i % size == rank}
        return {key: tensor.to("cpu", copy=True) for key, tensor in mine.items()}

    def _remove_old(self, best_step: int | None) -> None:
        """All but the newest `keep_last` and the best, each at once: under another name it is none any more."""
        for old in list_checkpoints(self.folder)[: -self.keep_last]:
            if best_step is None or old.name != step_folder(best_step):
                gone = old.with_name(f".{old.name}.tmp-{os.getpid()}")
                old.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _check_space(self, step: int) -> None:
        """The first rank looks, for all: the others may see what it is still removing."""
        problem = None
        if self.ranks.is_first:
            try:
                check_space(self.folder / step_folder(step), self.trainers.values(), self.tokenizer_from)
            except UnmaskError as error:
                problem = str(error)
        if (problem := self.ranks.of_first(problem)) is not None:
            raise UnmaskError(problem)

    def _write_first(
        self, temporary: Path, weights: Mapping[str, dict[str, Tensor]], configs: Mapping[str, dict[str, Any]],
        state: dict[str, Any],
    ) -> None:  # fmt: skip
        """What the first rank alone writes."""
        for name, trainer in self.trainers.items():
            (temporary / name).mkdir(exist_ok=True)
            write = write_adapters if trainer.model.adapters else write_weights
            write(trainer.model, temporary / name, parameters=weights[name], config=configs[name])
        carry_files(self.tokenizer_from, temporary)
        torch.save(state, temporary / STATE)
