"""Block growth in SFT: which blocks are trained when, what the checkpoints say, exact resumption, mistakes."""

from __future__ import annotations

import shutil

import pytest

from tests.recipes import SFT, unmask, write_recipe
from unmask.attention import DenseAttention
from unmask.config import Plugin
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import open_source
from unmask.metrics import read_metrics
from unmask.models.checkpoint import load_model
from unmask.objectives import semi_ar
from unmask.objectives.rows import collate, score_targets
from unmask.train.checkpoint import list_checkpoints
from unmask.train.demonstrations import demonstration

STAGES = "block_schedule=[{from_step=0,block_size=1},{from_step=2,block_size=2},{from_step=5,block_size=4}]"
WORDS = ["eval.every_steps=0", "checkpoint.every_steps=1", "checkpoint.keep_last=9", STAGES]


def train(folder, *words, name: str = "run"):
    return unmask("sft", write_recipe(folder, "sft", SFT), *WORDS, f"run.dir={folder / name}", *words)


def test_stages_follow_each_other(tmp_path, monkeypatch) -> None:
    """The blocks that rows are made of, and those that checkpoints are decoded with."""
    trained, make_rows = [], semi_ar.SemiAR.rows

    def rows(self, items):
        made = make_rows(self, items)
        trained.append({int((row.copy == copy).sum()) for row in made for copy in set(row.copy) - {0}})
        return made

    monkeypatch.setattr(semi_ar.SemiAR, "rows", rows)
    result = train(tmp_path)
    assert result.returncode == 0, result.stderr
    assert trained[1:] == [{1}, {1}, {2}, {2}, {2}, {4}]  # the first one was to see that the data are right
    folders = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [load_model(folder).spec.block_size for folder in folders] == [1, 1, 2, 2, 2, 4]


def test_the_held_out_loss_is_measured_with_the_blocks_of_the_stage(tmp_path) -> None:
    """As the checkpoint of each stage has it."""
    measuring = ["eval.every_steps=2", "eval.num_examples=0", "eval.num_loss_examples=8", "eval.loss_rates=[0.5]"]
    result = train(tmp_path, *measuring)
    assert result.returncode == 0, result.stderr
    found = {r["step"]: r["eval/loss_at_0.5"] for r in read_metrics(tmp_path / "run") if "eval/loss" in r}
    assert sorted(found) == [2, 4, 6]
    options = {"min_operations": 1, "max_operations": 2}
    held_out = open_source(Plugin(name="chained_arithmetic", options=options), "held_out", 0)
    for folder in list_checkpoints(tmp_path / "run" / "checkpoints")[1::2]:
        model, tokenizer = load_model(folder), ChatTokenizer.load(folder)
        made = semi_ar.SemiAR(semi_ar.SemiAR.Options(min_rate=0.5, max_rate=0.5), model.spec, 0)
        batch = collate(made.rows([demonstration(held_out, tokenizer, i, 0, i) for i in range(8)]))
        logprobs = score_targets(model, batch, DenseAttention, excludes_mask=False).logprobs_N
        assert found[int(folder.name[-1])] == pytest.approx(-logprobs.mean().item(), abs=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_resumed_is_uninterrupted(tmp_path, num_steps: int) -> None:
    assert train(tmp_path).returncode == 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    *later, last = list_checkpoints(tmp_path / "run" / "checkpoints")[num_steps:]
    whole, weights = metrics.read_bytes(), (last / "model.safetensors").read_bytes()
    for folder in (*later, last):
        shutil.rmtree(folder)
    resumed = train(tmp_path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (metrics.read_bytes(), (last / "model.safetensors").read_bytes()) == (whole, weights)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["block_schedule=[{from_step=1,block_size=2}]"], "from_step should begin with 0 and ascend, found [1]"),
        (["model.preset=llada/tiny"], "block_schedule is for block models; llada has bidirectional attention"),
        (["objective.name=ar"], "block_schedule: the objective ar has no blocks; use semi_ar, random_masking or trace"),
        (["objective.options.block_size=4"], "both say with which blocks is trained; give one"),
        (["block_schedule=[{from_step=0,block_size=0}]"], "block_size"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path) -> None:
    result = train(tmp_path, *words)
    assert (result.returncode, result.stderr.count("\n"), (tmp_path / "run").exists()) == (2, 1, False), result.stderr
    assert message in result.stderr
