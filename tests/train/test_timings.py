"""What the ranks' timings say together, and the table of them."""

from __future__ import annotations

import json

import pytest

from tests.recipes import unmask
from unmask.errors import UnmaskError
from unmask.train.peak_flops import peak_of_name
from unmask.train.timings import over_ranks, read_timings, summarise


def record(step: int, rank: int, rollout: float, wait: float, **more: float) -> dict[str, float]:
    return {
        "step": step, "rank": rank, "rollout_s": rollout, "rollout_wait_s": wait, "update_s": 2.0, "step_s": rollout + 3.0,
        "update_tflop_per_s": 4.0, "peak_memory_gb": 1.0 + rank, **more,
    }  # fmt: skip


# Both ranks take six seconds for their rollouts, of which the first waits four and the second none.
STEPS = [(step, [record(step, 0, 6.0, 4.0), record(step, 1, 6.0, 0.0)]) for step in (3, 4)]


def test_mean_and_largest_over_ranks() -> None:
    together = over_ranks([{"step": 1, "rank": 0, "a_s": 1.0}, {"step": 1, "rank": 1, "a_s": 4.0, "b": 2}])
    assert together == {"a_s": 2.5, "a_s_max": 4.0, "b": 2.0, "b_max": 2}
    assert over_ranks([{"step": 1, "a_s": 1.5}]) == {"a_s": 1.5}


def test_who_is_waited_for() -> None:
    found = summarise([(2, [record(2, 0, 99.0, 0.0)]), *STEPS])  # before: another number of ranks
    assert (found.first_step, found.last_step, found.num_ranks) == (3, 4, 2)
    phases = {phase.name: phase for phase in found.phases}
    assert list(phases) == ["rollout", "update", "rest", "step"]
    rollout = phases["rollout"]
    assert (rollout.seconds, rollout.busy_s, rollout.slowest_rank, rollout.imbalance) == (6.0, 4.0, 1, 1.5)
    assert rollout.share == pytest.approx(6 / 9)
    assert (phases["rest"].seconds, phases["step"].share, phases["update"].imbalance) == (1.0, 1.0, 1.0)
    assert found.means["update_tflop_per_s"] == 4.0
    assert found.largest_memory_gb == (2.0, 1)


def test_a_phase_counts_in_the_steps_that_have_it() -> None:
    steps = [(1, [{"step": 1, "step_s": 1.0, "eval_s": 5.0}]), (2, [{"step": 2, "step_s": 3.0, "value_s": 2.0}])]
    phases = {phase.name: phase for phase in summarise(steps).phases}
    assert (phases["value"].seconds, phases["value"].share, phases["eval"].seconds) == (2.0, 0.5, 5.0)
    assert phases["rest"].seconds == 1.0  # and an evaluation is no part of a step


def test_the_command_prints_a_table(tmp_path) -> None:
    lines = [{**one, "update_mfu": 0.4, "trained_tokens_per_s": 1234.0} for _, ranks in STEPS for one in ranks]
    (tmp_path / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = unmask("timings", tmp_path)
    assert done.returncode == 0, done.stderr
    table = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert "steps 3 to 4, 2 ranks" in done.stdout
    assert table["phase"] == ["phase", "seconds", "of", "a", "step", "TFLOP/s", "MFU", "waited", "slowest", "imbalance"]
    assert table["rollout"] == ["rollout", "6.000", "66.7%", "2.000", "rank", "1", "1.50"]
    assert table["update"] == ["update", "2.000", "22.2%", "4", "40.0%", "0.000", "rank", "0", "1.00"]
    assert "trained tokens/s 1,234" in done.stdout
    assert "peak memory 2.00 GB (rank 1)" in done.stdout
    assert "steps 4 to 4" in unmask("timings", tmp_path, "--last", "1").stdout
    alone = [{name: value for name, value in line.items() if name != "rank"} for line in lines[::2]]
    (tmp_path / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in alone))
    assert "slowest" not in unmask("timings", tmp_path).stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing is recorded yet"),
        ('{"step": 1, "step_s": "x"}\n', "timings.jsonl:1: step_s is 'x', expected a number"),
        ('{"step": 1}\n', "timings.jsonl:1: step_s is None, expected a number"),
        ('{"step_s": 1}\n', "timings.jsonl:1: step is None, expected a whole number"),
        (None, "not a run folder (no timings.jsonl)"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, text, message) -> None:
    if text is not None:
        (tmp_path / "timings.jsonl").write_text(text)
    done = unmask("timings", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    with pytest.raises(UnmaskError, match="no such folder"):
        list(read_timings(tmp_path / "none"))


def test_peaks_by_name() -> None:
    """As `torch.cuda.get_device_name` has them."""
    assert peak_of_name("NVIDIA H100 80GB HBM3", "bfloat16") == 989.5e12
    assert peak_of_name("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_of_name("NVIDIA H200", "tf32") == 494.7e12
    assert peak_of_name("NVIDIA A100-SXM4-80GB", "float32") == 19.5e12
    assert peak_of_name("Some other GPU", "bfloat16") is None
