"""Recorded traces as demonstrations: lines of `traces.jsonl`, as `unmask eval --output` and `unmask generate` write them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from unmask.data.digests import hash_examples
from unmask.data.rows import NoRowsError
from unmask.errors import UnmaskError
from unmask.files import read_jsonl
from unmask.models import ModelSpec
from unmask.types import Example, Message, TraceRecord


class TraceSource:
    """Responses that were decoded, with the steps at which their tokens were unmasked. Token ids are used as they are.

    Records without a prompt's text get none; they are for training, where ids are all that is needed.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        path: str = Field(description="file of the training split")
        held_out_path: str = Field("", description="file of the held-out split; needed for evaluation")
        min_reward: float | None = Field(
            None, description="records with a smaller reward (or none) are left out; None = all are in"
        )
        drops_cut: bool = Field(True, description="responses cut at the length limit are left out")
        max_per_prompt: int | None = Field(None, ge=1, description="so many of an id, the first ones; None = all that are left")

    vocabulary: tuple[str, ...] | None = None
    dataset_hash = property(hash_examples)

    def __init__(self, options: Options, split: Literal["train", "held_out"], seed: int):
        path = options.path if split == "train" else options.held_out_path
        if not path:
            raise NoRowsError("source.options.held_out_path is missing; evaluation needs it")
        self.files = [Path(path)]
        records = [(where, TraceRecord.from_dict(row, where)) for where, row in read_jsonl(Path(path))]
        limit, num_of = options.max_per_prompt or len(records), Counter[str]()
        self._where, kept = [], []
        for where, record in records:
            if self._is_kept(record, options) and num_of[record.id] < limit:
                num_of[record.id] += 1
                self._where.append(where)
                kept.append(record)
        if not kept:
            raise UnmaskError(f"{path}: none of its {len(records)} traces is left; see min_reward and drops_cut")
        self._examples = [
            Example(
                id=f"{r.id}/{r.member}" if r.member else r.id, messages=(Message(role="user", content=r.prompt_text),),
                response=r.response_text, answer=r.answer, trace=r.trace,
            )
            for r in kept
        ]  # fmt: skip

    @staticmethod
    def _is_kept(record: TraceRecord, options: Options) -> bool:
        if max(record.trace.step_map[: record.trace.num_response_tokens], default=-1) < 0:
            return False  # nothing was ever unmasked
        if options.min_reward is not None and (record.reward is None or record.reward < options.min_reward):
            return False
        return not (options.drops_cut and record.trace.finish_reason == "length")

    def check_model(self, spec: ModelSpec, block_size: int | None = None) -> None:
        """Raises `UnmaskError` for a trace that such a model cannot be trained on.

        block_size: of the trained views of a block model; None = that of each trace.
        """
        for where, example in zip(self._where, self._examples, strict=True):
            trace = example.trace
            assert trace is not None
            if (largest := max(trace.prompt_ids + trace.canvas_ids)) >= spec.vocab_size:
                raise UnmaskError(f"{where}: token id {largest}, but the model's vocabulary has {spec.vocab_size} tokens")
            has_blocks = spec.attention == "block_causal" and block_size in (None, trace.block_size)
            if has_blocks and trace.num_tokens % trace.block_size:
                num = trace.num_tokens
                raise UnmaskError(f"{where}: prompt and canvas have {num} tokens, not whole blocks of {trace.block_size}")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]
