"""Loading: every kind of bad folder named in one line, dtypes, devices, memory. For all families: test_conformance.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import make_model
from tests.models.conftest import set_config
from unmask.errors import UnmaskError
from unmask.models import ValueModel
from unmask.models.checkpoint import load_model, new_model, read_spec, save_model


def test_bad_arguments_of_logits_are_named(model) -> None:
    ids = torch.randint(0, 40, (1, 12))
    with pytest.raises(UnmaskError, match="block_size 0 is not a number of tokens"):
        model.logits(ids, block_size=0)
    with pytest.raises(UnmaskError, match="attention 'all' is unknown; known: model, bidirectional, causal"):
        model.logits(ids, "all")


def edit_tensors(folder, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def put_index(folder, weight_map) -> None:
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def shard(folder, edit) -> None:
    save_model(load_model(folder), folder, max_shard_bytes=20_000)
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def truncate(folder) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


NORM, INDEX = "model.norm.weight", "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such folder (and not a hub name"),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "config.json").write_text('{"a": 1,\n}'), "config.json:2: not valid JSON"),
        (
            lambda f: set_config(f, model_type="gpt9", architectures=[]),
            "model_type 'gpt9' is unknown; known: sdar, sdar_moe, Dream, dream, llada, mmada",
        ),
        (
            lambda f: set_config(f, model_type="gpt9", auto_map={"AutoModel": "modeling_gpt9.GPT9"}),
            "this model comes with code of its own (auto_map), which is never run",
        ),
        (lambda f: set_config(f, mask_token_id=...), "config.json: key 'mask_token_id' is missing"),
        (lambda f: set_config(f, num_key_value_heads=3), "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        (lambda f: set_config(f, head_dim=None, hidden_size=50), "hidden_size 50 is not a multiple of num_attention_heads 4"),
        (
            lambda f: set_config(f, use_sliding_window=True, sliding_window=64),
            "config.json: use_sliding_window with sliding_window 64 is not supported",
        ),
        (lambda f: set_config(f, quantization_config={"bits": 4}), "config.json: quantization_config: Input should be None"),
        (lambda f: set_config(f, mask_token_id=9999), "config.json: mask_token_id 9999 is outside the vocabulary of 40"),
        (lambda f: set_config(f, hidden_size="96"), "config.json: hidden_size: Input should be a valid integer, found '96'"),
        (lambda f: set_config(f, block_size=0), "config.json: block_size: Input should be greater than or equal to 1"),
        (lambda f: set_config(f, eos_token_id=None), "config.json: eos_token_id"),
        (lambda f: set_config(f, rms_norm_eps=None), "config.json: rms_norm_eps: Input should be a valid number"),
        (lambda f: set_config(f, hidden_act="gelu"), "config.json: hidden_act: Input should be 'silu', found 'gelu'"),
        (lambda f: set_config(f, rope_scaling={"type": "yarn"}), "rope_scaling: rope_type 'yarn' needs the key 'factor'"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors here (only safetensors are read"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "offers its weights only as pickles (pytorch_model.bin), which can run code when they are read",
        ),
        (truncate, "not a complete safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "not a complete safetensors file"),
        (lambda f: put_index(f, 3), "has no table 'weight_map'"),
        (lambda f: put_index(f, {"a": "../x"}), "shards lie beside their index"),
        (lambda f: shard(f, lambda m: m.pop(NORM)), "has tensor 'model.norm.weight', which is nowhere according to model.safe"),
        (lambda f: shard(f, lambda m: m.update(extra=m[NORM])), "has no tensor 'extra', which is there according to"),
        (
            lambda f: shard(f, lambda m: m.update({NORM: m["model.embed_tokens.weight"]})),
            "has tensor 'model.norm.weight', which is in model-00001-of-",
        ),
        (
            lambda f: put_index(f, {"a": "model-1.safetensors"}),
            "model-1.safetensors: shard named in model.safetensors.index.json is missing",
        ),
        (
            lambda f: edit_tensors(f, lambda t: t.pop(NORM)),
            f"tensors do not fit family sdar: 1 missing ('{NORM}' [48])",
        ),
        (
            lambda f: edit_tensors(f, lambda t: [t.pop(n) for n in list(t) if "layers.1." in n]),
            "11 missing ('model.layers.1.input_layernorm.weight' [48], 'model.layers.1.self_attn.q_proj.weight' [48, 48], ",
        ),
        (
            lambda f: edit_tensors(f, lambda t: t.update({NORM: torch.ones(48, dtype=torch.int8)})),
            f"1 not stored as floating point numbers ('{NORM}' I8)",
        ),
        (
            lambda f: edit_tensors(f, lambda t: t.update({"value_head.weight": torch.ones(1, 48)})),
            "1 unexpected ('value_head.weight' [1, 48]); it is a value model: load it with head=\"value\"",
        ),
        (
            lambda f: edit_tensors(f, lambda t: t.update({"lm_head.weight": torch.ones(40, 48)})),
            "ties the head to the embedding, but the tensors lm_head.weight and model.embed_tokens.weight differ",
        ),
        (lambda f: edit_tensors(f, lambda t: t.update(extra=torch.ones(2))), "1 unexpected ('extra' [2])"),
        (
            lambda f: edit_tensors(f, lambda t: t.update({NORM: torch.ones(7)})),
            f"1 mis-shaped ('{NORM}' has shape [7], expected [48])",
        ),
    ],
)
def test_bad_folders_are_named(saved, damage, message) -> None:
    damage(saved)
    with pytest.raises(UnmaskError) as error:
        load_model(saved)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_model_type_decides_before_architectures(saved) -> None:
    set_config(saved, model_type="lladamoe")
    with pytest.raises(UnmaskError, match="model_type 'lladamoe' is unknown"):
        load_model(saved)
    set_config(saved, model_type=...)
    load_model(saved)  # only then by architectures


@pytest.mark.parametrize("what", ["float16", torch.float16, "float64"])
def test_dtype_is_chosen_at_load(saved, what) -> None:
    want = getattr(torch, what) if isinstance(what, str) else what
    assert load_model(saved, dtype=what).dtype == want
    assert load_model(saved, dtype="auto").dtype == torch.float32


@pytest.mark.parametrize("what", ["int8", "floot32", torch.int64, 7])
def test_other_dtypes_are_refused(saved, what) -> None:
    with pytest.raises(UnmaskError, match="is not a floating point type; use float32, bfloat16"):
        load_model(saved, dtype=what)


def test_unknown_head_is_named(saved) -> None:
    with pytest.raises(UnmaskError, match="head 'reward' is unknown; known: vocabulary, value"):
        load_model(saved, head="reward")


def test_a_tied_head_that_is_stored_too_is_kept(saved, tmp_path) -> None:
    edit_tensors(saved, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    model = load_model(saved)
    assert model.lm_head.weight is model.embed_tokens.weight
    save_model(model, tmp_path / "again")
    before, after = (load_file(f / "model.safetensors") for f in (saved, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_tied_head_is_compared_to_its_last_row(saved, monkeypatch) -> None:
    monkeypatch.setattr("unmask.models.weights._PIECE_BYTES", 1000)  # several pieces
    edit_tensors(saved, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    load_model(saved)
    edit_tensors(saved, lambda t: t["lm_head.weight"][-1].add_(1))
    with pytest.raises(UnmaskError, match="ties the head to the embedding"):
        load_model(saved)


def test_devices_that_are_not_there_are_named(saved) -> None:
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(UnmaskError, match=f"device '{device}' cannot hold the model: "):
            load_model(saved, device=device)
        with pytest.raises(UnmaskError, match=f"device '{device}' cannot hold the model: "):
            new_model("sdar/tiny", 0, device=device)


def test_no_tokens_give_no_logits(model) -> None:
    assert model.logits(torch.zeros(1, 0, dtype=torch.long)).shape == (1, 0, 40)
    assert model.logits(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, 40)


def test_published_value_checkpoint_has_the_policys_head_too(saved) -> None:
    """The published value models store the whole policy beside the scalar head."""
    head = torch.randn(1, 48)
    edit_tensors(saved, lambda t: t.update({"value_head.weight": head, "lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    value = load_model(saved, head="value")
    assert isinstance(value, ValueModel)
    assert torch.equal(value.value_head.weight, head)


def test_odd_architectures_are_no_crash(saved) -> None:
    set_config(saved, model_type=..., architectures=[{"a": 1}])
    with pytest.raises(UnmaskError, match="model_type None is unknown"):
        load_model(saved)


def test_config_and_family_without_weights(saved) -> None:
    (saved / "model.safetensors").unlink()
    config, family, spec = read_spec(saved)
    assert (config["model_type"], family.name, spec.vocab_size) == ("sdar", "sdar", 40)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_peaks_near_one_copy() -> None:
    """A fifth of a gigabyte here; the bar itself, a billion parameters, is in benchmarks/load.py (1.1 times the size)."""
    code = """
import os, tempfile
from unmask.models.checkpoint import load_model, new_model, save_model
def peak():
    with open("/proc/self/status") as status:  # unlike ru_maxrss, not inherited from a parent with more memory
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
with tempfile.TemporaryDirectory() as folder:
    if not (pid := os.fork()):  # so that making them does not count
        save_model(new_model("sdar/tiny", 0), folder + "/tiny")
        save_model(new_model("sdar/small", 0, num_hidden_layers=4), folder + "/m")
        os._exit(0)
    os.waitpid(pid, 0)
    load_model(folder + "/tiny")  # nor what is imported on the way
    before = peak()
    model = load_model(folder + "/m")
    size = sum(p.numel() * 4 for p in model.parameters())
    print((peak() - before) / size)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.9 < float(run.stdout) < 1.3  # measured 1.06; mapping the whole file would make it 2


def test_a_single_file_comes_before_an_index(saved) -> None:
    """As for transformers, when an interrupted conversion has left both."""
    (saved / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert torch.equal(load_model(saved).embed_tokens.weight, make_model().embed_tokens.weight)


def test_a_head_bias_nobody_has_is_unexpected(saved) -> None:
    edit_tensors(saved, lambda t: t.update({"lm_head.bias": torch.ones(40)}))
    with pytest.raises(UnmaskError, match=r"1 unexpected \('lm_head.bias' \[40\]\)"):
        load_model(saved)


def test_an_untied_model_has_one_head(tmp_path) -> None:
    save_model(make_model(tie_word_embeddings=False), tmp_path / "m")
    edit_tensors(tmp_path / "m", lambda t: t.update({"lm_head.bias": torch.ones(40)}))
    with pytest.raises(UnmaskError, match="1 unexpected"):
        load_model(tmp_path / "m")


def test_meta_device_takes_no_memory(saved) -> None:
    edit_tensors(saved, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert {p.device.type for p in load_model(saved, device="meta").parameters()} == {"meta"}
