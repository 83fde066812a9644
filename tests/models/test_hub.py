"""Names on the hub: through its cache, at a revision, without a connection. The cache's layout is the real one."""

from __future__ import annotations

import shutil

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch

from tests.conftest import make_model
from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model, save_model
from unmask.models.hub import resolve_folder

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache with two revisions of owner/name, as the hub's client leaves it, and no connection."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "cache" / "models--owner--name"
    for seed, (revision, commit) in enumerate(COMMITS.items()):
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
        (repo / "snapshots").mkdir(exist_ok=True)
        save_model(make_model(seed=seed), repo / "snapshots" / commit)
    return repo


@pytest.fixture(autouse=True)
def _cache(hub, monkeypatch):
    """The client looks its cache up when it is imported; here it is told."""
    original = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download",
        lambda name, **options: original(name, cache_dir=str(hub.parent), **options),
    )  # fmt: skip


def test_cached_model_loads_offline_at_its_revision() -> None:
    for revision, seed in ((None, 0), ("main", 0), ("v2", 1), (COMMITS["v2"], 1)):
        got = load_model("owner/name", revision=revision)
        assert torch.equal(got.embed_tokens.weight, make_model(seed=seed).embed_tokens.weight)


def test_unknown_revision_or_name_is_one_line() -> None:
    for name, revision in (("owner/name", "v3"), ("owner/other", None)):
        with pytest.raises(UnmaskError, match=f"{name}: no such local folder, and the hub did not deliver it: ") as error:
            load_model(name, revision=revision)
        assert "\n" not in str(error.value)


def test_incomplete_cache_is_said(hub) -> None:
    (hub / "snapshots" / COMMITS["main"] / "model.safetensors").unlink()
    with pytest.raises(UnmaskError, match=r"owner/name: no safetensors here: .* not fetched yet and there is no connection"):
        load_model("owner/name")
    assert resolve_folder("owner/name", weights=False).is_dir()


def test_what_is_fetched(monkeypatch, hub) -> None:
    asked = []
    snapshot = str(hub / "snapshots" / COMMITS["main"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.append(options) or snapshot)
    resolve_folder("owner/name", "v2")
    resolve_folder("owner/name", weights=False)
    assert [options["revision"] for options in asked] == ["v2", None]
    everything, json_only = (options["allow_patterns"] for options in asked)
    assert set(everything) - set(json_only) == {"model*.safetensors", "adapter_model.safetensors"}
    assert not any(pattern.endswith((".bin", ".pt", ".pth", "*")) for pattern in everything)


def test_local_folders_have_no_revision(tmp_path) -> None:
    with pytest.raises(UnmaskError, match="is a local folder; a revision"):
        resolve_folder(tmp_path, "v2")


def test_a_folder_named_like_the_owner_is_not_in_the_way(tmp_path, monkeypatch) -> None:
    (tmp_path / "owner" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load_model("owner/name").embed_tokens.weight, make_model(seed=0).embed_tokens.weight)


def test_local_folder_wins_over_a_hub_name(hub, tmp_path, monkeypatch) -> None:
    shutil.copytree(hub / "snapshots" / COMMITS["v2"], tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load_model("owner/name").embed_tokens.weight, make_model(seed=1).embed_tokens.weight)
