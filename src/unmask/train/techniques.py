"""What is done to a model from outside before it is trained; the model itself knows nothing of it."""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from unmask.models.decoder import Backbone


def apply_techniques(model: Backbone, *, use_activation_checkpointing: bool = False) -> None:
    """Applied in place, in a fixed order.

    use_activation_checkpointing: of each layer only the input is kept for the backward pass, which computes the layer again
        (Chen et al. 2016, arXiv 1604.06174). Where no gradient is wanted, nothing changes.
    """
    if use_activation_checkpointing:
        for layer in model.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
