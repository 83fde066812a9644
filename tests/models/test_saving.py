"""Saving: what is carried along, what is kept, what is refused, and crashes. For all families: test_conformance.py."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import make_model
from tests.models.conftest import set_config
from unmask.errors import UnmaskError
from unmask.models import ValueModel
from unmask.models.checkpoint import load_model, save_model
from unmask.models.lora import add_lora


def test_untied_and_biased_variants(tmp_path) -> None:
    model = make_model(tie_word_embeddings=False, attention_bias=True, num_attention_heads=6, num_key_value_heads=3)
    save_model(model, tmp_path / "m")
    names = load_file(tmp_path / "m" / "model.safetensors").keys()
    assert {"lm_head.weight", "model.layers.1.self_attn.o_proj.bias"} <= names
    ids = torch.randint(0, 40, (2, 13))
    assert torch.equal(load_model(tmp_path / "m").logits(ids), model.logits(ids))


def test_save_does_not_replace_a_folder_that_is_not_a_model(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UnmaskError, match=r"exists and is not a folder with config.json; it is not replaced"):
        save_model(make_model(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_failed_save_leaves_the_old_model(saved, monkeypatch) -> None:
    before = (saved / "model.safetensors").read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unmask.models.weights.save_file", full_disk)
    with pytest.raises(UnmaskError, match="the disk is full"):
        save_model(make_model(seed=9), saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_config_says_the_dtype_the_weights_have(saved, tmp_path) -> None:
    save_model(load_model(saved, dtype="bfloat16"), tmp_path / "half")
    before, after = (json.loads((f / "config.json").read_text()) for f in (saved, tmp_path / "half"))
    assert after == {**before, "torch_dtype": "bfloat16"}
    set_config(saved, dtype="float32")  # the newer name, beside the older
    save_model(load_model(saved, dtype="bfloat16"), tmp_path / "half")
    after = json.loads((tmp_path / "half" / "config.json").read_text())
    assert (after["dtype"], after["torch_dtype"]) == ("bfloat16", "bfloat16")


def test_tokenizer_and_code_files_come_along_untouched(saved, tmp_path) -> None:
    carried = ("tokenizer.json", "tokenizer_config.json", "merges.txt", "chat_template.jinja", "modeling_x.py")
    for name in carried:
        (saved / name).write_text("{}")
    (saved / "modeling_x.py").write_text("raise SystemExit('this was run')")
    (saved / "notes.txt").write_text("mine")
    save_model(load_model(saved), tmp_path / "again")
    assert {f.name for f in (tmp_path / "again").iterdir()} == {"config.json", "model.safetensors", *carried}
    assert "this was run" in (tmp_path / "again" / "modeling_x.py").read_text()


def test_saving_onto_a_folder_keeps_what_is_no_model(saved, tmp_path) -> None:
    """Shards and tokenizer of the old model go, everything else stays: notes, scripts, version control, adapters."""
    (saved / "adapter").mkdir()
    (saved / "adapter" / "adapter_config.json").write_text("{}")
    (saved / "README.md").write_text("mine")
    (saved / "train.py").write_text("mine")
    (saved / "link").symlink_to("README.md")
    (saved / "tokenizer.json").write_text("{}")
    save_model(load_model(saved), saved, max_shard_bytes=20_000)
    assert len(list(saved.glob("model-*.safetensors"))) > 3
    save_model(make_model(seed=5), saved)
    names = {"config.json", "model.safetensors", "adapter", "README.md", "train.py", "link"}
    assert {f.name for f in saved.iterdir()} == names
    assert (saved / "adapter" / "adapter_config.json").read_text() == "{}"
    assert (saved / "link").is_symlink()
    assert (saved / "link").read_text() == "mine"
    assert [f.name for f in saved.parent.iterdir()] == ["model"]
    assert torch.equal(load_model(saved).embed_tokens.weight, make_model(seed=5).embed_tokens.weight)


def test_the_models_own_code_replaces_older_code(saved, tmp_path) -> None:
    save_model(make_model(), tmp_path / "target")
    (tmp_path / "target" / "modeling_x.py").write_text("old")
    (saved / "modeling_x.py").write_text("new")
    save_model(load_model(saved), tmp_path / "target")
    assert (tmp_path / "target" / "modeling_x.py").read_text() == "new"


def test_saving_through_a_link_reaches_its_folder(saved, tmp_path) -> None:
    (tmp_path / "link").symlink_to(saved)
    save_model(make_model(seed=5), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(load_model(saved).embed_tokens.weight, make_model(seed=5).embed_tokens.weight)
    assert {f.name for f in tmp_path.iterdir()} == {"link", "model"}


def test_somebody_elses_config_is_not_replaced(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"compilerOptions": {}}')
    with pytest.raises(UnmaskError, match=r"config.json: is not the config of a model"):
        save_model(make_model(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_swap_without_the_systems_help(saved, monkeypatch) -> None:
    """Where two names cannot be exchanged in one step, two renames do."""
    monkeypatch.setattr("unmask.files._exchange", lambda a, b: False)
    save_model(make_model(seed=5), saved)
    assert torch.equal(load_model(saved).embed_tokens.weight, make_model(seed=5).embed_tokens.weight)
    assert [f.name for f in saved.parent.iterdir()] == ["model"]


def test_model_with_adapters_is_not_saved(tmp_path) -> None:
    model = make_model()
    add_lora(model, rank=2)
    for what in (lambda: save_model(model, tmp_path / "m"), lambda: ValueModel.from_policy(model)):
        with pytest.raises(UnmaskError, match="has adapters in it"):
            what()
    assert not (tmp_path / "m").exists()


def test_crash_between_writing_and_renaming_leaves_the_old_model(saved, tmp_path) -> None:
    """The process dies after the last byte is written: the old folder is still there, whole."""
    code = f"""
import os, unmask.models.checkpoint as c
carry = c.carry_files
c.carry_files = lambda *a: (carry(*a), os._exit(9))
c.save_model(c.load_model({str(saved)!r}, dtype="bfloat16"), {str(saved)!r})
"""
    before = (saved / "model.safetensors").read_bytes()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (saved / "model.safetensors").read_bytes() == before
    assert load_model(saved).dtype == torch.float32


def test_odd_files_in_the_folder_are_kept_as_they_are(saved, tmp_path) -> None:
    """A dangling link, a pipe, links inside folders, other weights; and the folder's own permissions."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big.bin").write_text("not copied")
    (saved / "dangling").symlink_to("gone")
    (saved / "logs").mkdir()
    (saved / "logs" / "link").symlink_to(outside)
    (saved / "model_ema.safetensors").write_text("mine")
    os.mkfifo(saved / "pipe")
    saved.chmod(0o700)
    save_model(make_model(seed=5), saved)
    assert (saved / "dangling").is_symlink()
    assert (saved / "logs" / "link").is_symlink()
    assert (saved / "model_ema.safetensors").read_text() == "mine"
    assert stat.S_ISFIFO((saved / "pipe").stat().st_mode)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o700
    assert load_model(saved).spec.vocab_size == 40


def test_new_folders_have_ordinary_permissions(tmp_path) -> None:
    (tmp_path / "plain").mkdir()
    save_model(make_model(), tmp_path / "m")
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_current_folder_is_not_replaced(saved, monkeypatch) -> None:
    model = make_model(seed=5)
    (saved / "inner").mkdir()
    for place in (saved, saved / "inner"):
        monkeypatch.chdir(place)
        with pytest.raises(UnmaskError, match="the current folder is in it and would be gone"):
            save_model(model, saved)
    assert load_model(saved).spec.vocab_size == 40


def test_failed_second_rename_puts_the_old_folder_back(saved, monkeypatch) -> None:
    monkeypatch.setattr("unmask.files._exchange", lambda a, b: False)
    rename, calls = os.rename, []

    def interrupted(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(a, b)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(make_model(seed=5), saved)
    assert torch.equal(load_model(saved).embed_tokens.weight, make_model().embed_tokens.weight)
    assert [f.name for f in saved.parent.iterdir()] == ["model"]


def test_tokenizer_follows_from_a_relative_path(saved, tmp_path, monkeypatch) -> None:
    (saved / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(saved.parent)
    model = load_model("model")
    monkeypatch.chdir("/")
    save_model(model, tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").exists()
    shutil.rmtree(saved)
    with pytest.warns(UserWarning, match="is gone: .* gets no tokenizer files"):
        save_model(model, tmp_path / "third")
