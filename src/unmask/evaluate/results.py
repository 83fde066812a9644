"""What an evaluation measured, and what it was measured on: `results.json`.

Everything in it but `timings` follows from the checkpoint, the settings and the seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unmask.data.digests import hash_examples
from unmask.errors import UnmaskError
from unmask.evaluate.statistics import estimate_share, pass_at
from unmask.files import read_json, sha256
from unmask.models.hub import resolve_folder
from unmask.models.lora import base_of, is_adapter
from unmask.train.folder import versions
from unmask.types import Example, Rollout, RolloutGroup, SamplingParams

if TYPE_CHECKING:
    from unmask.config.evaluation import EvalRecipe, EvalTask
    from unmask.data.chat import ChatTokenizer
    from unmask.evaluate import Evaluation

FORMAT = 1
METRICS = ("accuracy", "reward_mean", "tokens_per_forward", "response_length", "cut_share")


def is_right(rollout: Rollout) -> bool:
    """A response is right if its reward is 1 (or more: rewards may be sums)."""
    return (rollout.reward or 0.0) >= 1


def measure(groups: Sequence[RolloutGroup]) -> dict[str, Any]:
    """The numbers of one task in one mode; each group has the same number k of responses.

    `accuracy` is the share of right responses (avg@k), with the standard error over examples and a 95 % interval;
    `pass_at[j]` the chance that one of j responses is right. `tokens_per_forward` is all response tokens over all forward
    passes; the other numbers are means over responses.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    k = len(groups[0].rollouts)
    right = [sum(map(is_right, group.rollouts)) for group in groups]
    accuracy = estimate_share([number / k for number in right])
    tries = sorted({*(2**i for i in range(k.bit_length()) if 2**i <= k), k})
    num_tokens = [rollout.trace.num_response_tokens for rollout in rollouts]
    num_forwards = [rollout.trace.num_forwards for rollout in rollouts]
    names = sorted({name for rollout in rollouts for name in rollout.reward_parts})
    return {
        "accuracy": accuracy.value,
        "standard_error": accuracy.standard_error,
        "confidence_95": [accuracy.low, accuracy.high],
        "pass_at": {str(j): float(np.mean([pass_at(j, k, number) for number in right])) for j in tries},
        "reward_mean": _mean([rollout.reward or 0.0 for rollout in rollouts]),
        "parts": {name: _mean([rollout.reward_parts.get(name, 0.0) for rollout in rollouts]) for name in names},
        "tokens_per_forward": sum(num_tokens) / max(1, sum(num_forwards)),
        "num_forwards": _mean(num_forwards),
        "response_length": _mean(num_tokens),
        "cut_share": _mean([rollout.trace.finish_reason == "length" for rollout in rollouts]),
        "num_examples": len(groups),
        "num_responses": k,
    }


class Results:
    """Collects what `results.json` says, task by task and mode by mode."""

    def __init__(
        self, recipe: EvalRecipe, folder: Path, tokenizer: ChatTokenizer, device: torch.device, precision: str
    ):  # fmt: skip
        is_gpu = device.type == "cuda"
        self._facts: dict[str, Any] = {
            "format": FORMAT,
            "checkpoint": {"name": folder.name, "sha256": hash_folder(folder)},
            "chat_template_sha256": _hash(str(tokenizer.tokenizer.chat_template)),
            "seed": recipe.run.seed,
            "split": recipe.split,
            "num_responses": recipe.num_responses,
            "device": torch.cuda.get_device_name(device) if is_gpu else "cpu",
            "precision": precision,
            "engine": recipe.engine.model_dump(),
            "versions": versions(),
        }
        self._tasks: dict[str, Any] = {}
        self._timings: dict[str, Any] = {"finished": ""}

    def add(
        self, name: str, task: EvalTask, examples: Sequence[Example], mode: str, params: SamplingParams, result: Evaluation,
        provenance: Mapping[str, str], seconds: float, tokens_per_second: float,
    ) -> None:  # fmt: skip
        """One task in one mode. provenance: the reward's. tokens_per_second: of what was decoded in these seconds."""
        assert task.reward is not None
        facts = self._tasks.setdefault(
            name,
            {
                "source": task.source.model_dump(), "reward": task.reward.model_dump(), "scored_with": dict(provenance),
                "first_example": task.first_example, "dataset_hash": hash_examples(examples), "modes": {},
            },
        )  # fmt: skip
        rewards = {group.example.id: [rollout.reward for rollout in group.rollouts] for group in result.groups}
        facts["modes"][mode] = {"metrics": result.measured, "sampling": params.model_dump(mode="json"), "rewards": rewards}
        self._timings.setdefault(name, {})[mode] = {"seconds": seconds, "tokens_per_second": tokens_per_second}

    def to_dict(self) -> dict[str, Any]:
        self._timings["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        return {**self._facts, "tasks": self._tasks, "timings": self._timings}


def hash_folder(folder: Path) -> str:
    """SHA-256 of a model's weights, config and tokenizer: names and bytes of its files, wherever the folder lies.

    Of adapters, also of the model they are for.
    """
    digest = hashlib.sha256()
    if is_adapter(folder):
        digest.update(hash_folder(resolve_folder(base_of(folder))).encode())
    kept = (".safetensors", ".json", ".jinja", ".txt")
    for file in sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in kept):
        digest.update(f"{file.name}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_results(path: Path) -> dict[str, Any]:
    """From a file or the folder it is in. Raises `UnmaskError`."""
    file = path / "results.json" if path.is_dir() else path
    data = read_json(file)
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("tasks"), dict):
        raise UnmaskError(f"{file}: is no result of `unmask eval` (of format {FORMAT})")
    return data


def to_json(value: Any) -> str:
    """Raises `ValueError` for what JSON has no number for."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
