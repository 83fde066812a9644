"""The inside of a worker process of `unmask.rewards.workers`: items come through a socket, one at a time.

A message is eight bytes of length and a pickle. To the pool go ("ready", None) or ("failed", line) once, then for every item
("began", None) and one of ("value", result), ("raised", line) and ("late", None).
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import pickle
import select
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from unmask.errors import UnmaskError

GRACE_S = 0.5  # after the time limit: to come back by itself, before the process is ended
MAX_RESULT_BYTES = 2**24


class TimeIsUp(BaseException):
    """Raised inside an item at its time limit. No `Exception`, so that what is run does not swallow it."""


def one_line(error: BaseException) -> str:
    """What is wrong, in one line; those of ours say it themselves."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, UnmaskError) else f"{type(error).__name__}: {text}" if text else type(error).__name__


def send(pool: socket.socket, kind: str, content: Any) -> None:
    try:
        data = pickle.dumps((kind, content))
    except Exception as error:
        data = pickle.dumps(("raised", f"the result cannot be sent ({one_line(error)})"))
    if len(data) > MAX_RESULT_BYTES:
        data = pickle.dumps(("raised", f"the result is too large: {len(data)} bytes, at most {MAX_RESULT_BYTES}"))
    pool.sendall(len(data).to_bytes(8, "little") + data)


def receive(pool: socket.socket) -> Any:
    """The next message; ends the process where there will be none."""
    length = int.from_bytes(_read(pool, 8), "little")
    return pickle.loads(_read(pool, length))


def _read(pool: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = pool.recv(min(2**20, length - len(data)))
        if not part:
            os._exit(0)
        data += part
    return bytes(data)


def _end_with_pool(descriptor: int) -> None:
    """Ends the process as soon as the other end of the socket is closed, whatever the main thread does."""
    poll = select.poll()
    poll.register(descriptor, 0)  # nothing but the hang-up
    poll.poll()
    os._exit(0)


def _raise_time_is_up(number: int, frame: FrameType | None) -> None:
    raise TimeIsUp


def call(function: Callable[[Any], Any], item: Any, time_limit: float) -> tuple[str, Any]:
    """The message about an item. A function that does not come back, not even GRACE_S after its limit, ends the process."""
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(time_limit + GRACE_S, exit=True, file=nowhere)  # needs no interpreter lock
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, time_limit)
                result = function(item)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except TimeIsUp:
            return "late", None
        except Exception as error:
            return "raised", one_line(error)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return "value", result


def main(descriptor: int) -> None:
    """Serves the pool at the other end of the socket until it closes. The first message says what is called."""
    pool = socket.socket(fileno=descriptor)
    os.dup2(2, 1)  # what is printed is no output of the caller's
    # Ctrl-C is for the process that started this one, and saves what is there.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _raise_time_is_up)
    threading.Thread(target=_end_with_pool, args=(descriptor,), daemon=True).start()
    home, factory, arguments = receive(pool)
    try:
        function = getattr(importlib.import_module(home), factory)(*arguments)
    except Exception as error:
        send(pool, "failed", one_line(error))
        return
    send(pool, "ready", None)
    while True:
        item, time_limit = receive(pool)
        send(pool, "began", None)
        send(pool, *call(function, item, time_limit))
