"""A fleet of rollout actors decodes what the training process does, whatever happens to actors."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from tests.recipes import RL, unmask, write_recipe
from tests.train.test_durability import assert_same_end
from tests.train.test_ranks import FORWARDED
from unmask.config import EngineLimits
from unmask.config.training import FleetConfig, LoraConfig
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.launch import parts
from unmask.metrics import read_metrics
from unmask.models import Decoder
from unmask.models.lora import add_lora
from unmask.rl import fleet as fleet_module
from unmask.rl import sending
from unmask.rl.actor import ActorPlan, RolloutActor
from unmask.rl.ahead import StepRollouts
from unmask.rl.cluster import num_with_room, start_ray
from unmask.rl.fleet import Fleet
from unmask.rl.weights import chunk_sizes, cut, describe, fill, split_names, whole_tensors
from unmask.train.techniques import copy_to_decode
from unmask.train.trainer import autocast
from unmask.types import SamplingParams, Trace

PARAMS = SamplingParams(max_new_tokens=24)
LIMITS = EngineLimits(num_pages=256)


def plan_of(model: Decoder, lora: LoraConfig | None = None) -> ActorPlan:
    """Stop strings, which need text, are its death."""
    return ActorPlan(
        model.spec, model.dtype, "cpu", "float32", 1, 0.0, lora or LoraConfig(), LIMITS, lambda ids: os._exit(1)
    )  # fmt: skip


def prompts_of(num: int) -> list[list[int]]:
    rng = np.random.default_rng(num)
    return [rng.integers(3, 40, rng.integers(1, 12)).tolist() for _ in range(num)]


def seeded(num: int) -> list[SamplingParams]:
    return [PARAMS.model_copy(update={"seed": i}) for i in range(num)]


def run_stream(sampler, num: int, on_news=lambda: None) -> list[Trace]:
    traces: dict[int, Trace] = {}
    for index, output in sampler.stream(prompts_of(num), seeded(num)):
        if output.trace is not None:
            assert index not in traces
            traces[index] = output.trace
        on_news()
    return [traces[index] for index in range(num)]


def assert_decoded_as(found: list[Trace], wanted: list[Trace], tolerance: float = 1e-5) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert (a.canvas_ids, a.step_map, a.seed, a.policy_version) == (b.canvas_ids, b.step_map, b.seed, b.policy_version)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=tolerance, rtol=0)


def decoded_here(model: Decoder, num: int, version: int) -> list[Trace]:
    engine = Engine(model, **LIMITS.model_dump())
    engine.update_weights(policy_version=version)
    return run_stream(engine, num)


# Weights on their way.


@pytest.mark.parametrize("chunk_bytes", [1, 7, 4096, 10**9])
def test_weights_arrive_whatever_the_chunks(model, chunk_bytes) -> None:
    other = make_model(5)
    part = ["norm.weight", "layers.0.mlp.up_proj.weight"] if chunk_bytes < 100 else split_names(model)[1]
    infos = describe(model, part, "float32")
    chunks = list(cut(whole_tensors(model, infos), chunk_bytes))
    assert [len(chunk) for chunk in chunks] == chunk_sizes(infos, chunk_bytes)
    fill(other, infos, chunks)
    assert all(torch.equal(other.state_dict()[name], model.state_dict()[name]) for name in part)
    with pytest.raises(UnmaskError, match="new weights: "):
        fill(make_model(hidden_size=32), describe(model, ["norm.weight"], "float32"), chunks)


def test_what_never_changes_is_sent_once() -> None:
    model = make_model()
    add_lora(model, rank=2)
    fixed, trained = split_names(model)
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 7 * model.spec.num_layers
    assert not any("lora_" in name for name in fixed)


def test_an_actor_gives_the_same_whatever_it_did_before() -> None:
    """Bit for bit: its pages hold nothing of other tasks, though prompts begin alike."""
    model = make_model()
    actor = RolloutActor()
    actor.build(plan_of(model))
    fixed, trained = split_names(model)
    assert fixed == []
    infos = describe(model, trained, "float32")
    actor.set_weights(3, infos, *[c.numpy() for c in cut(whole_tensors(model, infos), 10**6)])
    prompts = [[5] * 40 + rest for rest in prompts_of(4)]

    def decode() -> dict[int, Trace]:
        return dict(pair for news in actor.decode(3, prompts, seeded(4)) for pair in news)

    first = decode()
    shared = actor.engine.stats.num_shared_tokens
    list(actor.decode(3, prompts[::-1], seeded(4)))
    assert decode() == first
    assert actor.engine.stats.num_shared_tokens == 3 * shared  # each task shared as much: its own prompts, no others'
    with pytest.raises(UnmaskError, match="weights of version 4, and has 3"):
        list(actor.decode(4, prompts, seeded(4)))


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_actor_has_the_adapters(use_dora) -> None:
    model, config = make_model(), LoraConfig(rank=2, use_dora=use_dora)
    add_lora(model, **config.model_dump(exclude={"base_bits"}), base="")
    plain = decoded_here(model, 6, 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    actor = RolloutActor()
    actor.build(plan_of(model, config))
    infos = [info for names in split_names(model) for info in describe(model, names, "float32")]
    chunks = [c.numpy() for c in cut(whole_tensors(model, infos), 1000)]
    actor.set_weights(1, infos, *chunks)
    wanted = decoded_here(model, 6, 1)
    assert [t.canvas_ids for t in wanted] != [t.canvas_ids for t in plain]
    found = dict(pair for news in actor.decode(1, prompts_of(6), seeded(6)) for pair in news)
    assert_decoded_as([found[i] for i in range(6)], wanted)


def test_an_actor_in_bfloat16_has_half_the_bytes() -> None:
    """Its layers and head, as the engine of a rank has them: bit for bit what that decodes."""
    model = make_model(tie_word_embeddings=False)
    wanted_model = copy_to_decode(model, model.device, "bfloat16")
    assert not any(parameter.requires_grad for parameter in wanted_model.parameters())
    actor = RolloutActor()
    actor.build(dataclasses.replace(plan_of(model), precision="bfloat16"))
    names = split_names(model)[1]
    infos = describe(model, names, "bfloat16")
    num_lower = sum(info.num_bytes for info in infos if info.dtype == torch.bfloat16)
    assert {info.name for info in infos if info.dtype == torch.float32} == {"embed_tokens.weight", "norm.weight"}
    assert 2 * num_lower == sum(model.state_dict()[info.name].nbytes for info in infos if info.dtype == torch.bfloat16)
    actor.set_weights(1, infos, *[c.numpy() for c in cut(whole_tensors(model, infos), 1000)])
    own = actor.model.state_dict()
    assert all(own[name].dtype == tensor.dtype for name, tensor in wanted_model.state_dict().items())
    assert all(torch.equal(own[name], tensor) for name, tensor in wanted_model.state_dict().items())
    with autocast("bfloat16", model.device):
        wanted = decoded_here(wanted_model, 6, 1)
    found = dict(pair for news in actor.decode(1, prompts_of(6), seeded(6)) for pair in news)
    assert_decoded_as([found[i] for i in range(6)], wanted, 0.0)


# Actors of a real cluster; it is started once.


@pytest.fixture(scope="module")
def cluster():
    """Ray, for this process; runs use it, too."""
    ray = pytest.importorskip("ray")
    start_ray(FleetConfig(num_actors=6), torch.device("cpu"))
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def fleet(cluster):
    model = make_model()
    with Fleet(FleetConfig(num_actors=2, responses_per_task=3, chunk_mb=1), model, plan_of(model)) as fleet:
        fleet.update_weights(policy_version=0)
        while len(fleet.pids()) < 2:
            run_stream(fleet, 4)
        yield fleet


def change(fleet: Fleet, version: int) -> list[Trace]:
    """New weights, which actors are told of; what is to be decoded with them."""
    with torch.no_grad():
        for parameter in fleet.model.parameters():
            parameter.mul_(1.02)
    fleet.update_weights(policy_version=version)
    return decoded_here(fleet.model, 16, version)


def test_actors_decode_what_the_engine_does(fleet) -> None:
    wanted = change(fleet, 1)
    first = run_stream(fleet, 16)
    assert_decoded_as(first, wanted)
    with torch.no_grad():
        fleet.model.norm.weight.mul_(1.5)  # without an announcement, actors do not know of it
    assert run_stream(fleet, 16) == first
    second = change(fleet, 2)
    assert [t.canvas_ids for t in second] != [t.canvas_ids for t in first]
    assert_decoded_as(run_stream(fleet, 16), second)


def test_weights_are_sent_through_a_group(fleet, monkeypatch) -> None:
    """And through the store where that fails, in one line."""
    said: list[str] = []
    monkeypatch.setattr(fleet, "say", said.append)
    monkeypatch.setattr(fleet.sender, "is_collective", True)
    before = fleet.sender.num_collective
    for version in (3, 4):
        wanted = change(fleet, version)
        assert_decoded_as(run_stream(fleet, 16), wanted)
    assert fleet.sender.num_collective == before + 2
    assert said == []

    def fails(*args):
        raise RuntimeError("no way")

    monkeypatch.setattr(sending.SendGroup, "send", fails)
    monkeypatch.setattr(sending, "MEETING_S", 2.0)
    wanted = change(fleet, 5)
    assert said == ["weights of optimizer step 5 go through Ray's object store: no way"]
    assert_decoded_as(run_stream(fleet, 16), wanted)
    assert fleet.sender.num_collective == before + 2


@pytest.mark.slow
def test_an_actor_that_dies_or_hangs_is_replaced_and_nothing_changes(fleet, monkeypatch) -> None:
    """Bit for bit."""
    said: list[str] = []
    monkeypatch.setattr(fleet, "say", said.append)
    change(fleet, 6)
    wanted, before = run_stream(fleet, 16), fleet.num_replaced
    working, stopped = fleet.pids()
    to_kill = [working]

    def kill_once() -> None:
        if to_kill:
            os.kill(to_kill.pop(), signal.SIGKILL)

    assert run_stream(fleet, 16, kill_once) == wanted
    while len(fleet.pids()) < 2:
        run_stream(fleet, 16)
    os.kill(stopped, signal.SIGSTOP)
    monkeypatch.setattr(fleet, "config", fleet.config.model_copy(update={"timeout_s": 3.0}))
    monkeypatch.setattr(fleet, "say", lambda line: (said.append(line), monkeypatch.undo()))  # a busy machine starts slowly
    assert run_stream(fleet, 16) == wanted
    assert said == [
        f"rollout actor {working} is replaced: its process died",
        f"rollout actor {stopped} is replaced: no news for 3 seconds",
    ]
    assert fleet.num_replaced - before == 2


@pytest.mark.slow
def test_actors_join_as_machines_do(cluster) -> None:
    """In a cluster with room for one of two."""
    import ray

    model, said = make_model(), []
    config = FleetConfig(num_actors=2, num_cpus_per_actor=4, address="auto", responses_per_task=3)
    with Fleet(config, model, plan_of(model)) as fleet:
        fleet.say = said.append
        fleet.update_weights(policy_version=1)
        assert said == ["fleet: 1 of 2 actors have room in the cluster; others wait for it"]
        wanted = decoded_here(model, 16, 1)
        assert_decoded_as(run_stream(fleet, 16), wanted)
        assert fleet.counts() == {"num_actors": 1, "num_replaced_actors": 0}
        address = ray.get_runtime_context().gcs_address
        ray_command = Path(sys.executable).with_name("ray")
        node = subprocess.Popen(
            [ray_command, "start", "--address", address, "--num-cpus", "4", "--block"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while fleet.counts()["num_actors"] < 2:
                assert time.monotonic() < deadline
                assert_decoded_as(run_stream(fleet, 16), wanted)
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(60)
        assert_decoded_as(run_stream(fleet, 16), wanted)  # and leave as machines do


def test_mistakes_and_deaths_without_end_are_errors(fleet, monkeypatch) -> None:
    with pytest.raises(UnmaskError, match=r"^rollout actor: prompt 0.*1000"):
        list(fleet.stream([[1000]], seeded(1)))  # not in the vocabulary
    monkeypatch.setattr(fleet, "config", fleet.config.model_copy(update={"num_actors": 1}))
    deadly = [PARAMS.model_copy(update={"stop_strings": ("x",)})]
    monkeypatch.setattr(fleet_module, "DEATHS_PER_ACTOR", 1)
    message = "fleet: 1 rollout actor died in a row without a result; the last one: its process died"
    with pytest.raises(UnmaskError, match=message):
        list(fleet.stream([[5]], deadly))


def test_room_for_actors() -> None:
    """A cluster of the run's own has it for all; elsewhere machines may join. An actor is on one machine."""
    cpu, there = torch.device("cpu"), [{"CPU": 3.0, "GPU": 2.0}, {"CPU": 4.0}]
    assert num_with_room(FleetConfig(num_actors=2), cpu, there[:1]) == 2
    with pytest.raises(UnmaskError, match="8 actors with 1 CPUs each need 8, there are 3"):
        num_with_room(FleetConfig(num_actors=8), cpu, there[:1])

    def at_address(num_gpus: float, num_cpus: int = 1) -> int:
        config = FleetConfig(num_actors=8, num_gpus_per_actor=num_gpus, num_cpus_per_actor=num_cpus, address="auto")
        return num_with_room(config, cpu, there)

    assert [at_address(0), at_address(0, 2), at_address(0.5), at_address(0.6), at_address(0.1)] == [7, 3, 3, 3, 3]
    assert at_address(1) == 2
    with pytest.raises(UnmaskError, match=r"^fleet\.address auto: an actor takes 3 GPUs, no machine there has more than 2$"):
        at_address(3)
    with pytest.raises(UnmaskError, match="no machine there has both"):
        at_address(1, 4)


# Whole runs.


class LocalFleet(Fleet):
    """Without processes: decodes in this one, with a copy of the weights."""

    def __enter__(self):
        self.engine = Engine(copy.deepcopy(self.model), **LIMITS.model_dump())
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def update_weights(self, *, policy_version: int) -> None:
        self.engine.update_weights(self.model, policy_version=policy_version)

    def stream(self, prompts, params):
        time.sleep(0.1)  # updates are done meanwhile
        return self.engine.stream(prompts, params)


WORDS = ("train.max_steps=6", "eval.every_steps=3", "run.num_threads=1", "fleet.num_actors=2")


def assert_equal_runs(a: Path, b: Path, num_records: int | None = None) -> None:
    one, two = (read_metrics(run)[:num_records] for run in (a, b))
    assert [record.keys() for record in one] == [record.keys() for record in two]
    assert any(record.get("num_updates") for record in one)
    for x, y in zip(one, two, strict=True):
        for key in x.keys() - FORWARDED:
            assert math.isclose(x[key], y[key], rel_tol=1e-5, abs_tol=1e-5), (key, x, y)


def kill_in_first_task(monkeypatch) -> None:
    begin = Fleet._begin

    def begin_and_kill(self, member, *args):
        begin(self, member, *args)
        if not self.num_replaced:
            os.kill(member.pid, signal.SIGKILL)

    monkeypatch.setattr(Fleet, "_begin", begin_and_kill)


def test_a_run_with_actors_is_the_run_without(cluster, tmp_path, monkeypatch) -> None:
    """To rounding, though an actor dies."""
    recipe = write_recipe(tmp_path, "rl", RL)
    assert unmask("rl", recipe, *WORDS, "fleet.num_actors=0", f"run.dir={tmp_path / 'plain'}").returncode == 0
    kill_in_first_task(monkeypatch)
    result = unmask("rl", recipe, *WORDS, "fleet.num_actors=1", f"run.dir={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    assert "is replaced: its process died" in result.stderr
    assert_equal_runs(tmp_path / "plain", tmp_path / "run")


def test_one_step_ahead_with_the_weights_of_the_step_before(tmp_path, monkeypatch) -> None:
    """Two updates a step: from the second step on, rollouts are two optimizer steps old."""
    monkeypatch.setattr(parts, "Fleet", LocalFleet)
    recipe, run = write_recipe(tmp_path, "rl", RL), tmp_path / "run"
    versions: list[set[int]] = []
    of_step = StepRollouts.of_step

    def spied(self, step, clock):
        collected = of_step(self, step, clock)
        versions.append({r.trace.policy_version for g in collected.groups for r in g.rollouts})
        return collected

    monkeypatch.setattr(StepRollouts, "of_step", spied)
    result = unmask("rl", recipe, *WORDS, "fleet.max_staleness=1", "train.min_accuracy=0", f"run.dir={run}")
    assert result.returncode == 0, result.stderr
    records = [r for r in read_metrics(run) if "reward_mean" in r]
    trained = np.cumsum([0, *(r["num_updates"] for r in records)])
    assert versions == [{0}, *({int(n)} for n in trained[:-2])]
    assert [r["staleness_max"] for r in records] == [0, *(int(n) for n in np.diff(trained)[:-1])]
    assert max(r["staleness_mean"] for r in records) == 2
    assert max(r.get("mismatch_kl", 0) for r in records) > 1e-4  # what the weights have changed since
    assert all("truncated_share" in r for r in records if r["num_updates"])


def test_a_run_one_step_ahead_is_resumed_as_if_it_had_not_ended(tmp_path, monkeypatch) -> None:
    """Bit for bit, though the weights that made the next rollouts are gone."""
    monkeypatch.setattr(parts, "Fleet", LocalFleet)
    recipe, words = write_recipe(tmp_path, "rl", RL), [*WORDS, "fleet.max_staleness=1", "train.max_sampling_rounds=2"]
    assert unmask("rl", recipe, *words, f"run.dir={tmp_path / 'one'}").returncode == 0
    for attempt in range(3):
        more = [["train.max_hours=1e-9"], ["train.max_hours=1e-9", "--resume"], ["--resume"]][attempt]
        result = unmask("rl", recipe, *words, f"run.dir={tmp_path / 'two'}", *more)
        assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "one", tmp_path / "two")


def test_what_is_refused(tmp_path, monkeypatch) -> None:
    recipe = write_recipe(tmp_path, "rl", RL)
    for words, message in (
        (["fleet.num_actors=0", "fleet.max_staleness=1"], "fleet.max_staleness is about actors"),
        (
            ["fleet.max_staleness=1", "objective.options.trace_shrink=2"],
            "fleet.max_staleness 1 is for views that the sampler saw",
        ),
        (["fleet.num_gpus_per_actor=1"], "2 actors with 1 GPUs each need 2, there are 0"),
        (["fleet.address=127.0.0.1:1"], "fleet.address 127.0.0.1:1: no Ray cluster there"),
        (["fleet.address=ray://x:1"], "is a Ray client's"),
    ):
        result = unmask("rl", recipe, *WORDS, *words, f"run.dir={tmp_path / 'run'}")
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = unmask("rl", recipe, *WORDS, "--dry-run")
    wanted = "error: fleet.num_actors needs the package ray; install it with: pip install 'unmask[ray]'\n"
    assert (result.returncode, result.stderr) == (2, wanted)
