"""Reading the golden fixtures: cases/<stem>.json with tensors in cases/<stem>.safetensors."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file


def golden_cases(folder: Path, stem: str) -> list[dict]:
    """Each case with its tensors in place of the references to them."""
    cases = json.loads((folder / "cases" / f"{stem}.json").read_text())["cases"]
    file = folder / "cases" / f"{stem}.safetensors"
    tensors = load_file(file) if file.exists() else {}
    for case in cases:
        for part in ("inputs", "outputs"):
            case[part] = {key: tensors[ref["tensor"]] for key, ref in case[part].items()}
    return cases
