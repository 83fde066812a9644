"""Autoregressive models as diffusion models: the same numbers under causal attention, a mask token, and mistakes."""

from __future__ import annotations

import json

import pytest
import torch

from tests.recipes import unmask
from unmask.data.chat import ChatTokenizer
from unmask.models.checkpoint import load_model

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
KINDS = {
    "qwen3": ("sdar", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3_moe": ("sdar_moe", {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                               "norm_topk_prob": True}),
    "qwen2": ("dream", {"tie_word_embeddings": False}),
}  # fmt: skip


def published(kind: str, folder, vocab_size: int):
    """A random model of transformers' own, saved with a tokenizer of 39 tokens that has no mask token."""
    import transformers

    name = {"qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe", "qwen2": "Qwen2"}[kind]
    config = getattr(transformers, f"{name}Config")(**SIZES, **KINDS[kind][1], vocab_size=vocab_size)
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases, which would all be 1 and 0
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    model.save_pretrained(folder)
    tokenizer = ChatTokenizer.tiny("abcdefghijklmnopqrstuvwxyz01234567")
    tokenizer.tokenizer.mask_token = None
    tokenizer.save(folder)
    text = (folder / "tokenizer.json").read_text().replace("<|MASK|>", "<|other|>")
    (folder / "tokenizer.json").write_text(text)
    return model


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("vocab_size", [39, 48])  # as many rows as tokens; some to spare
@pytest.mark.parametrize("kind", KINDS)
def test_causal_logits_stay(kind: str, vocab_size: int, tmp_path) -> None:
    family, _ = KINDS[kind]
    model = published(kind, tmp_path / "ar", vocab_size)
    words = [] if family == "dream" else ["--block-size", "2"]
    result = unmask("checkpoint", "adapt", tmp_path / "ar", tmp_path / "out", *words)
    assert result.returncode == 0, result.stderr
    adapted, tokenizer = load_model(tmp_path / "out"), ChatTokenizer.load(tmp_path / "out")
    spec = adapted.spec
    assert (spec.family, spec.vocab_size, spec.mask_token_id) == (family, max(vocab_size, 40), 39)
    assert spec.block_size == (32 if family == "dream" else 2)
    assert tokenizer.tokenizer.mask_token_id == 39
    assert tokenizer.encode("hello") == ChatTokenizer.load(tmp_path / "ar").encode("hello")
    ids = torch.randint(0, 39, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = model(ids).logits[:, :, :39], adapted.logits(ids, attention="causal")[:, :, :39]
    if spec.shift_logits:
        wanted, got = wanted[:, :-1], got[:, 1:]
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    embedding = adapted.embed_tokens.weight
    torch.testing.assert_close(embedding[39], embedding[:39].mean(0))


@pytest.mark.parametrize(
    ("words", "config", "message"),
    [
        ([], {"model_type": "gpt2"}, "model_type 'gpt2' cannot be adapted; known: qwen3 (as sdar)"),
        (["--block-size", "4"], {"model_type": "qwen2"}, "--block-size is for block models; dream has full attention"),
        ([], {"vocab_size": None}, "config.json: vocab_size should be a number, found None"),
        ([], {"num_hidden_layers": 3}, "tensors do not fit family sdar: "),
    ],
)
def test_mistakes_are_one_line(words, config, message, tmp_path) -> None:
    published("qwen3", tmp_path / "ar", 39)
    file = tmp_path / "ar" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    result = unmask("checkpoint", "adapt", tmp_path / "ar", tmp_path / "out", *words)
    assert (result.returncode, result.stderr.count("\n"), (tmp_path / "out").exists()) == (2, 1, False), result.stderr
    assert message in result.stderr
