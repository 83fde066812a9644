"""Fixtures shared by all tests: a tiny random model with opinions, and the golden numbers where they are present."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from unmask.models import Decoder
from unmask.models.checkpoint import new_model

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
SPECIAL = {"vocab_size": 40, "eos_token_id": [1], "pad_token_id": 0, "mask_token_id": 2}


# Same sums in the same order: what is compared bit for bit must not depend on the number of threads.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    random.seed(0)
    yield
    torch.set_num_threads(1)  # a recipe that a test ran may have set another number, for the whole process


def make_model(seed: int = 0, std: float = 0.15, **overrides) -> Decoder:
    """A random tiny SDAR whose distributions are far from uniform (std 0.02 would make all tokens equally likely)."""
    config = {"hidden_size": 48, "head_dim": 12, "intermediate_size": 96, "num_hidden_layers": 2, **SPECIAL, **overrides}
    return new_model("sdar/tiny", seed, initializer_range=std, **config)


@pytest.fixture(scope="session")
def model() -> Decoder:
    return make_model()


@pytest.fixture(scope="session")
def golden_sdar() -> Path:
    folder = GOLDEN / "sdar_a"
    if not folder.exists():
        pytest.skip(f"golden fixtures are not at {GOLDEN}")
    return folder


def random_prompts(lengths, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, SPECIAL["vocab_size"]) for _ in range(n)] for n in lengths]
