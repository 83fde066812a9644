"""The one Trainer: rows and a loss in, one optimizer step out. It knows no objective and no sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from unmask.attention import get_backend
from unmask.config.training import OptimizerConfig
from unmask.dist import ALONE, Ranks, whole
from unmask.errors import UnmaskError
from unmask.models import ValueModel
from unmask.models.decoder import Backbone
from unmask.models.experts import expert_balance, expert_load, reset_expert_load
from unmask.models.flops import model_flops
from unmask.objectives.rows import RowBatch, TrainRow, collate, share_packs
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
        ranks: Ranks = ALONE,
    ):
        """device: where a model goes that is sharded; None = where it is. The rest as in `apply_techniques`."""
        apply_techniques(
            model, use_activation_checkpointing=use_activation_checkpointing, use_compile=use_compile, shard_size=shard_size,
            ranks=ranks, device=device, precision=precision,
        )  # fmt: skip
        self.is_sharded = is_sharded(model)
        self.model, self.config = model, config
        self.max_optimizer_steps = max_optimizer_steps
        self.max_tokens = max_tokens_per_micro_batch
        self.backend = get_backend(attention_backend, model.device)
        self.precision, self.ranks = precision, ranks
        self.optimizer = make_optimizer(model, config)
        self.optimizer_step = 0
        self.num_flops = self.num_own_tokens = 0  # of this rank's own packs since the start; tokens: those that were trained on

    def autocast(self) -> torch.autocast:
        """Matrix products in the run's precision; weights, norms, log-probabilities and optimizer stay float32."""
        return autocast(self.precision, self.model.device)

    def update(self, rows: Sequence[TrainRow], loss_fn: LossFn) -> dict[str, float]:
        """One optimizer step on the sum of the loss over all rows, which are the same on all ranks. Returns "loss",
        "grad_norm", "lr", "num_tokens" (that were forwarded), the sums, and of models with experts "expert_load_max" and
        "expert_load_min" (1 = every expert had an even share of the tokens).

        Raises `UnmaskError` (before the weights change) when the loss or gradient is not finite.
        """
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
        load = expert_load(self.model) if load is None else load
        if not self.is_sharded:
            self.ranks.sum_([p.grad for p in self.model.parameters() if p.grad is not None])
        totals = self._over_ranks(sums | {"num_tokens": num_tokens}, load)
        grad_norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm, foreach=True))
        if not (torch.isfinite(grad_norm) and math.isfinite(totals["loss"])):
            raise UnmaskError(
                f"optimizer step {self.optimizer_step}: loss {totals['loss']} or gradient {float(grad_norm)} is not "
                "finite; lower optimizer.lr or check the data; the last checkpoint is intact"
            )
        lr = learning_rate(self.config, self.optimizer_step, self.max_optimizer_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        totals["num_tokens"] = int(totals["num_tokens"])
        return totals | {"grad_norm": float(grad_norm), "lr": lr} | ({} if load is None else expert_balance(load))

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
        total = torch.zeros((), device=self.model.device)
        for pack, share in self._packs(rows):
            with self.autocast():
                total += share * loss_fn(self._collate(pack, share))[0]
        reshard(self.model)
        return self._over_ranks({"loss": total}, None)["loss"]

    @torch.no_grad()
    def set_values(self, key: str, rows: Sequence[TrainRow], compute: Callable[[RowBatch], Tensor]) -> None:
        """Sets values[key] of rows of at most `max_tokens_per_micro_batch` tokens: what `compute` says of their targets, a
        float [N] for each pack."""
        index = {id(row): i for i, row in enumerate(rows)}
        found: list[tuple[int, np.ndarray]] = []
        for pack, share in self._packs(rows):
            with self.autocast():
                value_N = compute(self._collate(pack, share))
            parts = value_N.float().cpu().split([len(row.target_ids) for row in pack])
            found += [(index[id(row)], part.numpy()) for row, part in zip(pack, parts, strict=True)] * share
        reshard(self.model)
        for i, values in chain.from_iterable(self.ranks.gather(found)):
            rows[i].values[key] = values

    def publish(self, model: Backbone) -> None:
        """Gives the weights to a model that decodes, unless it is the trainer's own."""
        if model is not self.model:
            copy_whole_weights(self.model, model)
            model.spec = self.model.spec  # with the block size of the stage

    def state_dict(self) -> dict[str, Any]:
        """What there is besides the weights and the optimizer's tensors."""
        return {"optimizer_step": self.optimizer_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer_step = state["optimizer_step"]
