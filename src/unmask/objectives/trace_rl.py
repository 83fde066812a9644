"""TraceRL: the policy objective on the states the sampler really saw. Paper section 4 (arXiv 2509.06949)."""

from __future__ import annotations

from pydantic import Field

from unmask.models import ModelSpec
from unmask.objectives.policy import PolicyObjective, PolicyOptions
from unmask.objectives.rows import TrainRow
from unmask.objectives.trace_views import trace_rows
from unmask.objectives.views import Grid
from unmask.types import Rollout


class TraceRL(PolicyObjective):
    """A view for each (shrunk) step of the trace, trained on the tokens that step unmasked."""

    class Options(PolicyOptions):
        trace_shrink: int = Field(
            1, ge=1, description="merge this many neighbouring steps (block models: of a block); 1 = exact (the paper's s)"
        )

    options: Options

    def __init__(self, options: Options, spec: ModelSpec):
        super().__init__(options, spec)
        self.has_sampler_views = options.trace_shrink == 1 and options.block_size is None

    def views(self, rollout: Rollout, draw: int) -> list[TrainRow]:
        grid = Grid.of(self.spec, self.options.block_size or rollout.trace.block_size)
        return trace_rows(rollout.trace, grid, self.spec.mask_token_id, trace_shrink=self.options.trace_shrink)
