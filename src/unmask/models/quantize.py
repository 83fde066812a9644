"""Frozen weights in four bits (NF4, QLoRA, Dettmers et al. 2023) through bitsandbytes. The one importer of it."""

from __future__ import annotations

import torch
from torch import nn

from unmask.errors import UnmaskError
from unmask.models.decoder import Backbone


def quantize_linears(model: Backbone) -> None:
    """Puts the matrices of all layers into four bits, in place; for adapters, since they cannot be trained then.

    Embedding, head, norms and experts stay. Raises `UnmaskError` where there is no GPU or no bitsandbytes.
    """
    if model.device.type != "cuda":
        raise UnmaskError(f"lora.base_bits 4 needs a GPU (the kernels of bitsandbytes); the model is on {model.device.type}")
    try:
        import bitsandbytes
    except ImportError as error:
        raise UnmaskError(f"lora.base_bits 4 needs bitsandbytes ({error}): pip install 'unmask[quantize]'") from None
    for parent in list(model.layers.modules()):
        for name, linear in parent.named_children():
            if isinstance(linear, nn.Linear):
                small = bitsandbytes.nn.Linear4bit(
                    linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=torch.bfloat16,
                    quant_type="nf4",
                )  # fmt: skip
                small.weight = bitsandbytes.nn.Params4bit(linear.weight.data.cpu(), requires_grad=False, quant_type="nf4")
                small.bias = linear.bias
                setattr(parent, name, small.to(model.device))  # where it is quantised
