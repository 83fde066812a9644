"""Memory that does not suffice: packs of rows become smaller, and the work on them is begun again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from unmask.errors import UnmaskError
from unmask.objectives.rows import TrainRow, fit_rows

if TYPE_CHECKING:
    from unmask.train.trainer import Trainer

Result = TypeVar("Result")

# What says so without being an `OutOfMemoryError`: the allocator of CPUs (Linux, Windows), libraries and drivers of GPUs.
_WORDS = (
    "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)  # fmt: skip
_ADVICE = "use train.use_activation_checkpointing or adapters (lora.rank), or train shorter sequences"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine had not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def within_memory(trainer: Trainer[Any], rows: Sequence[TrainRow], work: Callable[[], Result]) -> Result:
    """What `work` returns, which forwards the rows in packs of at most `trainer.max_tokens` tokens.

    Where a rank has not enough memory for that, all of them halve `trainer.max_tokens`, which stays so, drop their gradients
    and begin again: the weights of rows refer to the whole update, so the results are the same. Raises `UnmaskError` where
    packs cannot become smaller, and where ranks share a model's weights: then others wait within the forward pass.
    """
    while True:
        results: list[Result] = []
        try:
            results.append(work())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if trainer.is_sharded:
                raise UnmaskError(
                    f"out of memory with packs of {trainer.max_tokens} tokens, on ranks that share the weights; the last "
                    f"checkpoint is intact: go on with --resume and a smaller train.max_tokens_per_micro_batch, or {_ADVICE}"
                ) from None
        # Here, and no sooner, the frames of the error are gone, and the tensors that they held.
        if not _of_any_rank(trainer, is_short=not results):
            return results[0]
        results.clear()
        trainer.optimizer.zero_grad(set_to_none=True)  # before what is free is given back
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        num_before = trainer.max_tokens
        trainer.max_tokens = _half(rows, num_before)
        trainer.say(
            f"{trainer.model_name}: out of memory with packs of {num_before} tokens; going on with {trainer.max_tokens}"
        )


def _of_any_rank(trainer: Trainer[Any], is_short: bool) -> bool:
    flag = torch.tensor(float(is_short), device=trainer.model.device)
    trainer.ranks.sum_([flag])
    return bool(flag > 0)


def _half(rows: Sequence[TrainRow], max_tokens: int) -> int:
    longest = max(len(piece.input_ids) for piece in fit_rows(rows, max_tokens))
    if max_tokens < longest or max_tokens == 1:
        raise UnmaskError(
            f"out of memory, although every row is forwarded by itself (the longest has {longest} tokens); the last checkpoint "
            f"is intact: {_ADVICE}"
        )
    return max_tokens // 2
