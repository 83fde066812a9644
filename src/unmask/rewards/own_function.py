"""A Python function of your own, named `path/to/file.py:function`; it runs in a worker process."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from unmask.errors import UnmaskError
from unmask.rewards.interface import Reward, RewardOptions, Score
from unmask.rewards.worker import one_line
from unmask.rewards.workers import WorkerPool
from unmask.types import Example, Rollout

_MODULE = "unmask_own_function"  # what the file is imported as: it may be called json.py


class OwnFunction(Reward):
    """`def function(rollout, example)`, or `async def`: returns a number, (number, reason), or what a `Score` has in it.

    One that takes too long or ends its process scores 0 and says why; what it raises ends the run.
    """

    needs_pieces = True

    class Options(RewardOptions):
        time_limit: float = Field(10.0, gt=0, le=3600, description="seconds for one response, from the moment it is taken up")
        num_workers: int = Field(1, ge=1, le=1024, description="processes that score at the same time")

    def __init__(self, options: OwnFunction.Options, name: str):
        super().__init__(options)
        self.name = name
        self.pool = WorkerPool("unmask.rewards.own_function", "load", (name,), options.num_workers)
        self._sha256 = ""

    async def start(self) -> None:
        await self.pool.start()
        self._sha256 = hashlib.sha256(Path(self.name.rpartition(":")[0]).read_bytes()).hexdigest()

    async def close(self) -> None:
        await self.pool.close()

    def provenance(self) -> dict[str, str]:
        """Which version of the file it was."""
        return {"sha256": self._sha256}

    async def __call__(self, rollout: Rollout, example: Example) -> Score:
        result = await self.pool.run((rollout, example), self.options.time_limit)
        if result.error:
            raise UnmaskError(f"example {example.id}: {self.name}: {result.error}")
        return Score(0.0, result.failure) if result.failure else Score(*result.value)


def load(name: str) -> Callable[[tuple[Rollout, Example]], tuple[Any, ...]]:
    """From (rollout, example) to the fields of a score. Raises `UnmaskError` where the file or the function is not usable."""
    file, _, wanted = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UnmaskError(f"reward {name}: no such file")
    sys.path.append(str(path.resolve().parent))  # for what stands beside it
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    assert spec is not None
    assert spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UnmaskError(f"{path}:{error.lineno}: not valid Python ({error.msg})") from None
    except Exception as error:
        raise UnmaskError(f"reward {name}: {path} cannot be imported: {one_line(error)}{_where(error, path)}") from None
    function = getattr(module, wanted, None)
    if not callable(function):
        raise UnmaskError(f"reward {name}: {path} has no function {wanted}")

    def score(item: tuple[Rollout, Example]) -> tuple[Any, ...]:
        try:
            result = function(*item)
            if inspect.isawaitable(result):
                result = asyncio.run(_wait_for(result))
        except Exception as error:
            raise UnmaskError(f"raised {one_line(error)}{_where(error, path)}") from None
        if isinstance(result, tuple) and 1 <= len(result) <= len(Score._fields):
            return tuple(result)
        return (result,)

    return score


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


def _where(error: BaseException, path: Path) -> str:
    """The last line of the user's file on the way to the error."""
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if Path(traceback.tb_frame.f_code.co_filename) == path:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f" ({path}:{line})" if line else ""
