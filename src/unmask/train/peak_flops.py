"""What a GPU can do at most: the denominator of model FLOPs utilisation."""

from __future__ import annotations

import torch

# 10^12 operations per second of dense products as the makers' data sheets have them: in bfloat16, in TF32, in float32. A device
# is the first whose words are all in its name.
_PEAKS = {
    "H200 NVL": (835.5, 417.5, 60.0),
    "H200": (989.5, 494.7, 66.9),
    "H100 PCIe": (756.0, 378.0, 51.2),
    "H100 NVL": (835.5, 417.5, 60.0),
    "H100": (989.5, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "L40S": (362.0, 183.0, 91.6),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71.0, 35.6, 35.6),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Operations per second at most, of matrix products in "bfloat16" or "float32" (which may be computed as TF32); None for a
    device that is not known, and for CPUs."""
    if device.type != "cuda":
        return None
    uses_tf32 = torch.backends.cuda.matmul.allow_tf32
    return peak_of_name(torch.cuda.get_device_name(device), "tf32" if precision == "float32" and uses_tf32 else precision)


def peak_of_name(name: str, arithmetic: str) -> float | None:
    """The same by the device's name; arithmetic: "bfloat16", "tf32" or "float32"."""
    column = ("bfloat16", "tf32", "float32").index(arithmetic)
    for words, peaks in _PEAKS.items():
        if all(word in name for word in words.split()):
            return peaks[column] * 1e12
    return None
