"""The engine in a process of its own: what the server computes for its clients takes nothing from it but the machine's cores.

`ProcessLink` starts the process, and connects an `AsyncEngine` with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.config import EngineLimits
from unmask.engine.worker import Close, Command, News, Worker
from unmask.errors import UnmaskError
from unmask.types import SamplingParams

if TYPE_CHECKING:
    from unmask.models import Decoder

# A fresh interpreter, and no copy of the caller's main module: a script without a guard would start itself again.
# A terminal sends SIGINT to both processes; this one ends when the other one says so.
_CODE = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = json.loads(sys.argv[1]); "
    "from unmask.serve.engine_process import main; main()"
)
# How long a thread spins as it waits for the others: here within a forward, not between two of them, when the server has work
# to do. The first is what `unmask` sets for all commands (cli/main.py), the second what serves a tenth more (docs/log.md).
_SPINS_OF_COMMAND, _SPINS = "2000", "20000"
_END_S = 10.0  # for a process to end by itself


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights are: a model folder, and perhaps one of adapters that are merged into them."""

    folder: Path
    adapter: Path | None = None

    def load(self, device: str, dtype: str) -> Decoder:
        """Raises `UnmaskError`."""
        from unmask.launch import pick_device, pick_precision
        from unmask.models.checkpoint import find_dtype, load_model
        from unmask.models.lora import load_adapter, merge_adapter

        target = pick_device(device)
        precision = pick_precision(dtype, target)
        if self.adapter is None:
            return load_model(self.folder, device=target, dtype=precision)
        # Merged in float32 and rounded once, where there is memory for it.
        model = load_model(self.folder, device="cpu", dtype="float32")
        return merge_adapter(load_adapter(model, self.adapter)).to(find_dtype(precision)).to(target)

    def load_like(self, model: Decoder) -> Decoder:
        """Other weights of a model that is in use, in the CPU's memory, since a GPU's is taken. Raises `UnmaskError`."""
        new = self.load("cpu", str(model.dtype).removeprefix("torch."))
        if new.spec != model.spec:
            raise UnmaskError(f"{self.folder}: is another model than the one being served; start a server for it")
        return new


@dataclass(frozen=True, slots=True)
class EngineOptions:
    source: Source
    device: str
    dtype: str
    limits: EngineLimits
    sampling: SamplingParams  # what requests are to be decoded with, if they say nothing
    num_threads: int = 0


class ProcessLink:
    """To a worker in another process, which ends with this one."""

    def __init__(self, options: EngineOptions):
        """Starts it and waits until it has loaded the model. Raises `UnmaskError` with what it says otherwise."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", _CODE, json.dumps(sys.path), str(theirs.fileno())]
            environment = dict(os.environ)
            if environment.get("GOMP_SPINCOUNT") == _SPINS_OF_COMMAND:
                environment["GOMP_SPINCOUNT"] = _SPINS
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
            )  # fmt: skip
        self._connection = Connection(ours.detach())
        try:
            self._connection.send(options)
            message = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            raise UnmaskError(f"the engine's process ended as it started, with exit code {code}") from None
        except BaseException:
            self.kill()
            raise
        if message is not None:
            self._process.wait()
            raise UnmaskError(message)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def start(self, deliver: Callable[[list[News] | None], None]) -> None:
        threading.Thread(target=self._receive, args=(deliver,), name="unmask-receive", daemon=True).start()
        threading.Thread(target=self._send, name="unmask-send", daemon=True).start()

    def send(self, command: Command) -> None:
        self._commands.put(command)

    def join(self) -> None:
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _receive(self, deliver: Callable[[list[News] | None], None]) -> None:
        try:
            while True:
                deliver(self._connection.recv())
        except (EOFError, OSError):
            deliver(None)

    def _send(self) -> None:
        # Apart from the event loop: a pipe that is full, as the engine is in a long forward, would hold it up.
        while True:
            command = self._commands.get()
            try:
                self._connection.send(command)
            except OSError:
                return
            if isinstance(command, Close):
                return


def main() -> None:
    """The process. It ends when it is told to, and when the other one is gone."""
    connection = Connection(int(sys.argv[2]))
    try:
        options: EngineOptions = connection.recv()
        try:
            worker = Worker(*_prepare(options, connection))
        except UnmaskError as error:
            connection.send(str(error))
            return
        connection.send(None)
    except (EOFError, BrokenPipeError):  # the other one has gone meanwhile
        return
    worker.run()


def _prepare(options: EngineOptions, connection: Connection) -> tuple[Any, ...]:
    import torch

    from unmask.data.chat import ChatTokenizer
    from unmask.engine import Engine

    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    model = options.source.load(options.device, options.dtype)
    tokenizer = ChatTokenizer.load(options.source.folder)
    engine = Engine(model, decode=tokenizer.decode, **options.limits.model_dump())
    engine.check([], options.sampling, name="the server's settings")

    def take(waits: bool) -> list[Command]:
        taken = []
        try:
            while waits or connection.poll():
                taken.append(connection.recv())
                waits = False
        except (EOFError, OSError):
            return [Close()]
        return taken

    def tell(news: list[News]) -> None:
        with contextlib.suppress(OSError):  # the next `take` finds out
            connection.send(news)

    return engine, take, tell, lambda source: source.load_like(model)
