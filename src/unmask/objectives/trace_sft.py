"""SFT on recorded traces: the tokens each step unmasked are trained on what the step saw. TraceRL paper, section 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.models import ModelSpec
from unmask.objectives.cross_entropy import SftOptions, cross_entropy
from unmask.objectives.fused_head import TargetStats
from unmask.objectives.masked_sft import WINDOW
from unmask.objectives.rows import RowBatch, TrainRow, name_rows, set_weights
from unmask.objectives.trace_views import trace_rows
from unmask.objectives.views import Grid
from unmask.types import Demonstration, Trace

NEEDS_TRACES = "trace SFT needs them: use the source traces, or step_map"


class TraceSft:
    """The views of TraceRL, with cross-entropy. Needs demonstrations with a trace (source `traces`) or a
    `step_map`."""

    class Options(SftOptions):
        loss_normalization: Literal["token", "sequence", "constant", "trace_step"] = Field(  # type: ignore[assignment]
            "token", description="how tokens are averaged; trace_step = first those of a step, then the steps' sums"
        )
        block_size: int | None = Field(
            None, ge=1, description="block models: None = the one the trace was decoded with; full attention: a response with "
            f"`step_map` is filled up to a multiple of it, None = {WINDOW}",
        )  # fmt: skip
        trace_shrink: int = Field(1, ge=1, description="merge this many neighbouring steps")

    def __init__(self, options: Options, spec: ModelSpec, seed: int):
        self.options, self.spec = options, spec

    def rows(self, items: Sequence[Demonstration]) -> list[TrainRow]:
        """Rows of the demonstrations, with "weight" of every target; weights refer to all of `items`."""
        rows_of = []
        for item in items:
            trace = item.trace or self._given_order(item)
            grid = Grid.of(self.spec, self.options.block_size or trace.block_size)
            rows = trace_rows(trace, grid, self.spec.mask_token_id, trace_shrink=self.options.trace_shrink)
            rows_of.append(name_rows(rows, item.name))
        set_weights(rows_of, self.options.loss_normalization, self.options.constant_length, len(items))
        return [row for rows in rows_of for row in rows]

    def _given_order(self, item: Demonstration) -> Trace:
        """As if it had been decoded in the order that its row gives. What fills up the last block (with full attention the last
        window) was never unmasked."""
        if item.step_map is None:
            raise UnmaskError(f"example {item.name}: has no trace; {NEEDS_TRACES}")
        num = len(item.response_ids)
        is_block = self.spec.attention == "block_causal"
        size = self.options.block_size or (self.spec.block_size if is_block else WINDOW)
        num_more = -((len(item.prompt_ids) if is_block else 0) + num) % size
        canvas = [*item.response_ids, *[self.spec.mask_token_id] * num_more]
        steps, zeros = [*item.step_map, *[-1] * num_more], [0.0] * len(canvas)
        return Trace(item.prompt_ids, canvas, steps, zeros, zeros, num, size, 0, "stop")

    def loss(self, stats: TargetStats, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(stats, batch)
