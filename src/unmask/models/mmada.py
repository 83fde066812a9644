"""MMaDA, text: LLaDA's backbone with image tokens in the vocabulary (they are ordinary token ids here)."""

from __future__ import annotations

from unmask.models.llada import LLaDA

_NAMES = {"model_type": "mmada", "architectures": ["MMadaModelLM"]}
_PUBLISHED = {"vocab_size": 134656, "embedding_size": 134656, "new_vocab_size": 134656, "llm_vocab_size": 126464,
              "codebook_size": 8192, "num_vq_tokens": 1024, "num_new_special_tokens": 0}  # fmt: skip


class MMaDA(LLaDA):
    name = "mmada"
    model_types = ("mmada",)
    architectures = ("MMadaModelLM",)
    presets = {  # noqa: RUF012
        "tiny": {**LLaDA.presets["tiny"], **_NAMES},
        "small": {**LLaDA.presets["small"], **_NAMES},
        "8b": {**LLaDA.presets["8b"], **_NAMES, **_PUBLISHED},
    }
