"""What is done to a model from outside before it is trained: activation checkpointing, compilation, sharding over ranks. The
model itself knows nothing of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmask.attention import Attend
from unmask.dist import ALONE, Ranks, whole
from unmask.models.decoder import Backbone
from unmask.models.layers import Forward

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

Weights = TypeVar("Weights", bound=Backbone)


def apply_techniques(
    model: Backbone, *, use_activation_checkpointing: bool = False, use_compile: bool = False, shard_size: int = 1,
    ranks: Ranks = ALONE, device: torch.device | None = None, precision: str = "float32",
) -> None:  # fmt: skip
    """Applied in place, in a fixed order.

    use_activation_checkpointing: of each layer only the input is kept for the backward pass, which computes the layer again
        (Chen et al. 2016, arXiv 1604.06174).
    use_compile: layers are compiled, for any number of tokens.
    shard_size: so many of the ranks hold one copy of the model between them (FSDP2; 1 = each its own, 0 = all together); the
        parts go to `device` (None = where the model is). A layer's weights are whole while it computes; those outside the
        layers from the first forward until `reshard`.
    precision: "bfloat16" lets the weights of sharded layers travel in it; gradients are summed in float32.

    Where no gradient is wanted, the first two change nothing. Raises `UnmaskError` for a size that does not divide the ranks.
    """
    for layer in model.layers:
        if use_compile:
            layer.forward = _compiled(layer.forward)
        if use_activation_checkpointing:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    size = shard_size or ranks.size
    if size == 1:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # where needed: it takes a second to import

    mesh = ranks.mesh(size, device or model.device)
    # What a layer gets is not cast: autocast says what is computed in which dtype, here as without ranks.
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # The head is read outside of its module (objectives/fused_head.py): the root's weights stay until the backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))


def _compiled(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer's forward, for any number of tokens. The engine, and what else reads the model without gradients, has shapes and
    caches of its own."""
    compiled = torch.compile(plain, dynamic=True)

    class Uncompiled(NamedTuple):
        """Attention that stays out of a compiled layer: backends differ with every pack, or compile themselves."""

        attend: Attend

        @torch.compiler.disable  # which imports the compiler: seconds that only those pay who use it
        def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attend(q, k, v)

    @wraps(plain)
    def forward(x_BLD: Tensor, shared: Forward, layer: int) -> Tensor:
        if not torch.is_grad_enabled():
            return plain(x_BLD, shared, layer)
        return compiled(x_BLD, shared._replace(attend=Uncompiled(shared.attend)), layer)

    return forward


def is_sharded(model: nn.Module) -> TypeGuard[FSDPModule]:
    """Whether `apply_techniques` made this rank hold a part of it only."""
    return hasattr(model, "reshard")


def gradient_factor(model: nn.Module, ranks: Ranks, *, is_last: bool) -> int:
    """What the loss of a rank is multiplied by, so that the gradients of all come out as sums: sharded models make means.

    is_last: whether this is the last backward pass before an optimizer step, after which copies of a part are put together.
    """
    if not is_sharded(model):
        return 1
    model.set_requires_all_reduce(is_last)
    return ranks.size


def reshard(model: nn.Module) -> None:
    """Frees weights that are whole, after a forward without a backward pass, and before its parameters are looked at."""
    if is_sharded(model):
        model.reshard()


def dtypes_of_copy(model: Backbone, precision: str) -> dict[str, torch.dtype]:
    """Of the tensors of a copy that only decodes. In "bfloat16", layers and an untied head are in it: autocast would cast them
    in each forward, since it keeps nothing where no gradient is wanted."""

    def of(name: str, tensor: Tensor) -> torch.dtype:
        is_head = name.startswith("lm_head.") and not model.spec.is_tied
        is_lower = precision == "bfloat16" and tensor.is_floating_point() and (is_head or name.startswith("layers."))
        return torch.bfloat16 if is_lower else tensor.dtype

    return {name: of(name, tensor) for name, tensor in model.state_dict().items()}


def lower_copy(model: Backbone, precision: str) -> None:
    """Gives the tensors of a copy that only decodes these dtypes, in place."""
    tensors = model.state_dict(keep_vars=True)
    for name, dtype in dtypes_of_copy(model, precision).items():
        tensors[name].data = tensors[name].data.to(dtype)


def copy_to_decode(model: Weights, device: torch.device, precision: str) -> Weights:
    """A frozen copy with these dtypes on the device, which is all the memory that it takes."""
    dtypes = dtypes_of_copy(model, precision)
    made: dict[int, Any] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        copied = tensor.detach().to(device, dtypes[name], copy=True)
        made[id(tensor)] = nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied
    return copy.deepcopy(model, made)


@torch.no_grad()
def copy_whole_weights(model: Backbone, target: Backbone) -> None:
    """What is trained of a model, into one of the same shapes that is whole; nothing goes over a disk. Of a sharded one, all
    ranks do it together: a layer's weights travel at once, while those before are copied."""
    reshard(model)
    wanted = dict(target.named_parameters())
    is_whole = not is_sharded(model)
    if is_whole:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                wanted[name].copy_(parameter)
        return
    groups: list[tuple[str, nn.Module]] = [(f"layers.{i}.", layer) for i, layer in enumerate(model.layers)] + [("", model)]
    coming: list[tuple[str, nn.Module]] = []
    for prefix, group in groups:
        own = {prefix + name: p for name, p in group.named_parameters() if prefix or not name.startswith("layers.")}
        if all(parameter.requires_grad for parameter in own.values()):
            coming.append((prefix, group))
            continue
        for name, parameter in own.items():  # adapters, without the frozen weights around them
            if parameter.requires_grad:
                wanted[name].copy_(whole(parameter))
    handles = []
    for i in range(len(coming) + 1):
        if i < len(coming):
            handles.append(cast("FSDPModule", coming[i][1]).unshard(async_op=True))
        if i == 0:
            continue
        prefix, group = coming[i - 1]
        if (handle := handles[i - 1]) is not None:
            handle.wait()
        for name, parameter in group.named_parameters():
            if prefix or not name.startswith("layers."):
                wanted[prefix + name].copy_(parameter)
        cast("FSDPModule", group).reshard()
