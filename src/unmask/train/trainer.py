"""The one Trainer: rows and a loss in, one optimizer step out. It knows no objective and no sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from unmask.attention import get_backend
from unmask.config.training import OptimizerConfig
from unmask.dist import ALONE, Ranks, whole
from unmask.models import ValueModel
from unmask.models.decoder import Backbone
from unmask.models.experts import expert_balance, expert_load, reset_expert_load
from unmask.models.flops import model_flops
from unmask.objectives.rows import RowBatch, TrainRow, collate, share_packs, split_row
from unmask.train.memory import within_memory
from unmask.train.nonfinite import stop_for_nonfinite
from unmask.train.optimizer import learning_rate, make_optimizer
from unmask.train.techniques import apply_techniques, copy_whole_weights, gradient_factor, is_sharded, reshard

# A pack of rows -> its loss (those of all packs add up), sums for the metrics
LossFn = Callable[[RowBatch], tuple[Tensor, dict[str, Tensor]]]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Matrix products in "bfloat16", or everything in "float32"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


Model = TypeVar("Model", bound=Backbone)


class Trainer(Generic[Model]):
    """Holds the model, the optimizer that lives across steps, and the number of optimizer steps done.

    Gradient accumulation is exact by construction: an objective's weights already refer to the whole update, so the
    losses (and gradients) of micro-batches simply add up, whatever their number and size, the last one included.

    max_tokens: of a pack; halved where memory does not suffice. say, keep_report, keep_max_tokens: where it tells what goes
    wrong, keeps what it has found about it (returns where that is), and the half; a run's `Run` puts in its own.
    """

    def __init__(
        self,
        model: Model,
        config: OptimizerConfig,
        *,
        max_optimizer_steps: int,
        max_tokens_per_micro_batch: int,
        attention_backend: str = "auto",
        precision: str = "float32",
        use_activation_checkpointing: bool = False,
        use_compile: bool = False,
        shard_size: int = 1,
        device: torch.device | None = None,
        max_nonfinite_updates: int = 0,
        ranks: Ranks = ALONE,
    ):
        """device: where a model goes that is sharded; None = where it is. The rest as in `apply_techniques`."""
        apply_techniques(
            model, use_activation_checkpointing=use_activation_checkpointing, use_compile=use_compile, shard_size=shard_size,
            ranks=ranks, device=device, precision=precision,
        )  # fmt: skip
        self.is_sharded = is_sharded(model)  # ranks share the weights, and forward every pack together
        self.model, self.config = model, config
        self.max_optimizer_steps = max_optimizer_steps
        self.max_tokens = max_tokens_per_micro_batch
        self.backend = get_backend(attention_backend, model.device)
        self.precision, self.ranks = precision, ranks
        self.optimizer = make_optimizer(model, config)
        self.optimizer_step = 0
        self.num_flops = self.num_own_tokens = 0  # of this rank's own packs since the start; tokens: those that were trained on
        self.max_nonfinite_updates, self.num_nonfinite_in_a_row = max_nonfinite_updates, 0
        self.say: Callable[[str], None] = lambda line: None
        self.keep_report: Callable[[dict[str, Any]], str] = lambda report: "training"
        self.keep_max_tokens: Callable[[int], None] = lambda num: None

    @property
    def model_name(self) -> str:
        """For messages."""
        return "value model" if isinstance(self.model, ValueModel) else "model"

    def autocast(self) -> torch.autocast:
        """Matrix products in the run's precision; weights, norms, log-probabilities and optimizer stay float32."""
        return autocast(self.precision, self.model.device)

    def update(self, rows: Sequence[TrainRow], loss_fn: LossFn) -> dict[str, float]:
        """One optimizer step on the sum of the loss over all rows, which are the same on all ranks. Returns "loss",
        "grad_norm", "lr", "num_tokens" (that were forwarded), the sums, and of models with experts "expert_load_max" and
        "expert_load_min" (1 = every expert had an even share of the tokens), and "num_nonfinite_updates": 0.

        Where the loss or the gradient is not finite, nothing changes, and "num_nonfinite_updates": 1 and "num_tokens" are all
        there is. Raises `UnmaskError` when that happens more than `max_nonfinite_updates` times in a row, and where memory
        does not suffice for a single row.
        """
        sums, load = within_memory(self, rows, partial(self._accumulate, rows, loss_fn))
        if not self.is_sharded:
            self.ranks.sum_([p.grad for p in self.model.parameters() if p.grad is not None])
        totals = self._over_ranks(sums, load)
        grad_norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm, foreach=True))
        if not (torch.isfinite(grad_norm) and math.isfinite(totals["loss"])):
            self._skip(rows, loss_fn, totals["loss"], float(grad_norm))
            return {"num_tokens": int(totals["num_tokens"]), "num_nonfinite_updates": 1}
        self.num_nonfinite_in_a_row = 0
        lr = learning_rate(self.config, self.optimizer_step, self.max_optimizer_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        totals["num_tokens"] = int(totals["num_tokens"])
        more = {} if load is None else expert_balance(load)
        return totals | {"grad_norm": float(grad_norm), "lr": lr, "num_nonfinite_updates": 0} | more

    def _accumulate(self, rows: Sequence[TrainRow], loss_fn: LossFn) -> tuple[dict[str, Tensor | float], Tensor | None]:
        """Forward and backward of this rank's packs: its sums, and its experts' loads; the gradients are in the parameters."""
        sums: dict[str, Tensor] = {}
        num_tokens = 0
        reset_expert_load(self.model)
        load: Tensor | None = None
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()  # for the dropout of adapters
        packs = list(self._packs(rows))
        for i, (pack, share) in enumerate(packs):
            if not share:
                load = expert_load(self.model)  # without what is not its own
            batch = self._collate(pack, share, is_trained=True)
            with self.autocast():
                loss, more = loss_fn(batch)
            (loss * share * gradient_factor(self.model, self.ranks, is_last=i == len(packs) - 1)).backward()
            num_tokens += share * batch.input_ids_BL.numel()
            for key, value in (("loss", loss.detach()), *more.items()):
                sums[key] = share * value + sums.get(key, 0.0)
        self.model.eval()
        return {**sums, "num_tokens": num_tokens}, expert_load(self.model) if load is None else load

    def _skip(self, rows: Sequence[TrainRow], loss_fn: LossFn, loss: float, grad_norm: float) -> None:
        """Counts and tells an update that is not made. Raises `UnmaskError` for one too many."""
        self.optimizer.zero_grad(set_to_none=True)
        self.num_nonfinite_in_a_row += 1
        if self.num_nonfinite_in_a_row > self.max_nonfinite_updates:
            stop_for_nonfinite(self, rows, loss_fn, loss, grad_norm)
        self.say(
            f"{self.model_name}, update {self.optimizer_step + 1}: skipped; loss {loss:g} or gradient norm {grad_norm:g} is "
            f"not finite ({self.num_nonfinite_in_a_row} in a row; train.max_nonfinite_updates is {self.max_nonfinite_updates})"
        )

    def _packs(self, rows: Sequence[TrainRow]) -> Iterator[tuple[list[TrainRow], int]]:
        """This rank's packs, as many as every other rank's, and how often each counts: 0 for one that is not its own, and only
        there because the ranks go through a model together."""
        packs = share_packs(rows, self.max_tokens, self.ranks.size)
        yield from ((pack, 1) for pack in packs[self.ranks.rank])
        if len(packs[self.ranks.rank]) < len(packs[0]):
            yield packs[0][-1], 0

    def _collate(self, pack: list[TrainRow], share: int, *, is_trained: bool = False) -> RowBatch:
        """The pack on the device, and what is done with it counted."""
        batch, spec = collate(pack, self.model.device), self.model.spec
        num_outputs = 1 if isinstance(self.model, ValueModel) else spec.vocab_size
        gradients: Literal["all", "inputs"] = "inputs" if self.model.adapters else "all"  # adapters: the weights are frozen
        backward = gradients if is_trained else "none"
        self.num_flops += share * model_flops(spec, batch.work, num_outputs=num_outputs, backward=backward)
        self.num_own_tokens += share * is_trained * batch.work.num_tokens
        return batch

    def _over_ranks(self, sums: Mapping[str, Tensor | float], load: Tensor | None) -> dict[str, float]:
        """The sums of all ranks; and, in place, of the experts' loads."""
        device = self.model.device
        total = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in sums.values()])
        self.ranks.sum_([total])
        if load is not None and self.ranks.size > 1:
            load.copy_(torch.from_numpy(np.sum(self.ranks.gather(load.numpy()), 0)))
        return dict(zip(sums, total.tolist(), strict=True))

    @torch.no_grad()
    def measure(self, rows: Sequence[TrainRow], loss_fn: LossFn) -> float:
        """The loss over all rows, without a step."""

        def work() -> Tensor:
            total = torch.zeros((), device=self.model.device)
            for pack, share in self._packs(rows):
                with self.autocast():
                    total += share * loss_fn(self._collate(pack, share))[0]
            reshard(self.model)
            return total

        return self._over_ranks({"loss": within_memory(self, rows, work)}, None)["loss"]

    @torch.no_grad()
    def set_values(self, key: str, rows: Sequence[TrainRow], compute: Callable[[RowBatch], Tensor]) -> None:
        """Sets values[key] of the rows: what `compute` says of the targets of a pack, a float [N]."""

        def work() -> list[tuple[int, int, np.ndarray]]:
            pieces_of = [list(split_row(row, self.max_tokens)) for row in rows]  # their targets are in the row's order
            place = {id(piece): (i, k) for i, pieces in enumerate(pieces_of) for k, piece in enumerate(pieces)}
            found: list[tuple[int, int, np.ndarray]] = []
            for pack, share in self._packs(list(chain.from_iterable(pieces_of))):
                with self.autocast():
                    value_N = compute(self._collate(pack, share))
                parts = value_N.float().cpu().split([len(piece.target_ids) for piece in pack])
                found += [(*place[id(piece)], part.numpy()) for piece, part in zip(pack, parts, strict=True)] * share
            reshard(self.model)
            return found

        found = sorted(chain.from_iterable(self.ranks.gather(within_memory(self, rows, work))), key=lambda each: each[:2])
        for i, parts in groupby(found, key=lambda each: each[0]):
            rows[i].values[key] = np.concatenate([part for _, _, part in parts])

    def publish(self, model: Backbone) -> None:
        """Gives the weights to a model that decodes, unless it is the trainer's own."""
        if model is not self.model:
            copy_whole_weights(self.model, model)
            model.spec = self.model.spec  # with the block size of the stage

    def state_dict(self) -> dict[str, Any]:
        """What there is besides the weights and the optimizer's tensors."""
        return {"optimizer_step": self.optimizer_step, "num_nonfinite_in_a_row": self.num_nonfinite_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer_step = state["optimizer_step"]
        self.num_nonfinite_in_a_row = state["num_nonfinite_in_a_row"]
