"""unmask: diffusion language models, trained, decoded and evaluated.

The names in `__all__` are the public face: typed, documented, stable. They load on first use, so that importing the
package (and the command line) does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "AsyncEngine": "unmask.engine",
    "CodeLimits": "unmask.rewards.code_tests",
    "Engine": "unmask.engine",
    "SamplingParams": "unmask.types",
    "TestResult": "unmask.rewards.code_tests",
    "Trace": "unmask.types",
    "UnmaskError": "unmask.errors",
    "ValueModel": "unmask.models",
    "Verdict": "unmask.rewards.math",
    "generate": "unmask.diffusion.generate",
    "load_model": "unmask.models.checkpoint",
    "new_model": "unmask.models.checkpoint",
    "replay_logprobs": "unmask.objectives.trace_views",
    "run_code_tests": "unmask.rewards.code_tests",
    "save_model": "unmask.models.checkpoint",
    "verify_math": "unmask.rewards.math",
}

__all__ = [
    "AsyncEngine", "CodeLimits", "Engine", "SamplingParams", "TestResult", "Trace", "UnmaskError", "ValueModel", "Verdict",
    "generate", "load_model", "new_model", "replay_logprobs", "run_code_tests", "save_model", "verify_math",
]  # fmt: skip

if TYPE_CHECKING:
    from unmask.diffusion.generate import generate
    from unmask.engine import AsyncEngine, Engine
    from unmask.errors import UnmaskError
    from unmask.models import ValueModel
    from unmask.models.checkpoint import load_model, new_model, save_model
    from unmask.objectives.trace_views import replay_logprobs
    from unmask.rewards.code_tests import CodeLimits, TestResult, run_code_tests
    from unmask.rewards.math import Verdict, verify_math
    from unmask.types import SamplingParams, Trace


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
