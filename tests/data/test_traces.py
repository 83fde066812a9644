"""Recorded traces as a source: their ids are trained as they are."""

from __future__ import annotations

import json
import re

import pytest

from tests.conftest import make_model, random_prompts
from tests.recipes import SFT, unmask, write_recipe
from unmask.config import Plugin
from unmask.data.sources import open_source
from unmask.diffusion.generate import generate
from unmask.errors import UnmaskError
from unmask.metrics import read_metrics
from unmask.objectives.trace_rl import TraceRL
from unmask.objectives.trace_sft import TraceSft
from unmask.objectives.trace_views import trace_rows
from unmask.objectives.views import Grid
from unmask.train.demonstrations import demonstration
from unmask.types import Demonstration, Rollout, SamplingParams, TraceRecord


@pytest.fixture(scope="module")
def traces():
    params = SamplingParams(max_new_tokens=11, stop_token_ids=(1, 11, 12, 13))
    return generate(make_model(), random_prompts([5, 9, 6, 2] * 3), params)


@pytest.fixture
def file(tmp_path, traces):
    path = tmp_path / "traces.jsonl"
    rows = [TraceRecord(str(i), t, "1+2=?", "x", reward=float(i % 2)).to_dict() for i, t in enumerate(traces)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_records_are_chosen(file, traces) -> None:
    def ids(**options) -> list[str]:
        source = open_source(Plugin(name="traces", options={"path": str(file), **options}), "train", 0)
        return [source[i].id for i in range(len(source))]

    stopped = [i for i, t in enumerate(traces) if t.finish_reason == "stop"]
    assert 0 < len(stopped) < len(traces)
    assert ids() == [str(i) for i in stopped]
    assert ids(drops_cut=False) == [str(i) for i in range(len(traces))]
    assert ids(min_reward=1.0) == [str(i) for i in stopped if i % 2]
    with pytest.raises(UnmaskError, match="none of its 12 traces is left; see min_reward and drops_cut"):
        ids(min_reward=2.0)


def test_several_responses_to_a_prompt(tmp_path, traces) -> None:
    """Have ids of their own, and the first ones that are right may be taken."""
    path = tmp_path / "traces.jsonl"
    rows = [TraceRecord("ab"[i % 2], t, reward=float(i > 2), member=i // 2).to_dict() for i, t in enumerate(traces)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": str(path), "drops_cut": False, "min_reward": 1.0, "max_per_prompt": 2}
    source = open_source(Plugin(name="traces", options=options), "train", 0)
    assert [source[i].id for i in range(len(source))] == ["b/1", "a/2", "b/2", "a/3"]
    assert [source[i].trace for i in range(len(source))] == [traces[i] for i in (3, 4, 5, 6)]


def test_the_rows_are_those_of_rl(file, traces) -> None:
    model = make_model()
    source = open_source(Plugin(name="traces", options={"path": str(file), "drops_cut": False}), "train", 0)
    items = [demonstration(source, None, i, 0) for i in range(3)]
    rows = TraceSft(TraceSft.Options(), model.spec, 0).rows(items)
    rl = TraceRL(TraceRL.Options(loss_normalization="token"), model.spec)
    wanted = rl.rows([Rollout(t, "", advantage=1.0) for t in traces[:3]], 3)
    for row, want in zip(rows, wanted, strict=True):
        assert row.input_ids.tolist() == want.input_ids.tolist()
        assert row.target_column.tolist() == want.target_column.tolist()
        assert row.values["weight"].tolist() == want.values["weight"].tolist()
    [first] = trace_rows(traces[0], Grid(4), 2)
    assert rows[0].input_ids.tolist() == first.input_ids.tolist()


@pytest.mark.parametrize(("options", "block_size", "shrink"), [({"trace_shrink": 2}, 4, 2), ({"block_size": 8}, 8, 1)])
def test_options_of_trace_sft(traces, options, block_size, shrink) -> None:
    objective = TraceSft(TraceSft.Options(**options), make_model().spec, 0)
    rows = objective.rows([Demonstration(i, 0, t.prompt_ids, t.response_ids, t) for i, t in enumerate(traces)])
    wanted = [row for t in traces for row in trace_rows(t, Grid(block_size), 2, trace_shrink=shrink)]
    plain = [row for t in traces for row in trace_rows(t, Grid(4), 2)]
    assert [row.input_ids.tolist() for row in rows] == [row.input_ids.tolist() for row in wanted]
    assert [row.input_ids.tolist() for row in rows] != [row.input_ids.tolist() for row in plain]


def test_token_ids_are_those_of_the_model(tmp_path, file) -> None:
    """Refused before there is a run folder, with file and line."""
    recipe = write_recipe(tmp_path, "sft", SFT)  # its tokenizer has fewer tokens than the model that decoded these
    assert unmask("sft", recipe, "train.max_steps=1", "eval.every_steps=0", f"run.dir={tmp_path / 'base'}").returncode == 0
    words = ["source.name=traces", f"source.options={{path='{file}', drops_cut=false}}", "objective.name=trace"]
    bare = write_recipe(tmp_path, "bare", SFT.replace('[model]\npreset = "sdar/tiny"\n', ""))
    model = f"model={{path='{tmp_path / 'base'}'}}"
    done = unmask("sft", bare, model, *words, "eval.every_steps=0", f"run.dir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    wanted = rf"{re.escape(str(file))}:1: token id \d\d, but the model's vocabulary has \d\d tokens"
    assert re.search(wanted, done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


def test_broken_blocks_are_named_with_their_line(file, traces, tmp_path) -> None:
    """Of the objective's own blocks; other blocks are filled up."""
    spec = make_model().spec
    source = open_source(Plugin(name="traces", options={"path": str(file), "drops_cut": False}), "train", 0)
    source.check_model(spec)
    source._examples[3].trace.canvas_ids.append(5)
    num = traces[3].num_tokens + 1
    with pytest.raises(UnmaskError, match=rf"traces.jsonl:4: prompt and canvas have {num} tokens, not whole blocks of 4"):
        source.check_model(spec)
    source.check_model(spec, block_size=8)
    source.check_model(make_model().spec.__class__(**{**spec.__dict__, "attention": "bidirectional"}))


def test_traces_of_nothing_are_left_out(tmp_path, traces) -> None:
    record = TraceRecord("0", traces[0], "1+2=?", "x").to_dict()
    record["trace"]["step_map"] = [-1] * len(record["trace"]["step_map"])
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(UnmaskError, match="none of its 1 traces is left"):
        open_source(Plugin(name="traces", options={"path": str(path), "drops_cut": False}), "train", 0)


@pytest.mark.parametrize("objective", ["trace", "semi_ar", "random_masking"])
def test_every_objective_trains_on_what_eval_recorded(tmp_path, objective) -> None:
    """From a model to traces of its training questions to SFT on them, by the commands."""
    base = write_recipe(tmp_path, "sft", SFT)
    assert unmask("sft", base, "train.max_steps=1", "eval.every_steps=0", f"run.dir={tmp_path / 'base'}").returncode == 0
    words = ["split=train", "num_examples=8", "modes.dynamic.max_new_tokens=12", "modes.static.max_new_tokens=12"]
    assert unmask("eval", tmp_path / "base", *words, "--output", tmp_path / "traces").returncode == 0
    options = [f"source.options={{path='{tmp_path / 'traces' / 'traces-chained_arithmetic-dynamic.jsonl'}', drops_cut=false}}"]
    run = [f"model={{path='{tmp_path / 'base'}'}}", "source.name=traces", f"objective.name={objective}", "eval.every_steps=0"]
    recipe = write_recipe(tmp_path, "bare", SFT.replace('[model]\npreset = "sdar/tiny"\n', ""))
    done = unmask("sft", recipe, *run, *options, "train.max_steps=6", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    losses = [r["loss"] for r in read_metrics(tmp_path / "run")]
    assert losses[-1] < losses[0]


def test_demonstrations_without_a_trace_are_refused_in_time(tmp_path) -> None:
    result = unmask("sft", write_recipe(tmp_path, "sft", SFT), "objective.name=trace", f"run.dir={tmp_path / 'run'}")
    assert result.returncode == 2
    assert "has no trace; trace SFT needs them: use the source traces" in result.stderr
    assert not (tmp_path / "run").exists()
