"""Memory that does not suffice: packs of rows become smaller, and the work on them is begun again."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from unmask.dist import Ranks
from unmask.errors import TryAgainError, UnmaskError
from unmask.files import write_text
from unmask.objectives.rows import TrainRow, fit_rows
from unmask.train.folder import PACKS

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
    and begin again: the weights of rows refer to the whole update, so the results are the same. Where ranks share a model's
    weights, others wait within the forward pass: raises `TryAgainError`, and the run goes on with half from its checkpoint.
    Raises `UnmaskError` where packs cannot become smaller.
    """
    while True:
        results: list[Result] = []
        try:
            results.append(work())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if trainer.is_sharded:
                num = _half(rows, trainer.max_tokens)
                trainer.keep_max_tokens(num)
                raise TryAgainError(
                    f"{trainer.model_name}: out of memory with packs of {trainer.max_tokens} tokens, on ranks that share the "
                    f"weights; --resume goes on with packs of {num}"
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
        if trainer.ranks.is_first:
            trainer.keep_max_tokens(trainer.max_tokens)
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


class PackSizes:
    """RUN/max-tokens.json: tokens of a pack by the name of the model, where they had to be fewer than the recipe says. They
    hold for a resumption, too, unless its recipe has another `train.max_tokens_per_micro_batch`."""

    def __init__(self, folder: Path, of_recipe: int):
        self.file, self.of_recipe = folder / PACKS, of_recipe

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            sizes = {str(name): int(num) for name, num in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # not there, or not what was written
            return {}
        if sizes.pop("recipe", 0) != self.of_recipe:
            return {}
        return {name: num for name, num in sizes.items() if 0 < num < self.of_recipe}

    def restore(self, trainers: Iterable[Trainer[Any]], ranks: Ranks) -> list[str]:
        """What the user is told of it."""
        sizes = ranks.of_first(self._read())
        for trainer in trainers:
            trainer.max_tokens = sizes.get(trainer.model_name, trainer.max_tokens)
        return [f"{name}: packs of {num} tokens, since memory was short ({self.file})" for name, num in sizes.items()]

    def keep(self, name: str, max_tokens: int) -> None:
        write_text(self.file, json.dumps({"recipe": self.of_recipe, **self._read(), name: max_tokens}) + "\n")
