"""Exported checkpoints are what other tools read: names of tensors, keys of the config, files, heads, dtypes.

What those tools read is written down here by hand, from their published sources (repository and file in the comments; read in
November 2026), so that a change of ours cannot move both sides.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.models.rows import Row, build, random_ids
from tests.models.test_adapt import published
from tests.recipes import unmask
from unmask.models import preset_config
from unmask.models.checkpoint import load_model, save_model

# sgl-project/sglang, python/sglang/srt/models/sdar.py and sdar_moe.py, `load_weights`, and InternLM/lmdeploy,
# lmdeploy/pytorch/models/sdar.py and sdar_moe.py: q, k, v and gate, up come one by one and are joined there.
# Labman42/JetEngine, jetengine/utils/loader.py: every name in a file has to be a parameter, or it fails.
QWEN3_LAYER = (
    "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
    "self_attn.v_proj.weight", "self_attn.o_proj.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight",
)  # fmt: skip
MLP = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
EXPERT = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
# Dream's own modeling_dream.py (as in planned-diffusion/planned-diffusion, dream/modeling_dream.py): Qwen2.5's, with biases on
# q, k and v and none on o; no norms of queries and keys.
DREAM_LAYER = (
    "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_proj.weight", "self_attn.q_proj.bias",
    "self_attn.k_proj.weight", "self_attn.k_proj.bias", "self_attn.v_proj.weight", "self_attn.v_proj.bias",
    "self_attn.o_proj.weight", *MLP,
)  # fmt: skip
# LLaDA's own modeling_llada.py, block_type "llama" (Gen-Verse/MMaDA, models/modeling_mmada.py, builds on it).
LLADA_LAYER = tuple(
    f"{name}.weight"
    for name in ("attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")
)


def expected_names(family: str, num_layers: int, num_experts: int, has_head: bool) -> set[str]:
    if family in ("llada", "mmada"):
        outside = ["model.transformer.wte.weight", "model.transformer.ln_f.weight"]
        outside += ["model.transformer.ff_out.weight"] * has_head
        return {f"model.transformer.blocks.{i}.{name}" for i in range(num_layers) for name in LLADA_LAYER} | set(outside)
    layer = {"sdar": (*QWEN3_LAYER, *MLP), "dream": DREAM_LAYER, "sdar_moe": (*QWEN3_LAYER, "mlp.gate.weight")}[family]
    names = {f"model.layers.{i}.{name}" for i in range(num_layers) for name in layer}
    names |= {
        f"model.layers.{i}.mlp.experts.{e}.{name}" for i in range(num_layers) for e in range(num_experts) for name in EXPERT
    }
    return names | {"model.embed_tokens.weight", "model.norm.weight"} | ({"lm_head.weight"} if has_head else set())


# Read without a default, or with one that is not our models' and would go unnoticed:
# SDAR: sglang and lmdeploy as above, and the published configuration_sdar.py (rope_theta 10000, head_dim 128, untied);
# sglang takes what is to be run from architectures[0]. Experts: `renormalize=config.norm_topk_prob`.
SDAR_KEYS = {
    "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "attention_bias", "hidden_act",
    "max_position_embeddings", "eos_token_id", "torch_dtype",
}  # fmt: skip
MOE_KEYS = SDAR_KEYS | {"num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "mlp_only_layers",
    "decoder_sparse_step",
}  # fmt: skip
# configuration_dream.py: rope_theta 10000 and mask_token_id 151666 if the config has none.
DREAM_KEYS = (SDAR_KEYS - {"attention_bias", "head_dim"}) | {"mask_token_id", "pad_token_id"}
# configuration_llada.py (as in charleschen-ml/pa-dllm), `ModelConfig`: a GPT-like model with learned positions, dropout of 0.1
# and 50304 embeddings if the config has none. MMadaConfig (modeling_mmada.py) has no defaults at all.
LLADA_KEYS = {
    "architectures", "model_type", "d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_ratio", "mlp_hidden_size",
    "activation_type", "block_type", "block_group_size", "alibi", "alibi_bias_max", "rope", "rope_full_precision",
    "flash_attention", "attention_dropout", "multi_query_attention", "attention_layer_norm", "residual_dropout",
    "embedding_dropout", "input_emb_norm", "layer_norm_type", "layer_norm_with_affine", "rms_norm_eps",
    "attention_layer_norm_with_affine", "max_sequence_length", "rope_theta", "include_qkv_bias", "include_bias",
    "bias_for_layer_norm", "scale_logits", "vocab_size", "embedding_size", "weight_tying", "eos_token_id", "pad_token_id",
    "mask_token_id", "init_device", "init_fn", "init_std", "init_cutoff_factor", "precision", "torch_dtype",
}  # fmt: skip
KEYS = {"sdar": SDAR_KEYS, "sdar_moe": MOE_KEYS, "dream": DREAM_KEYS, "llada": LLADA_KEYS, "mmada": LLADA_KEYS}
ARCHITECTURES = {
    "sdar": ("SDARForCausalLM", "sdar"), "sdar_moe": ("SDARMoeForCausalLM", "sdar_moe"), "dream": ("DreamModel", "Dream"),
    "llada": ("LLaDAModelLM", "llada"), "mmada": ("MMadaModelLM", "mmada"),
}  # fmt: skip
TIE_KEY = {family: "weight_tying" if family in ("llada", "mmada") else "tie_word_embeddings" for family in KEYS}


def export(folder: Path, *words: object) -> Path:
    target = folder.parent / "exported"
    result = unmask("checkpoint", "export", folder, target, *words)
    assert result.returncode == 0, result.stderr
    return target


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def make(family: str, folder: Path, **changes) -> Path:
    save_model(build(Row(family, f"{family}/tiny", changes)), folder / "model")
    return folder / "model"


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("family", KEYS)
def test_tensors_have_the_published_names_and_one_dtype(family, is_tied, tmp_path) -> None:
    """A tied head is not stored, as in the published format (and as safetensors of transformers have it)."""
    exported = export(make(family, tmp_path, **{TIE_KEY[family]: is_tied}), "--dtype", "bfloat16")
    with safe_open(exported / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
        dtypes = {tensors.get_slice(name).get_dtype() for name in names}
        assert tensors.metadata() == {"format": "pt"}  # transformers refuses files without it
    experts = preset_config(f"{family}/tiny").get("num_experts", 0)
    assert names == expected_names(family, 3, experts, has_head=not is_tied)
    assert dtypes == {"BF16"}
    config = read_config(exported)
    assert (config["torch_dtype"], config[TIE_KEY[family]]) == ("bfloat16", is_tied)


@pytest.mark.parametrize("family", KEYS)
def test_config_has_the_keys_that_are_read(family, tmp_path) -> None:
    config = read_config(export(make(family, tmp_path)))
    assert (config["architectures"][0], config["model_type"]) == ARCHITECTURES[family]
    assert KEYS[family] - set(config) == set()
    for size in ("small", {"sdar": "8b", "sdar_moe": "30b-a3b", "dream": "7b"}.get(family, "8b")):
        assert KEYS[family] - set(preset_config(f"{family}/{size}")) == set()


def test_shards_have_an_index(tmp_path) -> None:
    """huggingface's format, which all of them read: weight_map names the file of every tensor, metadata the bytes."""
    exported = export(make("sdar_moe", tmp_path), "--max-shard-gb", "0.0003")
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    files = {name: load_file(exported / name) for name in set(index["weight_map"].values())}
    assert len(files) > 2
    assert all(tensor in files[file] for tensor, file in index["weight_map"].items())
    total = sum(tensor.numel() * tensor.element_size() for file in files.values() for tensor in file.values())
    assert index["metadata"]["total_size"] == total
    assert not (exported / "model.safetensors").exists()


# Keys of huggingface.co/JetLM/SDAR-4B-Chat, config.json, with small sizes. TraDo's are alike. It names no mask token, no pad
# token and no block size, and its head is not tied.
SDAR_4B_CHAT = {
    "architectures": ["SDARForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_sdar.SDARConfig", "AutoModel": "modeling_sdar.SDARModel",
        "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
    },
    "attention_bias": False, "attention_dropout": 0.0, "attn_implementation": "flex_attention", "bos_token_id": 1,
    "debug": False, "eos_token_id": 1, "ep_size": 1, "fuse_cross_entropy": True, "head_dim": 12, "hidden_act": "silu",
    "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 96, "max_position_embeddings": 32768,
    "max_window_layers": 2, "micro_forward": False, "model_type": "sdar", "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "skip_checkpoint": False,
    "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.52.4",
    "use_cache": False, "use_deepep": False, "use_sliding_window": False, "vocab_size": 40,
}  # fmt: skip
# Of its files, what is no weights. (Sizes and names: the hub's page of JetLM/SDAR-4B-Chat-b64.)
SDAR_FILES = {
    "added_tokens.json": '{"<|MASK|>": 2, "<|im_end|>": 3}', "chat_template.jinja": "{{ messages }}",
    "configuration_sdar.py": "raise SystemExit('this was run')", "generation_config.json": '{"eos_token_id": [1, 3]}',
    "merges.txt": "#version: 0.2", "modeling_sdar.py": "raise SystemExit('this was run')", "special_tokens_map.json": "{}",
    "tokenization_qwen2.py": "", "tokenization_qwen2_fast.py": "", "tokenizer_config.json": "{}", "vocab.json": "{}",
}  # fmt: skip


@pytest.fixture
def sdar(tmp_path) -> Path:
    """A folder as published, but for its size."""
    keys = ("hidden_size", "head_dim", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    sizes = {key: SDAR_4B_CHAT[key] for key in keys}
    row = Row("sdar", "sdar/tiny", {**sizes, "tie_word_embeddings": False, "rope_theta": 1000000.0, "mask_token_id": 2})
    save_model(build(row).bfloat16(), tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(SDAR_4B_CHAT))
    for name, text in SDAR_FILES.items():
        (tmp_path / "model" / name).write_text(text)
    return tmp_path / "model"


def test_a_published_folder_keeps_everything(sdar) -> None:
    """auto_map and the code that it names are what transformers, sglang (--trust-remote-code) and lmdeploy open it with."""
    exported = export(sdar)
    assert read_config(exported) == SDAR_4B_CHAT
    assert {file.name for file in exported.iterdir()} == {"config.json", "model.safetensors", *SDAR_FILES}
    assert all((exported / name).read_text() == text for name, text in SDAR_FILES.items())
    for name, tensor in load_file(sdar / "model.safetensors").items():
        assert torch.equal(load_file(exported / "model.safetensors")[name], tensor)


@pytest.mark.parametrize("family", KEYS)
def test_a_tied_head_can_be_written_on_its_own(family, tmp_path) -> None:
    """sglang's sdar.py looks a tied head up by a name that shared parameters do not have, and fails (with one GPU)."""
    folder = make(family, tmp_path, **{TIE_KEY[family]: True})
    exported = export(folder, "--untie-head")
    before, after = load_file(folder / "model.safetensors"), load_file(exported / "model.safetensors")
    head, table = ("model.transformer.ff_out.weight", "model.transformer.wte.weight")
    if family not in ("llada", "mmada"):
        head, table = "lm_head.weight", "model.embed_tokens.weight"
    assert after.keys() - before.keys() == {head}
    assert torch.equal(after[head], before[table])
    assert read_config(exported) == {**read_config(folder), TIE_KEY[family]: False}
    model = load_model(exported)
    ids = random_ids(model, 2, 9)
    assert torch.equal(model.logits(ids), load_model(folder).logits(ids))
    assert not model.spec.is_tied


def test_an_untied_head_stays(sdar) -> None:
    assert read_config(export(sdar, "--untie-head")) == SDAR_4B_CHAT


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}])
@pytest.mark.parametrize("family", ["sdar", "dream"])
def test_rotation_is_said_under_its_older_names_too(family, scaling, tmp_path) -> None:
    """Configs written by transformers 5 have rope_parameters alone; the others would take theta 10000, and no scaling."""
    folder = make(family, tmp_path, rope_theta=12345.0)
    config = read_config(folder)
    del config["rope_theta"], config["rope_scaling"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 12345.0, **scaling}
    (folder / "config.json").write_text(json.dumps(config))
    exported = export(folder)
    filled = {"rope_theta": 12345.0, **({"rope_scaling": scaling} if scaling else {})}
    assert read_config(exported) == {**config, **filled}
    assert load_model(exported).spec == load_model(folder).spec


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_adapted_models_say_how_they_rotate(kind, tmp_path) -> None:
    published(kind, tmp_path / "ar", 48)
    old = read_config(tmp_path / "ar")
    assert "rope_theta" not in old  # the case that matters
    assert unmask("checkpoint", "adapt", tmp_path / "ar", tmp_path / "model").returncode == 0
    assert read_config(tmp_path / "model")["rope_theta"] == old["rope_parameters"]["rope_theta"]


def test_code_of_a_published_checkpoint_comes_along(sdar, tmp_path) -> None:
    """A model that began here has no code of its own, without which other tools do not know its family."""
    (tmp_path / "own").mkdir()
    own = make("sdar", tmp_path / "own")
    (own / "tokenizer.json").write_text("{}")
    exported = export(own, "--code-from", sdar)
    assert read_config(exported) == {**read_config(own), "auto_map": SDAR_4B_CHAT["auto_map"]}
    code = {name for name in SDAR_FILES if name.endswith(".py")}
    assert {file.name for file in exported.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", *code}
    assert "this was run" in (exported / "modeling_sdar.py").read_text()


def test_code_that_does_not_fit_is_refused(sdar, tmp_path) -> None:
    (tmp_path / "own").mkdir()
    own = make("dream", tmp_path / "own")
    for source, message in ((sdar, "has the code of sdar, and the model is of dream"), (own, "has no code of its own")):
        result = unmask("checkpoint", "export", own, tmp_path / "exported", "--code-from", source)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert not (tmp_path / "exported").exists()
