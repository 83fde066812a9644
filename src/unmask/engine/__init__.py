"""The fast sampler: a scheduler and a page pool in pure Python (`scheduler.py`, `pages.py`), one tensor runner."""

from unmask.engine.aio import AsyncEngine, EngineFailedError
from unmask.engine.engine import Engine
from unmask.engine.request import RequestOutput, StepUnmasked
from unmask.engine.stats import EngineStats

__all__ = ["AsyncEngine", "Engine", "EngineFailedError", "EngineStats", "RequestOutput", "StepUnmasked"]
