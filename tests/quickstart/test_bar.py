"""Does the quickstart show what it claims? End to end for three seeds, each from its own random weights."""

from __future__ import annotations

import json

import pytest

from tests.recipes import start

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rl_improves_what_it_should(tmp_path, seed) -> None:
    process = start("quickstart", "--seed", seed, "--dir", tmp_path / "q")
    _, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    results = json.loads((tmp_path / "q" / "results.json").read_text())
    before, after = results["before"], results["after"]
    assert after["dynamic"]["accuracy"] >= max(0.85, before["dynamic"]["accuracy"] + 0.25)
    assert after["dynamic"]["tokens_per_forward"] >= before["dynamic"]["tokens_per_forward"]
    assert after["static_greedy"]["accuracy"] >= before["static_greedy"]["accuracy"] - 0.03
