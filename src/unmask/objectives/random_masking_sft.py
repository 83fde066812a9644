"""SFT with random masks over the whole response (LLaDA, arXiv 2502.09992; Dream). For every family.

Full attention: response tokens and the pads behind them are masked and seen by all. Block models: the same masks, every block
in a noisy copy given the clean blocks before it.
"""

from __future__ import annotations

from unmask.objectives.masked_sft import MaskedSft, MaskedSftOptions


class RandomMaskingSft(MaskedSft):
    """Masks of each response, with a rate for the whole of it unless `rate_per` says otherwise."""

    Options = MaskedSftOptions
