"""A run of several processes on this machine: started together, ended together, with one report of what went wrong."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unmask.errors import TryAgainError, UnmaskError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

_REPORT = "TORCHELASTIC_ERROR_FILE"  # where torch's launcher reads what a process of its own says of its end
# In what one says that waited for another: where in torch it did, or who tells it.
_COLLECTIVE = ("torch/distributed/distributed_c10d.py", "gloo/transport", "ProcessGroupNCCL", "NCCL communicator")
_LOST = "waited for a rank that was gone"
GRACE_S = 600  # that ranks have to finish a step and save, after a signal


def run_several(num_processes: int, arguments: list[str], max_restarts: int) -> int:
    """Runs the command line once for each rank, through torch's launcher; the exit code is that of the rank which failed first.

    Where that one asks for it (`TryAgainError`), and `max_restarts` times after another failure that is not a mistake of the
    user's, all ranks start again; those of a run that this process began go on with it. Raises `UnmaskError` for a mistake.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_S))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    from torch.distributed.elastic.multiprocessing import SignalException

    run_id, num_left = uuid.uuid4().hex, max_restarts
    try:
        while True:
            failure = _run_once(num_processes, arguments, run_id)
            if not failure.reason:
                return failure.exit_code
            print(failure.reason if failure.asks_for_more else f"error: {failure.reason}", file=sys.stderr)
            if not failure.asks_for_more:
                if not num_left:
                    return failure.exit_code
                num_left -= 1
            print(f"all ranks start again (--max-restarts: {num_left} left)", file=sys.stderr)
    except SignalException as error:
        return 128 + error.sigval


class Failure(NamedTuple):
    """How the ranks ended: the exit code and, where one failed, which and why, and whether it would go on if started again."""

    exit_code: int
    reason: str = ""
    asks_for_more: bool = False


def _run_once(num_processes: int, arguments: list[str], run_id: str) -> Failure:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("multiprocessing.api", "agent.server.api"):  # what they log of failures is in the report
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=num_processes, run_id=run_id, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1, logs_specs=DefaultLogsSpecs(log_dir=folder),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "unmask", *arguments)
        except ChildFailedError as error:
            return _find_failure(error)
    return Failure(0)


def _find_failure(error: ChildFailedError) -> Failure:
    """Which rank failed and why: one that asks for more, or the first of those that did not only lose another one. Raises
    `UnmaskError` for a mistake of the user's."""
    for failure in error.failures.values():
        if failure.exitcode == TryAgainError.exit_code and _message(failure):
            return Failure(failure.exitcode, _message(failure), asks_for_more=True)
    rank, failure = min(error.failures.items(), key=lambda item: (_is_consequence(item[1]), item[1].timestamp, item[0]))
    what = _message(failure)
    if failure.exitcode == UnmaskError.exit_code and what:
        raise UnmaskError(what)
    if not what and failure.exitcode in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # to a rank: it has saved, and said so
        return Failure(failure.exitcode)
    reason = what or (f"was ended by signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}")
    exit_code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return Failure(exit_code, f"rank {rank} (process {failure.pid}) failed, and all ranks were ended: {reason}")


def _message(failure: ProcessFailure) -> str:
    """What the rank said of its end; nothing if it could not."""
    if failure.error_file == "<N/A>":
        return ""
    return str(failure.message.get("message", "") if isinstance(failure.message, dict) else failure.message)


def _is_consequence(failure: ProcessFailure) -> bool:
    """Whether the rank was ended by the launcher, or waited for one that was gone."""
    return failure.exitcode == -signal.SIGTERM or _message(failure).startswith(_LOST)


def may_start_again() -> bool:
    """Whether torchrun starts this process again when it ends otherwise than with 0 (its --max-restarts)."""
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def is_rank() -> bool:
    """Whether this process was started by torch's launcher, which reports its end."""
    return _REPORT in os.environ


def describe_defect(error: Exception) -> str:
    """The traceback; one line of a rank that has only lost another one."""
    whole = "".join(traceback.format_exception(error))
    return f"{_LOST} ({str(error).strip().splitlines()[0]})" if any(words in whole for words in _COLLECTIVE) else whole


def leave_report(message: str) -> None:
    """For the launcher: why this rank ends."""
    report = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
    Path(os.environ[_REPORT]).write_text(json.dumps(report), encoding="utf-8")
