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
from typing import TYPE_CHECKING

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

_REPORT = "TORCHELASTIC_ERROR_FILE"  # where torch's launcher reads what a process of its own says of its end
_COLLECTIVE = "torch/distributed/distributed_c10d.py"  # in the traceback of one that waited for another
_LOST = "waited for a rank that was gone"
GRACE_S = 600  # that ranks have to finish a step and save, after a signal


def run_several(num_processes: int, arguments: list[str]) -> int:
    """Runs the command line once for each rank, through torch's launcher; the exit code is that of the rank which failed first.

    Raises `UnmaskError` for that rank's mistake of the user.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_S))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("multiprocessing.api", "agent.server.api"):  # what they log of failures is in the report
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=num_processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1, logs_specs=DefaultLogsSpecs(log_dir=folder),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "unmask", *arguments)
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            return _report(error)
    return 0


def _report(error: ChildFailedError) -> int:
    """Says which rank failed and why: the first of those that did not only lose another one."""
    rank, failure = min(error.failures.items(), key=lambda item: (_is_consequence(item[1]), item[1].timestamp, item[0]))
    what = _message(failure)
    if failure.exitcode == 2 and what:
        raise UnmaskError(what)
    if not what and failure.exitcode in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # to a rank: it has saved, and said so
        return failure.exitcode
    reason = what or (f"was ended by signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}")
    print(f"error: rank {rank} (process {failure.pid}) failed, and all ranks were ended: {reason}", file=sys.stderr)
    return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode


def _message(failure: ProcessFailure) -> str:
    """What the rank said of its end; nothing if it could not."""
    if failure.error_file == "<N/A>":
        return ""
    return str(failure.message.get("message", "") if isinstance(failure.message, dict) else failure.message)


def _is_consequence(failure: ProcessFailure) -> bool:
    """Whether the rank was ended by the launcher, or waited for one that was gone."""
    return failure.exitcode == -signal.SIGTERM or _message(failure).startswith(_LOST)


def is_rank() -> bool:
    """Whether this process was started by torch's launcher, which reports its end."""
    return _REPORT in os.environ


def describe_defect(error: Exception) -> str:
    """The traceback; one line of a rank that has only lost another one."""
    whole = "".join(traceback.format_exception(error))
    return f"{_LOST} ({str(error).strip().splitlines()[0]})" if _COLLECTIVE in whole else whole


def leave_report(message: str) -> None:
    """For the launcher: why this rank ends."""
    report = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
    Path(os.environ[_REPORT]).write_text(json.dumps(report), encoding="utf-8")
