"""How many pages the memory for keys and values holds."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from unmask.engine.paged import PagedKV
from unmask.errors import UnmaskError
from unmask.models import Decoder

_GB = 10**9


def num_pages_in_budget(model: Decoder, page_size: int, kv_memory_gb: float | None) -> int:
    """Raises `UnmaskError` if not even one page fits."""
    budget = default_budget(model.device) if kv_memory_gb is None else kv_memory_gb * _GB
    page_bytes = page_size * PagedKV.bytes_per_token(model.spec, model.dtype, model.device)
    if budget < page_bytes:
        raise UnmaskError(
            f"{budget / _GB:.3g} GB hold no page of {page_size} tokens, which takes {page_bytes / _GB:.3g} GB; "
            "raise kv_memory_gb or lower page_size"
        )
    return int(budget // page_bytes)


def default_budget(device: torch.device) -> float:
    """Bytes; see `EngineLimits.kv_memory_gb`."""
    if device.type == "cuda":
        return 0.8 * torch.cuda.mem_get_info(device)[0]
    return min(2 * _GB, 0.5 * _free_memory())


def _free_memory() -> int:
    """Bytes that can be had without swapping (Linux; elsewhere half of what the machine has)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
