"""The carriers that cross package boundaries. No torch here: the command line and the viewer import this file.

| type | made by | read by |
|---|---|---|
| `SamplingParams` | user, recipes | samplers |
| `Example` | `data` | training loops, rewards, evaluation |
| `Trace` | every sampler | trainer, evaluation, viewer |
| `Demonstration` | `train` | SFT objectives |
| `Rollout`, `RolloutGroup` | `rl` | rewards, advantages, objectives |
| `TraceRecord` | evaluation, `unmask generate` | viewer (one line of `traces.jsonl`) |
"""

from __future__ import annotations

from unmask.types.example import CodeTests, Demonstration, Example, Message, Rollout, RolloutGroup
from unmask.types.sampling import SamplingParams
from unmask.types.trace import FinishReason, Trace, TraceRecord

__all__ = [
    "CodeTests", "Demonstration", "Example", "FinishReason", "Message", "Rollout", "RolloutGroup", "SamplingParams", "Trace",
    "TraceRecord",
]  # fmt: skip
