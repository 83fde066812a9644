"""Rotary embeddings: the formulas of the papers written out, and which configs are refused."""

from __future__ import annotations

import math

import pytest
import torch

from unmask.errors import UnmaskError
from unmask.models import FAMILIES, preset_config
from unmask.models.rotary import rotary_frequencies, rotary_table, rotate
from unmask.models.spec import RotarySpec

K, THETA = 32, 10000.0
PLAIN = [THETA ** (-2 * i / K) for i in range(K // 2)]


def spec_of(**keys) -> RotarySpec:
    return FAMILIES["sdar"].spec({**preset_config("sdar/tiny"), "rope_theta": THETA, **keys}).rotary


def frequencies(rotary: RotarySpec) -> tuple[list[float], float]:
    values, factor = rotary_frequencies(rotary, K, torch.device("cpu"))
    return values.tolist(), factor


def test_plain_rotation_is_a_turn_of_each_pair() -> None:
    x = torch.randn(1, 1, 3, K)
    position = torch.tensor([[0, 5, 700]])
    got = rotate(x, *rotary_table(position, K, RotarySpec(THETA)))
    for row, p in enumerate(position[0].tolist()):
        for i, frequency in enumerate(PLAIN):
            a, b = x[0, 0, row, i].item(), x[0, 0, row, i + K // 2].item()
            cos, sin = math.cos(p * frequency), math.sin(p * frequency)
            assert got[0, 0, row, i].item() == pytest.approx(a * cos - b * sin, abs=1e-4)
            assert got[0, 0, row, i + K // 2].item() == pytest.approx(b * cos + a * sin, abs=1e-4)


def test_linear_scaling_divides_positions() -> None:
    got, factor = frequencies(spec_of(rope_scaling={"type": "linear", "factor": 4.0}))
    assert got == pytest.approx([f / 4 for f in PLAIN], rel=1e-6)
    assert factor == 1.0


def test_llama3_scaling() -> None:
    """Low frequencies are divided, high ones kept, those between interpolated (Llama 3.1)."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    got, _ = frequencies(spec_of(rope_scaling={**scaling, "original_max_position_embeddings": 256}))
    want = []
    for f in PLAIN:
        turns = 256 * f / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - 1.0) / (4.0 - 1.0)))
        want.append((1 - share) * f / 8 + share * f)
    assert got == pytest.approx(want, rel=1e-5)


def test_yarn_scaling() -> None:
    """YaRN (Peng et al. 2023, section 3.2 and 3.4), the boundaries rounded as in the published code."""
    got, factor = frequencies(
        spec_of(rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128})
    )

    def dimension(num_turns: float) -> float:
        return K * math.log(128 / (num_turns * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), K - 1)
    want = []
    for i, f in enumerate(PLAIN):
        ramp = min(1.0, max(0.0, (i - low) / (high - low)))
        want.append(ramp * f / 4 + (1 - ramp) * f)
    assert got == pytest.approx(want, rel=1e-5)
    assert factor == pytest.approx(0.1 * math.log(4) + 1)
    cos, _ = rotary_table(torch.zeros(1, 1, dtype=torch.long), K, spec_of(rope_scaling={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}))  # fmt: skip
    assert cos.flatten().tolist() == pytest.approx([factor] * (K // 2))


def test_the_original_length_is_the_configs_unless_it_is_given(caplog) -> None:
    """YaRN's factor counts as it is given, also where the config's lengths have another ratio, without a word."""
    yarn = {"rope_type": "yarn", "factor": 4.0}
    given = {**yarn, "original_max_position_embeddings": 512}
    assert frequencies(spec_of(rope_scaling=yarn)) == frequencies(spec_of(rope_scaling=given))
    longer = frequencies(spec_of(rope_scaling={**yarn, "original_max_position_embeddings": 128.0}))
    assert longer != frequencies(spec_of(rope_scaling=given))
    assert longer == frequencies(
        spec_of(rope_scaling={**yarn, "original_max_position_embeddings": 128}, max_position_embeddings=9)
    )
    assert not caplog.records


def test_theta_may_stand_in_either_place() -> None:
    assert spec_of(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 77.0}) == RotarySpec(77.0, (), 512)
    assert spec_of(rope_theta=None) == RotarySpec(10000.0, (), 512)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type: Input should be 'default', 'linear'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling.rope_type: Input should be"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: rope_type 'linear' needs the key 'factor'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta": 1}}, "unknown key 'rope_scaling.beta'"),
        ({"rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 2.0}}, "contradict each other"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling: factor 4.0 is given without a rope_type"),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "rope_parameters and rope_scaling contradict each other",
        ),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is given as 5.0 and as 10000.0"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "max_position_embeddings": None},
            "rope_type 'yarn' needs original_max_position_embeddings",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor"),
        ({"head_dim": 15}, "a head size of 15 is odd; rotary embeddings need pairs"),
    ],
)
def test_what_is_not_supported_is_refused(keys, message) -> None:
    with pytest.raises(UnmaskError) as error:
        spec_of(**keys)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
