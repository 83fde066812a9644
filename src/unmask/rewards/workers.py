"""Persistent worker processes for what may hang, crash or compute for long; one item at a time each.

A worker is a fresh interpreter (`unmask.rewards.worker`), not a fork and no copy of the caller's main module: the threads of
PyTorch do not survive the one, and a script without a guard not the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

from unmask.errors import UnmaskError
from unmask.rewards.worker import GRACE_S

_START_S = 120.0  # for the imports of a worker, on a machine that is busy with other things
_BEGIN_S = 60.0  # from sending an item until the worker takes it up
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from unmask.rewards.worker import main; main(int(sys.argv[2]))"
)


class Result(NamedTuple):
    """value: what the function returned. failure: why there is none (too late, the process died). error: what it raised."""

    value: Any = None
    failure: str = ""
    error: str = ""


class WorkerPool:
    """`num_workers` processes that call `factory(*arguments)(item)`, and one that stands by for the place of one that is lost.

    home, factory: the module and the function in it that makes, in each worker, the function of an item. All methods are for
    one event loop.
    """

    def __init__(self, home: str, factory: str, arguments: tuple[Any, ...] = (), num_workers: int = 1):
        self.home, self.factory, self.arguments, self.num_workers = home, factory, arguments, num_workers
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self._places = asyncio.Semaphore(num_workers)
        self._workers: set[_Worker] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._broken = ""
        self._is_closed = False

    async def start(self) -> None:
        """`num_workers` are ready then. Raises `UnmaskError` where one cannot be: an import that fails, for example."""
        try:
            await asyncio.gather(*(self._add_worker() for _ in range(self.num_workers)))
        except BaseException:
            await self.close()
            raise
        self._begin_another()  # the one that stands by

    async def run(self, item: Any, time_limit: float) -> Result:
        """The result of one item. time_limit: seconds, from the moment that the worker begins with it.

        A worker that takes longer, or dies, is replaced; the result says so. Raises `UnmaskError` where a new worker cannot
        be started.
        """
        async with self._places:
            worker = await self._take()
            try:
                result = await worker.run(item, time_limit)
            except BaseException:  # cancelled: what the worker would answer has no reader any more
                self._replace(worker)
                raise
            if worker.is_lost:
                self._replace(worker)
            else:
                self._idle.put_nowait(worker)
            return result

    async def close(self) -> None:
        """Ends all workers, also those at work."""
        self._is_closed = True
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    async def _take(self) -> _Worker:
        while True:
            if self._broken:
                raise UnmaskError(self._broken)
            worker = await self._idle.get()
            if worker is _NONE:
                continue
            if worker.is_alive():
                return worker
            self._replace(worker)  # it was killed while it had nothing to do

    async def _add_worker(self) -> None:
        worker = _Worker()
        self._workers.add(worker)
        await worker.start(self.home, self.factory, self.arguments)
        self._idle.put_nowait(worker)

    def _replace(self, worker: _Worker) -> None:
        worker.kill()
        self._workers.discard(worker)
        if not self._is_closed:
            self._begin_another()

    def _begin_another(self) -> None:
        task = asyncio.create_task(self._add_again())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _add_again(self) -> None:
        try:
            await self._add_worker()
        except UnmaskError as error:
            self._broken = str(error)
            for _ in range(self.num_workers):
                self._idle.put_nowait(_NONE)  # wakes those who wait for one


class _Worker:
    """One process. `is_lost` after an item: it is of no more use."""

    def __init__(self) -> None:
        self.is_lost = False
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self, home: str, factory: str, arguments: tuple[Any, ...]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [
                sys.executable,
                "-c",
                _CODE,
                json.dumps([p for p in sys.path if isinstance(p, str)]),
                str(theirs.fileno()),
            ]
            self._process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            await self._send((home, factory, arguments))
            kind, content = await asyncio.wait_for(self._receive(), _START_S)
        except (OSError, EOFError, TimeoutError):
            raise UnmaskError(f"a worker process did not start ({self._how_it_ended()})") from None
        if kind != "ready":
            raise UnmaskError(content)

    async def run(self, item: Any, time_limit: float) -> Result:
        start = time.monotonic()
        try:
            await self._send((item, time_limit))
            await asyncio.wait_for(self._receive(), _BEGIN_S)  # began
            kind, content = await asyncio.wait_for(self._receive(), time_limit + 1.5 * GRACE_S)
        except (OSError, EOFError, TimeoutError):
            self.is_lost = True
            if time.monotonic() - start >= time_limit:
                return Result(failure=_too_late(time_limit))
            return Result(failure=f"the worker process died ({self._how_it_ended()})")
        if kind == "late":
            return Result(failure=_too_late(time_limit))
        return Result(error=content) if kind == "raised" else Result(value=content)

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        if self._writer is not None:
            self._writer.transport.abort()

    async def _send(self, message: Any) -> None:
        assert self._writer is not None
        data = pickle.dumps(message)
        self._writer.write(len(data).to_bytes(8, "little") + data)
        await self._writer.drain()

    async def _receive(self) -> tuple[str, Any]:
        length = int.from_bytes(await self._reader.readexactly(8), "little")
        return pickle.loads(await self._reader.readexactly(length))

    def _how_it_ended(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(0.2)
            return f"signal {-code}" if code < 0 else f"exit code {code}"
        return "no answer"


_NONE = _Worker()  # stands for no worker at all


def _too_late(time_limit: float) -> str:
    return f"took longer than {time_limit:.3g} s"
