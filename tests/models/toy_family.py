"""A made-up family, as a newcomer would add one: SDAR's backbone under other names, with shifted logits."""

from __future__ import annotations

from dataclasses import replace

from unmask.models.sdar import SDAR


class ToyFamily(SDAR):
    name = "toy"
    model_types = ("toy",)
    architectures = ("ToyForCausalLM",)
    presets = {  # noqa: RUF012
        "tiny": {**SDAR.presets["tiny"], "model_type": "toy", "architectures": ["ToyForCausalLM"]},
    }

    def spec(self, config):
        return replace(super().spec(config), shift_logits=True)

    def to_checkpoint_name(self, name: str) -> str:
        return f"toy.{super().to_checkpoint_name(name)}"
