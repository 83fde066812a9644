"""The launcher of several ranks without ranks: what it does with how they end."""

from __future__ import annotations

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from tests.recipes import SFT, unmask, write_recipe
from unmask.cli import several
from unmask.cli.several import Failure, run_several
from unmask.errors import UnmaskError
from unmask.metrics import read_metrics


def ended(exit_code: int, message: str = "", timestamp: int = 100) -> ProcessFailure:
    failure = ProcessFailure(local_rank=0, pid=7, exitcode=exit_code, error_file="<N/A>")
    failure.timestamp = timestamp
    if message:
        failure.error_file, failure.message = "FILE", {"message": message}
    return failure


def found(**failures: ProcessFailure) -> Failure:
    return several._find_failure(ChildFailedError("unmask", {int(name[1:]): failure for name, failure in failures.items()}))


LOST = f"{several._LOST} (Connection closed by peer)"
ENDED = "rank 1 (process 7) failed, and all ranks were ended: "


def test_which_rank_is_to_blame() -> None:
    assert found(r0=ended(1, LOST, 99), r1=ended(-9)) == Failure(137, f"{ENDED}was ended by signal 9")
    assert found(r0=ended(-15), r1=ended(1, "Traceback: x")) == Failure(1, f"{ENDED}Traceback: x")
    assert found(r0=ended(-6), r1=ended(75, "packs of 32")) == Failure(75, "packs of 32", asks_for_more=True)
    assert not found(r0=ended(75)).asks_for_more  # somebody else's code
    assert found(r0=ended(143), r1=ended(143)) == Failure(143)
    with pytest.raises(UnmaskError, match=r"^no such key$"):
        found(r0=ended(2, "no such key"), r1=ended(1, LOST))


@pytest.mark.parametrize(
    "message",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1",
        "NCCL communicator was aborted on rank 1.",
    ],
)
def test_who_lost_another_says_so(message) -> None:
    assert several.describe_defect(RuntimeError(message)).startswith(several._LOST)
    assert not several.describe_defect(RuntimeError("shapes differ")).startswith(several._LOST)


def test_how_often_ranks_start(monkeypatch, capsys) -> None:
    more, dead = Failure(75, "packs of 32", asks_for_more=True), Failure(137, "rank 1 failed")
    for ends, most, code, num in (
        ([more, more, Failure(0)], 0, 0, 3), ([dead], 0, 137, 1), ([dead, more, dead], 1, 137, 3),
        ([dead, Failure(0)], 1, 0, 2), ([Failure(143)], 3, 143, 1),
    ):  # fmt: skip
        calls, left = [], list(ends)

        def run_once(num_processes, arguments, run_id, calls=calls, left=left):
            calls.append(run_id)
            return left.pop(0)

        monkeypatch.setattr(several, "_run_once", run_once)
        assert run_several(2, ["sft"], most) == code
        assert (len(calls), len(set(calls))) == (num, 1)  # of one launcher
        assert capsys.readouterr().err.count("all ranks start again") == num - 1


def test_ranks_go_on_with_what_their_launcher_began(tmp_path, monkeypatch) -> None:
    """Not with what another one did, which is refused as ever."""
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    words = ("sft", recipe, f"run.dir={run}", "eval.every_steps=0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert unmask(*words, "train.max_steps=2").returncode == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "2")
    refused = unmask(*words)
    assert (refused.returncode, "is not empty" in refused.stderr) == (2, True)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert unmask(*words).returncode == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    result = unmask(*words)
    assert result.returncode == 0, result.stderr
    assert "resuming after step 2" in result.stderr
    assert len(read_metrics(run)) == 6


def test_restarts_are_of_several_processes(tmp_path) -> None:
    result = unmask("sft", write_recipe(tmp_path, "sft", SFT), "--max-restarts", "2")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--max-restarts is of several processes; give --nproc, too" in result.stderr
