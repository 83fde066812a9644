"""Other weights while requests are under way: nothing is dropped, nothing is mixed."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serve.models import loaded, save_tiny, tokenizer
from tests.serve.running import Local
from tests.serve.test_equality import expected, told
from unmask.diffusion.generate import generate
from unmask.models.lora import add_lora, save_adapter
from unmask.serve.engine_process import Source
from unmask.types import SamplingParams, Trace

LONG = {"max_tokens": 50, "temperature": 0.0, "seed": 5}
PARAMS = SamplingParams(max_new_tokens=50, temperature=0.0, seed=5, stop_token_ids=())
SETTINGS = {"stop_token_ids": [], "return_trace": True}


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("other") / "other", seed=1)


@pytest.fixture
def server(folders, tmp_path) -> Local:
    """Over a copy of its own, whose weights may change."""
    folder = tmp_path / "copy"
    shutil.copytree(folders["sdar"], folder)
    with Local(folder, num_pages=3000, page_size=4, admin_keys=("boss",), max_sequences=8) as running:
        yield running
        running.assert_idle()


@pytest.fixture(scope="module")
def steady(folders) -> Local:
    with Local(folders["sdar"], num_pages=500, page_size=4, admin_keys=("boss",)) as running:
        yield running
        running.assert_idle()


def traces(server: Local, num: int, *, stream: bool) -> list[Trace]:
    def ask(i: int) -> Trace:
        answer = server.client.complete([5 + i, 9], stream=stream, unmask=SETTINGS, **LONG)
        last = told(answer.events)[3] if stream else answer.data["choices"][0]["unmask"]
        return Trace.from_dict(last["trace"])

    with ThreadPoolExecutor(num) as pool:
        return list(pool.map(ask, range(num)))


def test_what_has_begun_ends_with_the_old_weights_and_the_rest_gets_the_new(server, other, folders) -> None:
    boss = server.client.with_key("boss")
    prompts = [[5 + i, 9] for i in range(10)]
    by_version = {
        0: expected(server, prompts, [PARAMS] * 10), 1: generate(loaded(other), prompts, [PARAMS] * 10),
        7: generate(loaded(folders["sdar"]), prompts, [PARAMS] * 10),
    }  # fmt: skip
    before = server.client.complete("a", max_tokens=2).data["system_fingerprint"]
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(traces, server, 10, stream=stream) for stream in (True, False)]
        stream = server.client.begin(**LONG)  # something has begun
        answers = [boss.post("/admin/reload", {"path": str(other)})]
        answers.append(boss.post("/admin/reload", {"path": str(folders["sdar"]), "policy_version": 7}))
        served = [trace for future in running for trace in future.result()]
        stream.close()
    assert [(a.status, a.data["policy_version"]) for a in answers] == [(200, 1), (200, 7)]
    for i, trace in enumerate(served):
        assert trace.canvas_ids == by_version[trace.policy_version][i % 10].canvas_ids
    assert len({trace.policy_version for trace in served}) > 1
    after = server.client.complete("a", max_tokens=2).data
    assert answers[1].data["checkpoint"] == after["system_fingerprint"] == before.replace("copy", "sdar")
    assert answers[0].data["checkpoint"] != answers[1].data["checkpoint"]
    assert server.client.get("/v1/models").data["data"][0]["unmask"]["checkpoint"] == after["system_fingerprint"]


def test_the_folder_of_the_start_is_looked_up_anew(server, other) -> None:
    shutil.copy(other / "model.safetensors", server.folder / "model.safetensors")
    want = generate(loaded(other), [tokenizer().encode("the")], PARAMS)[0]
    for body in (None, {}):
        assert server.client.with_key("boss").request("POST", "/admin/reload", body).status == 200
        got = server.client.complete("the", unmask=SETTINGS, **LONG).data["choices"][0]["unmask"]["trace"]
        assert got["canvas_ids"] == want.canvas_ids


def test_adapters_are_merged(server, tmp_path, folders) -> None:
    model = add_lora(Source(folders["sdar"]).load("cpu", "float32"), rank=2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3
    save_adapter(model, tmp_path / "adapter")
    source = Source(folders["sdar"], tmp_path / "adapter")
    want = generate(source.load("cpu", "float32"), [tokenizer().encode("the")], PARAMS)[0]
    boss = server.client.with_key("boss")
    assert boss.post("/admin/reload", {"adapter": str(tmp_path / "adapter")}).status == 200
    got = server.client.complete("the", unmask=SETTINGS, **LONG).data["choices"][0]["unmask"]["trace"]
    assert got["canvas_ids"] == want.canvas_ids
    assert got["canvas_ids"] != expected(server, [tokenizer().encode("the")], PARAMS)[0].canvas_ids


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"path": "/none such"}, "none such"),
        ({"path": "a\0b"}, ""),
        ({"path": "a" * 4000}, ""),
        ({"path": "\ud800"}, ""),
        ({"path": ""}, "path"),
        ({"path": "{other kind}"}, "another model"),
        ({"path": "{file}"}, ""),
        ({"adapter": "/none such"}, "none such"),
        ({"adapter": "a\0b"}, ""),
        ({"policy_version": -1}, "policy_version"),
        ({"policy_version": 0}, "policy_version"),
        ({"policy_version": 2**70}, "policy_version"),
        ({"where": 1}, "where"),
        ([], "object"),
        (b"{", "JSON"),
    ],
)  # fmt: skip
def test_bad_ones_change_nothing(steady, folders, body, said) -> None:
    if isinstance(body, dict) and "path" in body:
        names = {"{other kind}": folders["llada"], "{file}": steady.folder / "config.json"}
        body = {"path": str(names.get(body["path"], body["path"]))}
    short = {**LONG, "max_tokens": 8}
    before = steady.client.complete("a", unmask=SETTINGS, **short).data["choices"][0]
    answer = steady.client.with_key("boss").post("/admin/reload", body)
    assert answer.status == 400, answer.text
    assert said in answer.error["message"]
    assert steady.client.complete("a", unmask=SETTINGS, **short).data["choices"][0] == before


def test_many_at_a_time_are_done_one_after_the_other(server, other, folders) -> None:
    boss = server.client.with_key("boss")
    paths = [str(other), str(folders["sdar"]), "/none such"] * 2
    with ThreadPoolExecutor(7) as pool:
        serving = pool.submit(traces, server, 4, stream=True)
        answers = list(pool.map(lambda path: boss.post("/admin/reload", {"path": path}), paths))
        assert len(serving.result()) == 4
    assert [answer.status for answer in answers] == [200, 200, 400] * 2
    assert sorted(answer.data["policy_version"] for answer in answers if answer.status == 200) == [1, 2, 3, 4]
