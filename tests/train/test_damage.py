"""Whatever happens to the files of a checkpoint is found before they are used; `checkpoint list` and `verify` say so."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.recipes import SFT, unmask, write_recipe
from unmask.train.checkpoint import MANIFEST, find_damage, newest_valid


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """With checkpoints after steps 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    words = ["train.max_steps=4", "eval.every_steps=2", "checkpoint.keep_best=loss", "eval.num_loss_examples=4"]
    result = unmask("sft", write_recipe(folder, "sft", SFT), *words, f"run.dir={folder / 'run'}")
    assert result.returncode == 0, result.stderr
    return folder / "run"


def names(run) -> list[str]:
    checkpoint = run / "checkpoints" / "step-00000004"
    return sorted(file.relative_to(checkpoint).as_posix() for file in checkpoint.rglob("*") if file.is_file())


def test_a_flipped_bit_a_cut_and_a_missing_file_are_found(run, tmp_path) -> None:
    whole, rng = run / "checkpoints" / "step-00000004", random.Random(0)
    assert find_damage(whole) is None
    assert {
        "model.safetensors",
        "trainer_state.pt",
        "optimizer/__0_0.distcp",
        "optimizer/.metadata",
        "config.json",
        MANIFEST,
        "tokenizer.json",
    } <= set(names(run))
    shutil.copytree(whole, tmp_path / "c")
    for name in names(run):
        file = tmp_path / "c" / name
        content = file.read_bytes()
        # Of the manifest every byte, of other files some: their checksums know no favourites.
        places = range(len(content)) if name == MANIFEST else rng.sample(range(len(content)), 5)
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            file.write_bytes(flipped)
            assert find_damage(tmp_path / "c"), (name, place)
        for cut in (content[:-1], content + b" ", b""):
            file.write_bytes(cut)
            assert find_damage(tmp_path / "c"), (name, len(cut))
        file.unlink()
        assert find_damage(tmp_path / "c"), name
        file.write_bytes(content)
        assert find_damage(tmp_path / "c") is None


def test_the_one_before_is_taken_and_the_commands_tell(run, tmp_path) -> None:
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    listed = unmask("checkpoint", "list", tmp_path / "run")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == ["step-00000002", "step-00000004"]
    assert listed.stdout.count("best") == 1
    verified = unmask("checkpoint", "verify", tmp_path / "run")
    assert (verified.returncode, verified.stdout.count(": whole\n")) == (0, 2)
    weights = tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    verified = unmask("checkpoint", "verify", tmp_path / "run")
    assert "step-00000004: the checksum of model.safetensors does not match" in verified.stdout
    assert (verified.returncode, "1 of 2 checkpoints are damaged" in verified.stderr) == (2, True)
    assert unmask("checkpoint", "verify", weights.parent).returncode == 2
    found, notes = newest_valid(tmp_path / "run" / "checkpoints")
    assert (found.name, len(notes)) == ("step-00000002", 1)
    (weights.parent / MANIFEST).unlink()
    assert "incomplete" in unmask("checkpoint", "list", tmp_path / "run").stdout
    for command in ("list", "verify"):
        for folder, message in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "has no checkpoints")):
            if command == "list" or message == "no such folder":
                result = unmask("checkpoint", command, folder)
                assert (result.returncode, message in result.stderr) == (2, True), result.stderr
