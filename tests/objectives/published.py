"""The published training cases (shared/golden, kinds "rl", "sft" and "value") as our traces, rollouts and rows.

Everything is derived from a case's parameters and tensors, so that any folder of that layout is understood. The published code
has one row per round; ours has views. `PublishedCase.views` says which published row each target of
ours belongs to.

Where the published data are odd, they are given to our code as they are: rewards and step maps that slipped because a prompt
was dropped, rewards made up for padding. What cannot be said with our rows at all is in `LEFT_OUT`.

Shape suffixes: N published rows, L their prompt and response, J canvas positions (the padded response), K trained targets.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import GOLDEN
from tests.golden import golden_cases
from unmask.models import Decoder, ValueModel
from unmask.models.checkpoint import load_model
from unmask.objectives.rows import TrainRow
from unmask.objectives.trace_views import shrink_steps, trace_rows
from unmask.objectives.views import Grid, masked_rows
from unmask.types import Trace

SEES_LEFT_PADS = ("llada", "mmada")  # their training has no attention mask: left padding is prompt like any other

# What is left out, by rule: (family, whether a case is concerned, why).
LEFT_OUT = (
    (
        ("sdar", "dream"),
        lambda case: any(case["params"]["pad_id"] in item["prompt_ids"] for item in kept_items(case)),
        "hides prompt tokens that happen to be the pad token; ours has no hidden tokens within a sequence",
    ),
    (
        ("dream",),
        lambda case: any(item["response_ids"][0] == case["params"]["pad_id"] for item in kept_items(case)),
        "hides an unmasked first response token that is the pad token (<= start_pos); ours shows what was sampled",
    ),
)


def kept_items(case: dict) -> list[dict]:
    limit = case["params"]["training"]["max_prompt_len"]
    return [item for item in case["params"]["data"] if len(item["prompt_ids"]) <= limit]


def published_cases(stem: str) -> list[Any]:
    """A pytest parameter (folder, name of the case) for every case of every folder that has the file."""
    params = []
    for file in sorted(GOLDEN.glob(f"*/cases/{stem}.json")):
        content = json.loads(file.read_text())
        for case in content["cases"]:
            reasons = [why for families, concerns, why in LEFT_OUT if content["family"] in families and concerns(case)]
            marks = [pytest.mark.skip(reason=reasons[0])] if reasons else []
            folder = file.parents[1]
            params.append(pytest.param(folder, case["name"], marks=marks, id=f"{folder.name}-{case['name']}"))
    return params


@functools.cache
def cases_of(folder: Path, stem: str) -> dict[str, dict]:
    return {case["name"]: case for case in golden_cases(folder, stem)}


def load_published(folder: Path, head: Literal["vocabulary", "value"] = "vocabulary") -> Decoder | ValueModel:
    """The folder's model. Published embeddings give the pad token no gradient where the config names it."""
    model = load_model(folder, head=head)
    if model.spec.family not in SEES_LEFT_PADS:
        model.embed_tokens.padding_idx = model.config.get("pad_token_id")
    return model


@dataclass(slots=True)
class PublishedSequence:
    """One response. `rows`: its published rows, in order; `is_trained` [J]: what any of them trains.

    shrink: how many steps are still to be merged. shrunk_step [J]: the largest of the steps merged into one.
    """

    trace: Trace
    reward: float | list[float]
    rows: np.ndarray
    is_trained: np.ndarray
    shrink: int
    shrunk_step: np.ndarray


class PublishedCase:
    """A case with its sequences; the tensors keep their published names and shapes in `inputs` and `outputs`."""

    def __init__(self, case: dict, model: Decoder | ValueModel):
        self.params, self.training, self.expected = case["params"], case["params"]["training"], case["expected"]
        self.inputs, self.outputs = case["inputs"], case["outputs"]
        self.spec = model.spec
        self.is_block = self.spec.attention == "block_causal"
        self.is_trace = self.training["method"] in ("TraceRL", "trace")
        self.num_rows, self.start = self.expected["n_rows"], self.expected["start_pos"]
        self.p_mask_NL = self.outputs["p_mask"].bool().numpy()
        self.labels_NL = self.outputs["labels"].numpy()
        self.num_canvas = self.labels_NL.shape[1] - self.start
        self.block_size = self.training["block_size"] if self.is_block else self.num_canvas
        self.sequences = [self._sequence(i, item) for i, item in enumerate(kept_items(case))]
        assert sorted(n for s in self.sequences for n in s.rows) == list(range(self.num_rows))

    def _sequence(self, i: int, item: dict) -> PublishedSequence:
        """The i-th response that is kept; its reward and steps are the i-th of all (golden/README.md, 8.1)."""
        size, pad_id, prompt = self.num_canvas, self.params["pad_id"], item["prompt_ids"]
        data = self.params["data"][i]
        response = item["response_ids"][:size]
        canvas = response + [pad_id] * (size - len(response))
        padding = [pad_id] * (self.start - len(prompt))
        (rows,) = (self.labels_NL == np.array(padding + prompt + canvas)).all(1).nonzero()

        step, shrink = np.array(data.get("step_map") or range(size)), self.training.get("shrink", 1)
        if not self.is_block and len(step) > size:
            # Merged over the whole response, then cut; our rows merge what is there, so it is done before.
            step, shrink = shrink_steps(np.zeros_like(step), step, shrink), 1
        step = np.append(step, np.full(max(0, size - len(step)), step.max() + 1))[:size]
        block_J = np.arange(size) // self.block_size
        pair_J = shrink_steps(block_J, step, shrink)
        shrunk_P = np.zeros(size, dtype=np.int64)
        np.maximum.at(shrunk_P, pair_J, step)

        # Of the pads, the first `post_num` are trained: block models count them in each published row, that is among those
        # of the same round (the rank of a step in its block); full attention in the response. Either way a set of positions.
        first_B = np.full(size, size)
        np.minimum.at(first_B, block_J, pair_J)
        group_J = pair_J - first_B[block_J] if self.is_block else block_J
        is_pad_J = np.array(canvas) == pad_id
        rank_J = np.array([(is_pad_J & (group_J == group_J[j]))[:j].sum() for j in range(size)])
        post_num = self.training["post_num"]
        is_trained_J = ~is_pad_J | (rank_J < (size if post_num is None else post_num))

        seen_prompt = padding + prompt if self.spec.family in SEES_LEFT_PADS else prompt
        logprobs, zeros = [0.0] * size, [0.0] * size
        if (
            self.is_trace and "logp_old" in self.inputs
        ):  # the recorded old log-probabilities are what our sampler would have left in the trace
            for n, j in np.argwhere(self.p_mask_NL[rows, self.start :]):
                place = {"row": rows[n], "canvas_index": j}
                logprobs[j] = self.at_targets(self.inputs["logp_old"], place).item()
        trace = Trace(seen_prompt, canvas, step.tolist(), logprobs, zeros, size, self.block_size, 1, "length", seed=i)
        return PublishedSequence(trace, data.get("reward", 0.0), rows, is_trained_J, shrink, shrunk_P[pair_J])

    def views(self, i: int) -> list[TrainRow]:
        """Our rows of the i-th sequence, with "row" (the published one) and "old_logprobs" among their values.

        The published training counts blocks from the start of the response and fills nothing up.
        """
        sequence, trace = self.sequences[i], self.sequences[i].trace
        num_prompt = len(trace.prompt_ids)
        grid = Grid(self.block_size, start=num_prompt, is_filled=False) if self.is_block else Grid(None)
        mask_id = self.spec.mask_token_id
        is_target_VJ = self.p_mask_NL[sequence.rows, self.start :]
        if self.is_trace:
            rows = trace_rows(trace, grid, mask_id, trace_shrink=sequence.shrink, is_trained=sequence.is_trained)
        else:
            is_masked_VJ = self.outputs["noise_mask"].bool().numpy()[sequence.rows, -self.num_canvas :]
            masks = (np.pad(m, ((0, 0), (num_prompt, 0))) for m in (is_masked_VJ, is_target_VJ))
            rows = masked_rows(trace.prompt_ids, trace.canvas_ids, grid, mask_id, *masks)
        for row in rows:
            if self.is_trace:
                is_mine_VK = is_target_VJ[:, row.values["canvas_index"]]
                assert (is_mine_VK.sum(0) == 1).all(), "a token that no published row trains"
                row.values["row"] = sequence.rows[is_mine_VK.argmax(0)]
            else:
                row.values["row"] = sequence.rows[row.values["mask"]]
            if "logp_old" in self.inputs:
                row.values["old_logprobs"] = self.at_targets(self.inputs["logp_old"], row.values).numpy()
            self._assert_shows_what_was_shown(row, num_prompt)
        return rows

    def _assert_shows_what_was_shown(self, row: TrainRow, num_prompt: int) -> None:
        """Every token of the row is the published row's at its position, noisy ones that of the noised copy."""
        offset = self.start - num_prompt  # left padding that ours has not
        if not self.is_block:
            noisy_NL = self.outputs["noisy_input_ids"].numpy()
            assert (row.input_ids == noisy_NL[int(row.values["row"][0]), offset:]).all()
            return
        extended_NL = self.outputs["extended_input_ids"].numpy()
        row_of_copy = dict(zip(row.copy[row.target_column].tolist(), row.values["row"].tolist(), strict=True))
        row_of_copy[0] = next(iter(row_of_copy.values()))  # the clean tokens are those of any of its rows
        n = np.array([row_of_copy[copy] for copy in row.copy.tolist()])
        column = row.position + offset + np.where(row.copy > 0, self.num_canvas, 0)
        assert (row.input_ids == extended_NL[n, column]).all()

    def at_targets(self, table: Tensor, values: dict[str, Any]) -> Tensor:
        """A published table [N, L] at our targets [K]; shifted logits leave the first column out."""
        row, index = (torch.as_tensor(values[key]).long() for key in ("row", "canvas_index"))
        return table[row, self.start + index - (self.labels_NL.shape[1] - table.shape[1])]

    def assert_trains_the_same(self, values: dict[str, Tensor]) -> None:
        """The targets are those of the published rows, each once."""
        is_trained_NL = np.zeros_like(self.p_mask_NL, dtype=int)
        np.add.at(is_trained_NL, (values["row"].long().numpy(), self.start + values["canvas_index"].long().numpy()), 1)
        assert (is_trained_NL == self.p_mask_NL).all()
