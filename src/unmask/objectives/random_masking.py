"""Random masking: the policy objective on masks drawn at random, not on the trace. A baseline of the TraceRL paper.

Block models: a mask has a rate of its own for each block. Full attention: one for the response.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from unmask.objectives.masking import MaskRates, draw_blocks, draw_positions
from unmask.objectives.policy import PolicyObjective, PolicyOptions
from unmask.objectives.rows import TrainRow
from unmask.objectives.views import Grid, masked_rows
from unmask.types import Rollout


class RandomMasking(PolicyObjective):
    """Masks of response tokens, trained where they are. Old log-probabilities are recomputed on the same masks."""

    class Options(PolicyOptions, MaskRates):
        num_masks: int = Field(1, ge=1, description="masks drawn for each response, in every pass over it")

    options: Options

    def views(self, rollout: Rollout, draw: int) -> list[TrainRow]:
        trace = rollout.trace
        grid = Grid.of(self.spec, self.options.block_size or trace.block_size)
        position_S = np.arange(trace.num_tokens)
        canvas_S = position_S - len(trace.prompt_ids)
        # What lies behind the response is not known when it is decoded: like what was never unmasked, it is masked in every
        # view, and not trained.
        is_drawn_S = np.concatenate((np.ones(len(trace.prompt_ids)), np.array(trace.step_map) >= 0)).astype(bool)
        is_hidden_S = (canvas_S >= trace.num_response_tokens) | ~is_drawn_S
        is_masked_VS = self.masks(rollout, draw, grid.blocks(trace.num_tokens)[: trace.num_tokens])
        is_masked_VS = is_masked_VS & (canvas_S >= 0) & ~is_hidden_S
        return masked_rows(
            trace.prompt_ids, trace.canvas_ids, grid, self.spec.mask_token_id, is_masked_VS | is_hidden_S, is_masked_VS
        )

    def masks(self, rollout: Rollout, draw: int, block_S: np.ndarray) -> np.ndarray:
        """Bool [V, S]."""
        o = self.options
        start_S = np.searchsorted(block_S, block_S)
        keys = (rollout.trace.seed, draw)
        rate_VS = o.between(draw_blocks(keys, o.num_masks, start_S))
        return draw_positions(keys, o.num_masks, np.arange(len(block_S))) < rate_VS
