"""The fast sampler: a scheduler and a page pool in pure Python (`scheduler.py`, `pages.py`), one tensor runner."""

from unmask.engine.engine import Engine, EngineStats
from unmask.engine.request import RequestOutput

__all__ = ["Engine", "EngineStats", "RequestOutput"]
