"""`unmask serve` with bad input: one line, exit code 2, nothing left; and where its settings come from."""

from __future__ import annotations

import socket
import threading
import tomllib
from pathlib import Path

import psutil
import pytest

from tests.recipes import unmask
from tests.serve.models import save_tiny


def refused(*words: object) -> str:
    """What it says; nothing is left."""
    before = (threading.active_count(), psutil.Process().children(), psutil.Process().num_fds())
    result = unmask("serve", *words)
    assert (result.returncode, result.stdout) == (2, ""), result
    lines = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert (threading.active_count(), psutil.Process().children(), psutil.Process().num_fds()) == before
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["temperature=-1"], "temperature"),
        (["server.port=99999"], "server.port"),
        (["server.none=1"], "server.none"),
        (["engine.page_size=0"], "engine.page_size"),
        (["server.max_queue=-1"], "server.max_queue"),
        (["remasking_strategy=none_such"], "none_such"),
        (["--mode", "quick"], "unknown mode"),
        (["--dtype", "int8"], "int8"),
        (["--api-key-file", "/none/such"], "/none/such"),
        (["--admin-key-file", "/none/such"], "/none/such"),
        (["--host", "256.256.256.256"], "cannot listen on 256.256.256.256"),
        (["--host", "a..b"], "cannot listen on a..b, port"),
    ],
)  # fmt: skip
def test_bad_words(folders, words, said) -> None:
    assert said in refused(folders["sdar"], *words)


def test_no_such_checkpoint(tmp_path) -> None:
    assert "none" in refused(tmp_path / "none")
    assert "config.json" in refused(tmp_path)


def test_a_port_in_use(folders) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert refused(folders["sdar"], "--port", port) == (
            f"error: cannot listen on 127.0.0.1, port {port}: Address already in use; choose another"
        )


@pytest.mark.slow
def test_what_only_the_engine_finds_out(folders, tmp_path) -> None:
    assert "none" in refused(folders["sdar"], "--port", 0, "--adapter", tmp_path / "none")
    folder = save_tiny(tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert "model.safetensors" in refused(folder, "--port", 0)
    assert "attention_backend" in refused(folders["sdar"], "--port", 0, "engine.attention_backend=none")
    assert "the server's settings" in refused(folders["sdar"], "--port", 0, "cache=dual")


def dry(*words: object) -> dict:
    result = unmask("serve", *words, "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    return tomllib.loads(result.stdout)


def test_settings_come_from_the_words_the_mode_and_the_run(folders, tmp_path) -> None:
    plain = dry(folders["sdar"])
    assert (plain["server"]["host"], plain["temperature"]) == ("127.0.0.1", 1.0)
    words = ["temperature=0.5", "--host", "::1", "--port", 0, "--name", "it", "server.cors_origins=['*']", "temperature=0.6"]
    given = dry(folders["sdar"], *words)
    assert (given["temperature"], given["server"]["cors_origins"]) == (0.6, ["*"])
    assert {key: given["server"][key] for key in ("host", "port", "name")} == {"host": "::1", "port": 0, "name": "it"}
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step_3"
    checkpoint.mkdir(parents=True)
    (run / "recipe.toml").write_text("[rollout]\nmax_new_tokens = 12\ntemperature = 0.9\nseed = 5\n")
    for folder in (run, checkpoint):
        taken = dry(folder, "temperature=0.8")
        assert (taken["max_new_tokens"], taken["temperature"], taken["seed"]) == (12, 0.8, 0)
    (run / "recipe.toml").write_text("[eval.sampling]\nmax_new_tokens = 13\n")
    assert dry(run)["max_new_tokens"] == 13
    (run / "recipe.toml").write_text(
        "[rollout]\ndenoising_steps_per_block = 2\n[source]\nname = 'x'\n[source.options]\nresponse_prefix = '<think>'\n"
    )
    own = dry(run, "denoising_steps=9", "server.system_prompt='be brief'")
    assert (own["denoising_steps"], own.get("denoising_steps_per_block")) == (9, None)
    assert (own["server"]["response_prefix"], own["server"]["system_prompt"]) == ("<think>", "be brief")
    (Path(run) / "recipe.toml").write_text("[[[")
    assert "recipe.toml" in refused(run)
