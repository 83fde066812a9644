"""CONTRIBUTING.md is true: its import order is the tested one, and each row of its table of changes works with a toy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ConfigDict

from tests.docs.blocks import ROOT, code_blocks
from tests.models.toy_family import ToyFamily
from tests.test_structure import LAYERS
from unmask.attention import BACKENDS, DenseAttention
from unmask.config import Plugin, RlRecipe, SftRecipe, load_recipe
from unmask.data.digests import hash_examples
from unmask.data.problems import Problem
from unmask.data.sources import SOURCES, open_source
from unmask.data.tasks import MathOptions, Task
from unmask.diffusion.remasking import STRATEGIES
from unmask.launch import start
from unmask.metrics import read_metrics
from unmask.models import FAMILIES
from unmask.objectives import RL_OBJECTIVES, SFT_OBJECTIVES
from unmask.objectives.advantages import ADVANTAGES
from unmask.objectives.trace_views import trace_rows
from unmask.objectives.views import Grid, masked_rows
from unmask.rewards import REWARDS, Reward, Score
from unmask.types import Example

PAGE = ROOT / "CONTRIBUTING.md"


def layers() -> list[list[str]]:
    """The listed units, top line first."""
    text = next(block.text for block in code_blocks(PAGE) if block.language == "text")
    return [[unit.strip() for unit in line.split("|")] for line in text.splitlines()]


def test_import_order_is_the_one_that_is_tested() -> None:
    tested = [sorted(line - {"__init__", "__main__"}) for line in LAYERS]
    assert layers() == [line for line in tested if line]


def test_every_unit_is_explained() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [unit for line in layers() for unit in line if f"\n| `{unit}` |" not in text] == []


class NoOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ToySource:
    Options = NoOptions
    vocabulary = tuple("01")
    dataset_hash = property(hash_examples)

    def __init__(self, options, split, seed):
        self.first = 0 if split == "train" else 4

    def __len__(self):
        return 4

    def __getitem__(self, index):
        bits = f"{self.first + index:03b}"
        return Example(id=bits, messages=({"role": "user", "content": bits},), response=bits, answer=bits)


class ToyReward(Reward):
    async def __call__(self, rollout, example):
        return Score((len(rollout.trace.canvas_ids) + rollout.trace.canvas_ids[0]) % 5 / 4, "toy")


class ToySftObjective:
    """Masks the last block whole."""

    Options = NoOptions

    def __init__(self, options, spec, seed):
        self.b, self.mask = spec.block_size, spec.mask_token_id

    def rows(self, items):
        rows = []
        for item in items:
            num_tokens = len(item.prompt_ids) + len(item.response_ids)
            is_last = np.arange(num_tokens)[None] // self.b == num_tokens // self.b - 1
            rows += masked_rows(item.prompt_ids, item.response_ids, Grid(self.b), self.mask, is_last, is_last)
        for row in rows:
            row.values["weight"] = np.full(self.b, 1.0 / self.b / len(rows))
        return rows

    def loss(self, stats, batch):
        return -(batch.values["weight"] * stats.logprobs_N).sum(), {}


class ToyRlObjective:
    """Policy gradient without clipping."""

    Options = NoOptions
    has_sampler_views = True

    def __init__(self, options, spec):
        self.spec = spec

    def rows(self, rollouts, num_sequences, draw):
        rows = []
        for rollout in rollouts:
            [row] = trace_rows(rollout.trace, Grid.of(self.spec), self.spec.mask_token_id)
            row.values["weight"] = np.full(len(row.target_ids), rollout.advantage / num_sequences)
            row.values["old_logprobs"] = row.values["rollout_logprobs"]
            rows.append(row)
        return rows

    def loss(self, stats, batch):
        zero, n = torch.zeros(()), torch.tensor(float(len(stats.logprobs_N)))
        sums = {"num_targets": n, "neg_logprob_sum": -stats.logprobs_N.detach().sum()}
        sums |= {"kl_sum": zero, "clip_sum": zero, "entropy_sum": stats.entropy_N.sum()}
        return -(batch.values["weight"] * stats.logprobs_N).sum(), sums


class ToyStrategy:
    """The rightmost masked position."""

    def select(self, scores, quota_B, params):
        is_masked_BT = scores.is_masked_BT
        return is_masked_BT & (is_masked_BT.flip(1).cumsum(1).flip(1) == 1)


class ToyBackend(DenseAttention):
    num_forwards = 0

    def __init__(self, q, k):
        super().__init__(q, k)
        ToyBackend.num_forwards += 1


def test_each_kind_of_part_needs_its_registry_line_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy of every kind, registered and named in two recipes: SFT from a toy family, then RL on what it wrote."""
    for registry, toy in (
        (FAMILIES, ToyFamily()), (SOURCES, ToySource), (REWARDS, ToyReward), (SFT_OBJECTIVES, ToySftObjective),
        (RL_OBJECTIVES, ToyRlObjective), (STRATEGIES, ToyStrategy()), (BACKENDS, ToyBackend),
        (ADVANTAGES, lambda rewards: rewards - rewards.min()),
    ):  # fmt: skip
        monkeypatch.setitem(registry, "toy", toy)
    common = ["run.device=cpu", "run.attention_backend=toy", "source.name=toy", "reward.name=toy", "objective.name=toy"]
    common += ["train.max_steps=1", "eval.every_steps=1", "eval.sampling.max_new_tokens=4"]
    own = [f"run.dir={tmp_path / 'sft'}", "model.preset=toy/tiny", "train.batch_size=2"]
    done = start(load_recipe(SftRecipe, [], [*common, *own]))
    assert done.reason == "max_steps"

    own = [f"run.dir={tmp_path / 'rl'}", f"model.path={tmp_path / 'sft'}", "train.prompts_per_step=2", "train.group_size=4"]
    own += ["rollout.max_new_tokens=8", "rollout.remasking_strategy=toy", "advantage=toy"]
    assert start(load_recipe(RlRecipe, [], [*common, *own])).reason == "max_steps"
    step, evaluation = read_metrics(tmp_path / "rl")
    assert step["num_updates"] == 1
    assert step["tokens_per_forward"] <= 1
    assert "eval/accuracy" in evaluation
    assert ToyBackend.num_forwards >= 2


def test_a_task_needs_a_function_and_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(row, where):
        return Problem(where, row["q"], answer=row["a"])

    (tmp_path / "test.jsonl").write_text('{"q": "1+1", "a": "2"}\n')
    monkeypatch.setitem(SOURCES, "toy", Task("toy", parse, MathOptions, held_out=str(tmp_path / "test.jsonl")))
    [example] = [open_source(Plugin(name="toy"), "held_out", 0)[0]]
    assert (example.answer, example.messages[0].content[:4]) == ("2", "1+1\n")
