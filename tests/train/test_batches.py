"""Batches: every sample once an epoch, similar lengths in a bucket, the same after resumption; keys of demonstrations."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.recipes import SFT, unmask, write_recipe
from unmask.config.training import SftTrainConfig
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import EpochOrder
from unmask.metrics import read_metrics
from unmask.train.batches import Batches
from unmask.train.demonstrations import sample_key
from unmask.types import Example

TOKENIZER = ChatTokenizer.tiny("0123456789")
LENGTHS = np.random.default_rng(0).integers(1, 60, 48)


class Digits:
    """Example i has a response of LENGTHS[i] tokens; the end of the turn and two tokens of the prompt's template come to it."""

    vocabulary = None
    dataset_hash = ""

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> Example:
        return Example(id=f"e{index}", messages=({"role": "user", "content": "0"},), response="7" * int(LENGTHS[index]))


def batches(seed: int = 0, **train) -> Batches:
    config = SftTrainConfig(**{"batch_size": 4, "num_bucket_steps": 6, **train})
    return Batches(config, Digits(), TOKENIZER, seed, lambda line: None)


def names(made: Batches, steps: range) -> list[list[str]]:
    return [[item.name for item in made[step][0]] for step in steps]


def flat(lists: list[list]) -> list:
    return [item for part in lists for item in part]


def test_every_window_is_that_of_the_order() -> None:
    """24 samples a window, two windows an epoch: each epoch has every sample once, each window those of the plain order."""
    plain, bucketed = names(batches(num_bucket_steps=0), range(24)), names(batches(), range(24))
    order = EpochOrder(48, 0)
    assert flat(plain) == [f"e{order[n][0]}" for n in range(96)]
    for first in range(0, 24, 6):
        assert Counter(flat(plain[first : first + 6])) == Counter(flat(bucketed[first : first + 6]))
    for first in (0, 12):
        assert set(Counter(flat(bucketed[first : first + 12])).values()) == {1}
    assert [item.epoch for step in range(24) for item in batches()[step][0]] == [0] * 48 + [1] * 48
    assert [item.place for step in range(24) for item in batches()[step][0]] == list(range(96))


def test_a_bucket_has_similar_lengths_in_a_drawn_order() -> None:
    made = batches()
    for first in range(0, 24, 6):
        lengths = [[len(item.response_ids) - 1 for item in made[step][0]] for step in range(first, first + 6)]
        ordered = sorted(lengths)
        assert flat(ordered) == sorted(flat(lengths))  # no length lies in the middle of another bucket
        assert lengths != ordered
    shapes = {tuple(np.argsort([len(b[step][0][0].response_ids) for step in range(6)])) for b in map(batches, range(8))}
    assert len(shapes) > 4  # by the seed


def test_a_step_follows_from_its_number() -> None:
    """From the middle of a window, in any order, and each window is tokenised once."""
    whole = names(batches(), range(20))
    for begin in (3, 6, 11):
        assert names(batches(), range(begin, 20)) == whole[begin:]
    assert names(batches(), range(19, -1, -1)) == whole[::-1]
    made, calls = batches(), []
    made.tokenizer = type("Counting", (), {
        "prompt_ids": lambda self, e: TOKENIZER.prompt_ids(e),
        "response_ids": lambda self, e: calls.append(e.id) or TOKENIZER.response_ids(e),
    })()  # fmt: skip
    names(made, range(12))
    assert len(calls) == len(set(calls)) == 48


def test_too_long_ones_are_divided_among_the_steps() -> None:
    made = batches(max_length=43)
    found = [made[step] for step in range(12)]
    too_long = int((LENGTHS + 4 > 43).sum())  # two tokens of the template, the question, the end of the turn
    assert 8 < too_long < 40
    assert sum(num for _, num in found) == too_long
    assert Counter(item.name for items, _ in found for item in items) == Counter(
        f"e{i}" for i in range(48) if LENGTHS[i] + 4 <= 43
    )
    for first in (0, 6):
        sizes = [len(items) for items, _ in found[first : first + 6]]
        assert max(sizes) - min(sizes) <= 1
    cut = batches(max_length=43, when_longer="cut")
    assert sum(cut[step][1] for step in range(12)) == too_long
    assert max(len(item.prompt_ids + item.response_ids) for step in range(12) for item in cut[step][0]) == 43


@pytest.mark.parametrize("name", ["semi_ar", "random_masking"])
def test_a_run_with_buckets_is_resumed_exactly(name, tmp_path) -> None:
    words = ["train.num_bucket_steps=4", "train.max_length=22", "eval.every_steps=0", f"objective.name={name}"]
    words += ["objective.options.rates=stratified"]
    recipe = write_recipe(tmp_path, "sft", SFT)
    for folder, steps, more in (("whole", 7, []), ("torn", 2, []), ("torn", 7, ["--resume"])):
        result = unmask("sft", recipe, *words, f"train.max_steps={steps}", f"run.dir={tmp_path / folder}", *more)
        assert result.returncode == 0, result.stderr
    whole, torn = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "torn"))
    assert whole == torn
    assert len(read_metrics(tmp_path / "whole")) == 7
    wrong = unmask("sft", recipe, "train.num_bucket_steps=-1", f"run.dir={tmp_path / 'wrong'}")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "train.num_bucket_steps" in wrong.stderr


def test_keys_are_of_ids_alone() -> None:
    """The same wherever the example is in its source; 63 bits, no two alike."""
    example = Digits()[3]
    assert sample_key(example) == sample_key(example.model_copy(update={"response": "1"}))
    keys = [sample_key(example.model_copy(update={"id": str(i)})) for i in range(2000)]
    assert len(set(keys)) == 2000
    assert all(0 <= key < 2**63 for key in keys)
    assert max(keys) > 2**62
