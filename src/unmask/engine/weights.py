"""New weights for a model that is in use."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unmask.errors import UnmaskError
from unmask.models import Decoder


def check_weights(model: Decoder, weights: Mapping[str, Tensor] | nn.Module) -> dict[str, Tensor]:
    """The new value of every tensor of the model. Raises `UnmaskError` naming one that is missing, unknown or mis-shaped."""
    new = dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    own = model.state_dict()
    if model.spec.is_tied and "lm_head.weight" not in new and "embed_tokens.weight" in new:
        new["lm_head.weight"] = new["embed_tokens.weight"]
    if not all(isinstance(tensor, Tensor) for tensor in new.values()):
        raise UnmaskError(f"new weights: {next(k for k, t in new.items() if not isinstance(t, Tensor))!r} is not a tensor")
    if model.spec.is_tied and "embed_tokens.weight" in new:
        head, embedding = new["lm_head.weight"], new["embed_tokens.weight"]
        if head.shape == embedding.shape and not torch.equal(head, embedding):
            raise UnmaskError("new weights: the model's head is tied to its embedding; here they differ")
    if unknown := sorted(set(new) - set(own)):
        raise UnmaskError(f"new weights: the model has no tensor {unknown[0]!r}")
    for name, tensor in own.items():
        if name not in new:
            raise UnmaskError(f"new weights: tensor {name!r} is missing")
        if new[name].shape != tensor.shape:
            raise UnmaskError(f"new weights: {name!r} has shape {list(new[name].shape)}, expected {list(tensor.shape)}")
    return new


@torch.no_grad()
def copy_weights(model: Decoder, weights: Mapping[str, Tensor]) -> None:
    """Into the model's own tensors, in its dtype and on its device."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])
