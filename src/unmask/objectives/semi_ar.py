"""Semi-autoregressive SFT: each block is denoised given the clean blocks before it.

Block models: all of them in one row, as noisy copies (Arriola et al. 2025, block diffusion, arXiv 2503.09573). Full attention:
a row for each block, in which the blocks behind it are masked. TraceRL paper (arXiv 2509.06949), section 3.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from unmask.objectives.masked_sft import MaskedSft, MaskedSftOptions


class SemiAR(MaskedSft):
    """Masks the response tokens of each block at the block's own rate, unless `rate_per` says otherwise."""

    class Options(MaskedSftOptions):
        rate_per: Literal["sequence", "block"] = Field("block", description="what a rate is drawn for")

    def views(self, is_masked_VS: np.ndarray, rate_VS: np.ndarray, block_S: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.grid.block_size:
            return super().views(is_masked_VS, rate_VS, block_S)
        block_W1 = np.arange(block_S[-1] + 1)[:, None]  # those of the canvas; a prompt's tokens lie before block 0
        num_masks, num_blocks = len(is_masked_VS), len(block_W1)
        is_target_VWS = is_masked_VS[:, None] & (block_S == block_W1)
        is_masked_VWS = is_target_VWS | (block_S > block_W1)
        shape = (num_masks * num_blocks, len(block_S))
        return is_masked_VWS.reshape(shape), is_target_VWS.reshape(shape), np.repeat(rate_VS, num_blocks, axis=0)
