"""Chrome traces of steps: there, whole, with the phases as ranges, and without any effect on the run."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from tests.recipes import RL, unmask, write_recipe
from unmask.errors import UnmaskError
from unmask.train.profiling import StepProfiler, check_whole


@pytest.mark.slow
def test_a_profiled_run_is_the_same_run(tmp_path) -> None:
    recipe = write_recipe(tmp_path, "rl", RL)
    words = ["train.max_steps=2", "run.num_threads=1", "value.enabled=true", "eval.every_steps=0", "train.group_size=2"]
    plain = unmask("rl", recipe, f"run.dir={tmp_path / 'plain'}", *words)
    run = tmp_path / "run"
    done = unmask("rl", recipe, f"run.dir={run}", *words, "train.profile_steps=[1]")
    assert (plain.returncode, done.returncode) == (0, 0), done.stderr
    trace = run / "profiles" / "step-00000001-rank-0.json.gz"
    assert done.stderr.count(f"profiled: {trace}\n") == 1
    done = unmask("rl", recipe, f"run.dir={run}", *words, "train.profile_steps=[]", "--resume")  # may change on the way
    assert done.returncode == 0, done.stderr
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()
    weights = "checkpoints/step-00000002/model.safetensors"
    assert (run / weights).read_bytes() == (tmp_path / "plain" / weights).read_bytes()
    assert [path.name for path in (run / "profiles").iterdir()] == [trace.name]
    with gzip.open(trace) as stream:
        events = json.load(stream)["traceEvents"]
    ranges = {event["name"]: event for event in events if event.get("cat") == "user_annotation"}
    assert {"rollout", "rows", "value", "update"} <= ranges.keys()
    update = ranges["update"]
    inside = [event for event in events if event["name"] == "aten::mm" and event["ts"] >= update["ts"]]
    assert any(event["ts"] <= update["ts"] + update["dur"] for event in inside)


def test_a_step_that_fails_leaves_nothing(tmp_path) -> None:
    profiler = StepProfiler(tmp_path, [1], torch.device("cpu"), 0)
    profiler.begin(1)
    profiler.close()
    assert profiler.end() is None
    profiler.begin(2)
    assert profiler.end() is None
    assert not list(tmp_path.iterdir())


def test_a_trace_that_was_cut_is_no_trace(tmp_path) -> None:
    (tmp_path / "whole.json").write_text('{"traceEvents": [{}]\n}\n')
    check_whole(tmp_path / "whole.json", tmp_path / "trace")
    (tmp_path / "cut.json").write_text('{"traceEvents": [{')
    (tmp_path / "empty.json").write_text("")
    for name in ("cut.json", "empty.json"):
        with pytest.raises(UnmaskError, match="trace: the trace could not be written whole"):
            check_whole(tmp_path / name, tmp_path / "trace")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path) -> None:
    (tmp_path / "profiles").write_text("in the way")
    profiler = StepProfiler(tmp_path, [1], torch.device("cpu"), 0)
    profiler.begin(1)
    with pytest.raises(UnmaskError, match="File exists"):
        profiler.end()
