"""Persistent worker processes for what may hang, crash or compute for long; one item at a time each.

A worker is a fresh interpreter (`unmask.rewards.worker`), not a fork and no copy of the caller's main module: the threads of
PyTorch do not survive the one, and a script without a guard not the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
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
_LOOK_S = 0.5  # how often it is looked whether a worker was stopped
_NUM_STARTS = 3  # of a worker that is disturbed as it starts
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

        A worker that takes longer, or dies, is replaced; the result says so. Where it was ended by a signal or stopped, that
        may not be the item's fault, and another worker does it once more. Raises `UnmaskError` where a new worker cannot be
        started.
        """
        async with self._places:
            result, is_disturbed = await self._try(item, time_limit)
            if is_disturbed:
                result, _ = await self._try(item, time_limit)
            return result

    async def _try(self, item: Any, time_limit: float) -> tuple[Result, bool]:
        """The result of one worker, and whether it was disturbed."""
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
        return result, worker.is_disturbed

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
            if worker.is_alive() and not worker.is_stopped():
                return worker
            self._replace(worker)  # that happened while it had nothing to do

    async def _add_worker(self) -> None:
        for number in range(1, _NUM_STARTS + 1):
            worker = _Worker()
            self._workers.add(worker)
            try:
                await worker.start(self.home, self.factory, self.arguments)
            except UnmaskError:
                if number == _NUM_STARTS or not worker.is_disturbed:
                    raise
                worker.kill()
                self._workers.discard(worker)
                continue
            self._idle.put_nowait(worker)
            return

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
    """One process. `is_lost` after an item: it is of no more use; `is_disturbed`: as it was ended by a signal or stopped."""

    def __init__(self) -> None:
        self.is_lost = self.is_disturbed = False
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
            kind, content = await self._answer(_START_S)
        except (OSError, EOFError, TimeoutError):
            raise UnmaskError(f"a worker process did not start ({self._how_it_ended()})") from None
        if kind != "ready":
            raise UnmaskError(content)

    async def run(self, item: Any, time_limit: float) -> Result:
        start = time.monotonic()
        try:
            await self._send((item, time_limit))
            await self._answer(_BEGIN_S)  # began
            kind, content = await self._answer(time_limit + 1.5 * GRACE_S)
        except (OSError, EOFError, TimeoutError):
            self.is_lost, how = True, self._how_it_ended()
            if time.monotonic() - start >= time_limit and not self.is_disturbed:
                return Result(failure=_too_late(time_limit))
            return Result(failure=f"the worker process died ({how})")
        if kind == "late":
            return Result(failure=_too_late(time_limit))
        return Result(error=content) if kind == "raised" else Result(value=content)

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def is_stopped(self) -> bool:
        """Whether it was halted by a signal (SIGSTOP), which it does not see itself."""
        if self._process is None or not hasattr(os, "waitid"):
            return False
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # it has ended
            return False

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

    async def _answer(self, timeout_s: float) -> tuple[str, Any]:
        """The next message. Raises `TimeoutError`, at once where the process was stopped."""
        message, ends_at = asyncio.ensure_future(self._receive()), time.monotonic() + timeout_s
        try:
            while not message.done():
                left = ends_at - time.monotonic()
                if left <= 0 or self.is_stopped():
                    raise TimeoutError
                await asyncio.wait({message}, timeout=min(left, _LOOK_S))
            return message.result()
        finally:
            message.cancel()

    async def _receive(self) -> tuple[str, Any]:
        length = int.from_bytes(await self._reader.readexactly(8), "little")
        return pickle.loads(await self._reader.readexactly(length))

    def _how_it_ended(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(0.2)
            self.is_disturbed = code < 0
            return f"signal {-code}" if code < 0 else f"exit code {code}"
        self.is_disturbed = self.is_stopped()
        return "was stopped" if self.is_disturbed else "no answer"


_NONE = _Worker()  # stands for no worker at all


def _too_late(time_limit: float) -> str:
    return f"took longer than {time_limit:.3g} s"
