"""The one Trainer: rows and a loss in, one optimizer step out. It knows no objective and no sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from unmask.attention import get_backend
from unmask.config.sections import OptimizerConfig
from unmask.errors import UnmaskError
from unmask.models.decoder import Backbone
from unmask.models.experts import expert_balance, reset_expert_load
from unmask.objectives.rows import RowBatch, TrainRow, collate, pack_rows
from unmask.train.optimizer import learning_rate, make_optimizer
from unmask.train.techniques import apply_techniques

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
    ):
        apply_techniques(model, use_activation_checkpointing=use_activation_checkpointing)
        self.model, self.config = model, config
        self.max_optimizer_steps = max_optimizer_steps
        self.max_tokens = max_tokens_per_micro_batch
        self.backend = get_backend(attention_backend, model.device)
        self.precision = precision
        self.optimizer = make_optimizer(model, config)
        self.optimizer_step = 0

    def autocast(self) -> torch.autocast:
        """Matrix products in the run's precision; weights, norms, log-probabilities and optimizer stay float32."""
        return autocast(self.precision, self.model.device)

    def update(self, rows: Sequence[TrainRow], loss_fn: LossFn) -> dict[str, float]:
        """One optimizer step on the sum of the loss over all rows. Returns "loss", "grad_norm", "lr", "num_tokens" (that were
        forwarded), the sums, and of models with experts "expert_load_max" and "expert_load_min" (1 = every expert had an even
        share of the tokens).

        Raises `UnmaskError` (before the weights change) when the loss or gradient is not finite.
        """
        sums: dict[str, Tensor] = {}
        num_tokens = 0
        reset_expert_load(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()  # for the dropout of adapters
        for pack in pack_rows(rows, self.max_tokens):
            batch = collate(pack, self.model.device)
            with self.autocast():
                loss, more = loss_fn(batch)
            loss.backward()
            num_tokens += batch.input_ids_BL.numel()
            for key, value in (("loss", loss.detach()), *more.items()):
                sums[key] = sums[key] + value if key in sums else value
        self.model.eval()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm, foreach=True)
        if not (torch.isfinite(grad_norm) and torch.isfinite(sums["loss"])):
            raise UnmaskError(
                f"optimizer step {self.optimizer_step}: loss {float(sums['loss'])} or gradient {float(grad_norm)} is not "
                "finite; lower optimizer.lr or check the data; the last checkpoint is intact"
            )
        lr = learning_rate(self.config, self.optimizer_step, self.max_optimizer_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        stats = {key: float(value) for key, value in sums.items()}
        stats |= {"grad_norm": float(grad_norm), "lr": lr, "num_tokens": num_tokens}
        return {**stats, **expert_balance(self.model)}

    @torch.no_grad()
    def measure(self, rows: Sequence[TrainRow], loss_fn: LossFn) -> float:
        """The loss over all rows, without a step."""
        total = torch.zeros((), device=self.model.device)
        for pack in pack_rows(rows, self.max_tokens):
            with self.autocast():
                total += loss_fn(collate(pack, self.model.device))[0]
        return float(total)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "optimizer_step": self.optimizer_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer_step = state["optimizer_step"]
