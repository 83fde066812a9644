"""Where a run's records go besides its JSON lines: TensorBoard, Weights & Biases. The one importer of both packages."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from unmask.config import LogConfig
from unmask.errors import UnmaskError
from unmask.files import describe_os_error, write_text

WANDB_ID = "wandb-id.txt"


class Sink(Protocol):
    """Takes the records of a run in their order. What it has of steps that a resumed run does again is not there twice."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step (from 1); several calls for a step have different names."""

    def flush(self) -> None:
        """Called before a checkpoint: what was written must outlive the process."""

    def close(self, is_failed: bool) -> None: ...


def check_packages(log: LogConfig) -> None:
    """Raises `UnmaskError` where a wanted sink's package is not installed."""
    if log.tensorboard:
        _summary_writer()
    if log.wandb_project:
        _wandb()


def open_sinks(log: LogConfig, folder: Path, recipe: Mapping[str, Any], num_steps: int, is_resumed: bool) -> list[Sink]:
    """The sinks a recipe asks for; RUN/tensorboard, RUN/wandb and RUN/wandb-id.txt are theirs.

    recipe: for the record. num_steps: done already; records of later steps are (after a resumption: again) to come.
    Raises `UnmaskError`.
    """
    sinks: list[Sink] = []
    if log.tensorboard:
        sinks.append(TensorBoardSink(folder / "tensorboard", num_steps + 1 if is_resumed else None))
    if log.wandb_project:
        sinks.append(WandbSink(log, folder, recipe))
    return sinks


class TensorBoardSink:
    """Event files. A resumed run begins a new one, whose purge step makes readers drop the later steps of older ones."""

    def __init__(self, folder: Path, purge_step: int | None):
        self.folder = folder
        with self._errors_named():
            self._writer = _summary_writer()(str(folder), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with self._errors_named():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        with self._errors_named():
            self._writer.flush()

    def close(self, is_failed: bool) -> None:
        with self._errors_named():
            self._writer.close()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise describe_os_error(error, self.folder) from error


class WandbSink:
    """One run of Weights & Biases, however often it is resumed: its id is kept in the run folder.

    The service keeps the first value of a step and refuses a second one, so steps that it has are not sent again.
    """

    def __init__(self, log: LogConfig, folder: Path, recipe: Mapping[str, Any]):
        wandb, file = _wandb(), folder / WANDB_ID
        if not file.exists():
            write_text(file, secrets.token_hex(8) + "\n")
        try:
            self._run = wandb.init(
                project=log.wandb_project, name=log.wandb_name or folder.resolve().name, id=file.read_text("utf-8").strip(),
                resume="allow", dir=str(folder), config=dict(recipe), settings={"console": "off", "silent": True},
            )  # fmt: skip
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise UnmaskError(
                f"log.wandb_project: {reason} Then go on with --resume; WANDB_MODE=offline needs no account"
            ) from None
        self._first_step = self._run.starting_step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first_step:
            self._run.log(dict(values), step=step)

    def flush(self) -> None:
        pass  # a process of its own sends the records

    def close(self, is_failed: bool) -> None:
        self._run.finish(exit_code=int(is_failed))


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UnmaskError("log.tensorboard: tensorboard is not installed: pip install 'unmask[tensorboard]'") from None
    return SummaryWriter


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise UnmaskError("log.wandb_project: wandb is not installed: pip install 'unmask[wandb]'") from None
    return wandb
