"""Whole SFT runs: every objective on every kind of model learns, and ends where an interrupted one does."""

from __future__ import annotations

import json

import pytest
import torch

from tests.conftest import make_model
from tests.engine.plain import full_attention_model
from tests.grid import grid
from tests.recipes import SFT, unmask, write_recipe
from unmask.attention import DenseAttention
from unmask.config import Plugin
from unmask.config.training import SftTrainConfig
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import open_source
from unmask.errors import UnmaskError
from unmask.metrics import read_metrics
from unmask.models.checkpoint import load_model
from unmask.objectives import SFT_OBJECTIVES
from unmask.objectives.rows import collate, score_targets
from unmask.train.demonstrations import Lengths, demonstration, fit_steps
from unmask.train.trainer import Trainer
from unmask.types import Demonstration, Example

OBJECTIVES = {
    "random_masking": ["objective.options.has_complements=true", "objective.options.rates=stratified"],
    "semi_ar": ["objective.options.block_size=8", "objective.options.loss_normalization=elbo"],
    "ar": ["objective.options.loss_normalization=sequence"],
}


@grid(5, family=["sdar", "sdar_moe", "dream", "llada", "mmada"], name=OBJECTIVES)
def test_every_objective_trains_every_family(family, name, tmp_path) -> None:
    words = [f"model.preset={family}/tiny", f"objective.name={name}", *OBJECTIVES[name], "eval.every_steps=0", "run.seed=1"]
    words += ["train.max_steps=8", "train.batch_size=16"]
    recipe = write_recipe(tmp_path, "sft", SFT)
    result = unmask("sft", recipe, *words, f"run.dir={tmp_path / 'whole'}")
    assert result.returncode == 0, result.stderr
    losses = [record["loss"] for record in read_metrics(tmp_path / "whole")]
    assert sum(losses[-3:]) < sum(losses[:3])
    for steps, more in ((3, []), (8, ["--resume"])):
        torn = unmask("sft", recipe, *words, f"train.max_steps={steps}", f"run.dir={tmp_path / 'torn'}", *more)
        assert torn.returncode == 0, torn.stderr
    whole, torn = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "torn"))
    assert whole == torn


WORDS = [
    "eval.every_steps=2",
    "eval.num_examples=0",
    "eval.num_loss_examples=16",
    "train.max_steps=8",
    "checkpoint.every_steps=0",
]


def records_of(folder) -> list[dict]:
    return [record for record in read_metrics(folder) if "eval/loss" in record]


@pytest.mark.parametrize(("name", "rates"), [("semi_ar", (0.25, 0.75)), ("random_masking", (0.5,)), ("ar", ())])
def test_the_held_out_loss_is_that_of_the_model(name, rates, tmp_path) -> None:
    """At every rate, and without complements, which have another one; computed again from the checkpoint, row by row."""
    more = ["objective.options.has_complements=true"] if rates else []
    words = [*WORDS, f"objective.name={name}", *more, f"eval.loss_rates={list(rates) or [0.5]}", f"run.dir={tmp_path / 'run'}"]
    result = unmask("sft", write_recipe(tmp_path, "sft", SFT), *words)
    assert result.returncode == 0, result.stderr
    *_, last = records_of(tmp_path / "run")
    assert sorted(last) == sorted(["step", "eval/loss", *(f"eval/loss_at_{rate:g}" for rate in rates)])
    folder = tmp_path / "run" / "checkpoints" / "step-00000008"
    model, tokenizer = load_model(folder), ChatTokenizer.load(folder)
    held_out = open_source(Plugin(name="chained_arithmetic", options={"min_operations": 1, "max_operations": 2}), "held_out", 0)
    items = [demonstration(held_out, tokenizer, i, 0, i) for i in range(16)]
    for key, options in {f"_at_{r:g}": {"min_rate": r, "max_rate": r} for r in rates}.items() if rates else [("", {})]:
        made = SFT_OBJECTIVES[name]
        rows = made(made.Options(**options), model.spec, 0).rows(items)
        stats = [score_targets(model, collate([row]), DenseAttention, excludes_mask=False) for row in rows]
        logprobs = torch.cat([each.logprobs_N for each in stats])
        assert last[f"eval/loss{key}"] == pytest.approx(-logprobs.mean().item(), abs=1e-5)
    if rates:
        assert last["eval/loss"] == pytest.approx(sum(last[f"eval/loss_at_{r:g}"] for r in rates) / len(rates))


def test_the_best_checkpoint_stays(tmp_path) -> None:
    """A learning rate that is far too large makes the loss worse again; resumed, the same one is the best."""
    words = [
        *WORDS,
        "checkpoint.keep_best=loss",
        "checkpoint.keep_last=1",
        "train.max_steps=12",
        "optimizer.lr=0.03",
        "eval.every_steps=1",
    ]
    recipe = write_recipe(tmp_path, "sft", SFT)
    for name, steps, more in (("whole", 12, []), ("torn", 9, []), ("torn", 12, ["--resume"])):
        result = unmask("sft", recipe, *words, f"train.max_steps={steps}", f"run.dir={tmp_path / name}", *more)
        assert result.returncode == 0, result.stderr
    losses = {record["step"]: record["eval/loss"] for record in records_of(tmp_path / "whole")}
    best = min(losses, key=lambda step: losses[step])
    assert best < 12
    for name in ("whole", "torn"):
        folder = tmp_path / name
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [f"step-{best:08d}", "step-00000012"]
        assert (folder / "best").resolve().name == f"step-{best:08d}"
    assert (tmp_path / "torn" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    shown = unmask("inspect", tmp_path / "whole" / "best")
    assert shown.returncode == 0, shown.stderr


def test_patience_ends_the_run(tmp_path) -> None:
    words = [*WORDS, "stop.metric=loss", "stop.patience=2", "optimizer.lr=0.2", "eval.every_steps=1", "train.max_steps=50"]
    recipe = write_recipe(tmp_path, "sft", SFT)
    result = unmask("sft", recipe, *words, f"run.dir={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    assert "got no better any more after step" in result.stdout
    losses = [record["eval/loss"] for record in records_of(tmp_path / "run")]
    assert len(losses) < 50
    assert min(losses) == losses[-3]
    again = unmask("sft", recipe, *words, f"run.dir={tmp_path / 'run'}", "--resume")
    assert (again.returncode, again.stdout) == (0, result.stdout)
    more = unmask("sft", recipe, *words, "stop.patience=4", f"run.dir={tmp_path / 'run'}", "--resume")
    assert more.returncode == 0
    assert len(records_of(tmp_path / "run")) > len(losses)


def test_a_target_for_the_loss(tmp_path) -> None:
    words = [*WORDS, "stop.metric=loss", "stop.at_least=1e9", f"run.dir={tmp_path / 'run'}"]
    result = unmask("sft", write_recipe(tmp_path, "sft", SFT), *words)
    assert "reached its target after step 2" in result.stdout, result.stderr


@pytest.mark.parametrize("what", ["drop", "cut"])
def test_what_is_too_long(what, tmp_path) -> None:
    """Named and counted; what is cut has no end of turn; the same after a resumption."""
    recipe = write_recipe(tmp_path, "sft", SFT)
    words = ["eval.every_steps=0", "train.max_length=20", f"train.when_longer={what}", "train.max_steps=6"]
    results = [
        unmask("sft", recipe, *words, f"train.max_steps={steps}", f"run.dir={tmp_path / name}", *more)
        for name, steps, more in (("whole", 6, []), ("torn", 3, []), ("torn", 6, ["--resume"]))
    ]
    assert [result.returncode for result in results] == [0, 0, 0], results
    records = read_metrics(tmp_path / "whole")
    assert 0 < sum(record["num_too_long"] for record in records) < 6 * 8
    assert f"tokens, {'cut' if what == 'cut' else 'left out'} (train.max_length 20)" in results[0].stderr
    assert (tmp_path / "torn" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_lengths_by_themselves() -> None:
    class Named:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Example:
            return Example(id=f"n{index}", messages=({"role": "user", "content": "?"},))

    said: list[str] = []
    items = [
        Demonstration(i, 0, [5] * 3, [*range(10, 12 + 3 * i)], step_map=[*range(2 + 3 * i)], name=f"n{i}") for i in range(3)
    ]
    cut = Lengths(SftTrainConfig(max_length=6, when_longer="cut"), Named(), said.append)
    found, num = cut.fit(items)
    assert [(item.response_ids, item.step_map) for item in found] == [
        ([10, 11], [0, 1]), ([10, 11, 12], [0, 1, 2]), ([10, 11, 12], [0, 1, 2])
    ]  # fmt: skip
    assert num == 2
    assert said == ["example n1: 8 tokens, cut (train.max_length 6)", "example n2: 11 tokens, cut (train.max_length 6)"]
    drop = Lengths(SftTrainConfig(max_length=6), Named(), said.append)
    assert [item.key for item in drop.fit(items)[0]] == [0]
    with pytest.raises(UnmaskError, match=r"example n1: 8 tokens, more than train\.max_length 6"):
        Lengths(SftTrainConfig(max_length=6, when_longer="stop"), Named(), said.append).fit(items)
    with pytest.raises(UnmaskError, match=r"all 3 examples are longer than train\.max_length 1"):
        Lengths(SftTrainConfig(max_length=1), Named(), said.append).fit(items * 2)


def test_a_given_order_is_trained_as_if_it_had_been_decoded() -> None:
    """Step by step in each block; what fills up the last block stays masked."""
    spec = make_model().spec  # blocks of 4
    made = SFT_OBJECTIVES["trace"]
    item = Demonstration(0, 0, [7, 8], [11, 12, 13, 14, 15], step_map=[1, 0, 2, 3, 3])
    [row] = made(made.Options(), spec, 0).rows([item])
    copies = [row.input_ids[row.copy == c].tolist() for c in range(1, row.copy.max() + 1)]
    mask = spec.mask_token_id
    assert copies == [[7, 8, mask, mask], [7, 8, mask, 12], [mask] * 4, [13, mask, mask, mask]]
    assert row.target_ids.tolist() == [12, 11, 13, 14, 15]
    with pytest.raises(UnmaskError, match="step_map has 3 steps, but the response 4 tokens in this tokenizer"):
        fit_steps([0, 1, 2], [1, 2, 3, 4, 5], "x")
    assert fit_steps([0, 2, 1], [1, 2, 3, 4], "x") == [0, 2, 1, 3]


def test_with_full_attention_a_given_order_does_not_show_where_the_response_ends() -> None:
    """Its last window is filled up with masks, which are no targets; as the traces of `unmask traces` are."""
    spec = full_attention_model("llada").spec
    made = SFT_OBJECTIVES["trace"]
    item = Demonstration(0, 0, [7, 8], [11, 12, 13, 14, 15], step_map=[1, 0, 2, 3, 3])
    rows = made(made.Options(block_size=4), spec, 0).rows([item])
    mask = spec.mask_token_id
    assert [row.input_ids.tolist() for row in rows] == [
        [7, 8, *[mask] * 8], [7, 8, mask, 12, *[mask] * 6], [7, 8, 11, 12, *[mask] * 6], [7, 8, 11, 12, 13, *[mask] * 5],
    ]  # fmt: skip
    assert [row.target_ids.tolist() for row in rows] == [[12], [11], [13], [14, 15]]
    assert len(made(made.Options(), spec, 0).rows([item])[0].input_ids) == 2 + 32


def test_other_data_than_it_began_with_ends_a_resumption(tmp_path) -> None:
    first = tmp_path / "first"
    assert unmask("sft", write_recipe(tmp_path, "sft", SFT), "train.max_steps=1", f"run.dir={first}").returncode == 0
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "1+2=?", "response": "12"}) + "\n")
    text = SFT.replace('preset = "sdar/tiny"', f'path = "{first}"').replace("every_steps = 3", "every_steps = 0")
    words = [f"source={{name='jsonl', options={{path='{rows}'}}}}", f"run.dir={tmp_path / 'run'}"]
    recipe = write_recipe(tmp_path, "rows", text)
    assert unmask("sft", recipe, *words, "train.max_steps=2").returncode == 0
    assert unmask("sft", recipe, *words, "train.max_steps=3", "--resume").returncode == 0
    rows.write_text(json.dumps({"question": "1+2=?", "response": "13"}) + "\n")
    result = unmask("sft", recipe, *words, "train.max_steps=4", "--resume")
    assert (result.returncode, "the training data (source.options) has changed" in result.stderr) == (2, True), result.stderr
    long = unmask("sft", recipe, *words[:1], f"run.dir={tmp_path / 'long'}", "train.max_length=3")
    assert (long.returncode, (tmp_path / "long").exists()) == (2, False)
    assert "all 1 examples are longer than train.max_length 3" in long.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.max_length=3", "eval.num_examples=0"], "all 16 held-out examples are longer than train.max_length 3"),
        (["eval.loss_rates=[0.000001]"], "eval.num_loss_examples: nothing of 16 examples is masked for loss_at_1e-06"),
        (["lora.dropout=0.5"], "set lora.rank"),
    ],
)
def test_what_could_not_be_measured_is_found_before_the_run(words, message, tmp_path) -> None:
    result = unmask("sft", write_recipe(tmp_path, "sft", SFT), *WORDS, *words, f"run.dir={tmp_path / 'run'}")
    assert (result.returncode, result.stderr.count("\n"), (tmp_path / "run").exists()) == (2, 1, False), result.stderr
    assert message in result.stderr


def test_held_out_losses_are_at_their_rate_and_in_the_blocks_of_the_stage(tmp_path, monkeypatch) -> None:
    """Also where training has complements (whose rate is another), and before the first step."""
    measured, measure = [], Trainer.measure

    def spy(self, rows, loss_fn):
        sizes = {int((row.copy == copy).sum()) for row in rows for copy in set(row.copy) - {0}}
        measured.append((sizes, sum(len(row.target_ids) for row in rows)))
        return measure(self, rows, loss_fn)

    monkeypatch.setattr(Trainer, "measure", spy)
    words = [*WORDS, "eval.at_start=true", "eval.loss_rates=[0.1]", "objective.options.has_complements=true"]
    words += ["block_schedule=[{from_step=0,block_size=1},{from_step=2,block_size=2},{from_step=5,block_size=4}]"]
    result = unmask("sft", write_recipe(tmp_path, "sft", SFT), *words, f"run.dir={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    assert [sizes for sizes, _ in measured] == [{1}, {1}, {2}, {4}, {4}]  # before, and after steps 2, 4, 6 and 8
    folder = tmp_path / "run" / "checkpoints" / "step-00000008"
    source, tokenizer = open_source(Plugin(name="chained_arithmetic", options={}), "held_out", 0), ChatTokenizer.load(folder)
    num_tokens = sum(len(demonstration(source, tokenizer, i, 0).response_ids) for i in range(16))
    assert all(num_targets < num_tokens / 2 for _, num_targets in measured)


def test_another_metric_begins_anew(tmp_path) -> None:
    """What was best of the accuracy says nothing about the loss; RUN/best is never that of another metric."""
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    words = [*WORDS, "eval.num_examples=4", "eval.every_steps=1", f"run.dir={run}"]
    first = ["checkpoint.keep_best=accuracy", "stop.metric=accuracy", "stop.patience=9", "train.max_steps=2"]
    assert unmask("sft", recipe, *words, *first).returncode == 0
    second = ["checkpoint.keep_best=loss", "stop.metric=loss", "stop.patience=2", "train.max_steps=6", "--resume"]
    result = unmask("sft", recipe, *words, *second)
    assert "did all its steps after step 6" in result.stdout, result
    losses = {record["step"]: record["eval/loss"] for record in records_of(run) if record["step"] > 2}
    assert (run / "best").resolve().name == f"step-{min(losses, key=lambda step: losses[step]):08d}"


def test_killed_before_the_best_one_was_linked(tmp_path) -> None:
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    words = [*WORDS, "checkpoint.keep_best=loss", f"run.dir={run}"]
    assert unmask("sft", recipe, *words).returncode == 0
    best = (run / "best").resolve()
    (run / "best").unlink()
    assert unmask("sft", recipe, *words, "--resume").returncode == 0
    assert (run / "best").resolve() == best


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"step_map": [0]}, "example 2: step_map has 1 steps"),
        ({"step_map": [0, -3]}, "rows.jsonl:2: step_map.1: Input should be greater than or equal to 0, found -3"),
        ({"step_map": [0, 10**30]}, "rows.jsonl:2: step_map.1"),
        ({}, "example 2: has no trace; trace SFT needs them"),
    ],
)
def test_an_order_that_is_none_is_found_before_the_run(row, message, tmp_path) -> None:
    assert (
        unmask("sft", write_recipe(tmp_path, "sft", SFT), "train.max_steps=1", f"run.dir={tmp_path / 'first'}").returncode == 0
    )
    rows = [{"question": "1+2=?", "response": "12", "step_map": [0, 1]}, {"question": "1+3=?", "response": "123", **row}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = SFT.replace('preset = "sdar/tiny"', f'path = "{tmp_path / "first"}"').replace("every_steps = 3", "every_steps = 0")
    words = [f"source={{name='jsonl', options={{path='{tmp_path / 'rows.jsonl'}'}}}}", "objective.name=trace"]
    result = unmask("sft", write_recipe(tmp_path, "traces", text), *words, f"run.dir={tmp_path / 'run'}")
    assert (result.returncode, result.stderr.count("\n"), (tmp_path / "run").exists()) == (2, 1, False), result.stderr
    assert message in result.stderr
