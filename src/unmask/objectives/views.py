"""Views of a sequence: some of its tokens masked, some of those to be predicted. How they become training rows.

Block models: a view is one block as a noisy copy, and all views of a sequence share its clean tokens in one row.
Full attention: a view is the whole sequence, and a row of its own.

Shape suffixes: S positions of the sequence, C views, T positions of a view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.attention import CLEAN
from unmask.models import ModelSpec
from unmask.objectives.rows import TrainRow


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the blocks of a sequence lie: block k begins at position start + k * block_size, for k below 0, too.

    Every sampler here has start 0: blocks lie on absolute positions, and the prompt's tail heads the first denoised one.
    block_size: None = full attention, the whole sequence is one block.
    is_filled: the last block is filled up with mask tokens, as a sampler would see it.
    """

    block_size: int | None
    start: int = 0
    is_filled: bool = True

    @classmethod
    def of(cls, spec: ModelSpec, block_size: int | None = None) -> Grid:
        """The model's, or with another size of blocks."""
        return cls((block_size or spec.block_size) if spec.attention == "block_causal" else None)

    def blocks(self, num_tokens: int) -> np.ndarray:
        """Block [S] of each position, counted from 0; S = num_tokens, or up to the end of the last block."""
        if self.block_size is None:
            return np.zeros(num_tokens, dtype=np.int64)
        if self.is_filled:
            num_tokens += (self.start - num_tokens) % self.block_size
        block_S = (np.arange(num_tokens) - self.start) // self.block_size
        return block_S - block_S[:1]


def view_positions(block_S: np.ndarray, block_C: np.ndarray) -> np.ndarray:
    """Positions [C, T] of these blocks; -1 where a block is shorter than the others."""
    first_C, end_C = (np.searchsorted(block_S, block_C, side=side) for side in ("left", "right"))
    position_CT = first_C[:, None] + np.arange((end_C - first_C).max(initial=0))
    return np.where(position_CT < end_C[:, None], position_CT, -1)


def make_rows(
    token_ids_S: np.ndarray, block_S: np.ndarray, num_prompt: int, position_CT: np.ndarray, noisy_ids_CT: np.ndarray,
    is_target_CT: np.ndarray, *, is_full: bool,
) -> list[TrainRow]:  # fmt: skip
    """Rows of one sequence: one with all views (blocks, ascending), or with full attention one for each.

    Values, per target: "canvas_index" (position after the prompt) and "view" (its index in C).
    """
    if is_full:
        every = np.arange(len(token_ids_S))
        clean = np.full_like(every, CLEAN)
        rows = []
        for index, (ids_T, is_target_T) in enumerate(zip(noisy_ids_CT, is_target_CT, strict=True)):
            column = is_target_T.nonzero()[0]
            values = {"canvas_index": column - num_prompt, "view": np.full_like(column, index)}
            rows.append(TrainRow(ids_T, every, block_S, clean, column, token_ids_S[column], values))
        return rows
    if not len(position_CT):
        return []
    is_there_CT = position_CT >= 0
    view_CT = np.broadcast_to(np.arange(len(position_CT))[:, None], position_CT.shape)
    noisy_position, noisy_ids, view, is_target = (a[is_there_CT] for a in (position_CT, noisy_ids_CT, view_CT, is_target_CT))
    # Clean tokens are seen by later blocks only: those from the last noisy block on would be seen by nobody.
    num_clean = int(position_CT[-1, 0])
    response_block = block_S[num_prompt] if num_prompt < len(block_S) else block_S[-1] + 1
    target = is_target.nonzero()[0]
    row = TrainRow(
        input_ids=np.concatenate((token_ids_S[:num_clean], noisy_ids)),
        position=np.concatenate((np.arange(num_clean), noisy_position)),
        block=np.concatenate((block_S[:num_clean], block_S[noisy_position])),
        copy=np.concatenate((np.full(num_clean, CLEAN), view + 1)),
        target_column=num_clean + target,
        target_ids=token_ids_S[noisy_position[target]],
        values={"canvas_index": noisy_position[target] - num_prompt, "view": view[target]},
        num_shared=min(num_clean, int(np.searchsorted(block_S, response_block))),
    )
    return [row]


def masked_rows(
    prompt_ids: list[int],
    canvas_ids: list[int],
    grid: Grid,
    mask_token_id: int,
    is_masked_VS: np.ndarray,
    is_target_VS: np.ndarray,
) -> list[TrainRow]:
    """Rows for given masks over prompt and canvas, several of them (V). What has no target becomes no view.

    Values, per target: those of `make_rows`, and "mask" (its index in V).
    """
    token_ids_S, block_S = grid_tokens(prompt_ids, canvas_ids, grid, mask_token_id)
    num_beyond = len(block_S) - is_masked_VS.shape[1]
    is_masked_VS, is_target_VS = (np.pad(a, ((0, 0), (0, num_beyond))) for a in (is_masked_VS, is_target_VS & is_masked_VS))
    is_masked_VS[:, len(block_S) - num_beyond :] = True
    mask_V, position_S = is_target_VS.nonzero()
    block_C, mask_C = np.unique(np.stack((block_S[position_S], mask_V)), axis=1)
    position_CT = view_positions(block_S, block_C)
    place = (mask_C[:, None], np.maximum(position_CT, 0))
    noisy_ids_CT = np.where(is_masked_VS[place], mask_token_id, token_ids_S[place[1]])
    is_full = grid.block_size is None
    rows = make_rows(token_ids_S, block_S, len(prompt_ids), position_CT, noisy_ids_CT, is_target_VS[place], is_full=is_full)
    for row in rows:
        row.values["mask"] = mask_C[row.values["view"]]
    return rows


def grid_tokens(prompt_ids: list[int], canvas_ids: list[int], grid: Grid, mask_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [S] of prompt and canvas, filled up as the grid says, and the block of each."""
    block_S = grid.blocks(len(prompt_ids) + len(canvas_ids))
    num_beyond = len(block_S) - len(prompt_ids) - len(canvas_ids)
    return np.array([*prompt_ids, *canvas_ids, *[mask_token_id] * num_beyond], dtype=np.int64), block_S
