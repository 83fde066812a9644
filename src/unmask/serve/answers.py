"""From traces to the objects of the API: whole answers, the chunks of a stream, usage."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

from unmask.data.chat import ChatTokenizer
from unmask.data.text_stream import cut_at_stop
from unmask.engine import StepUnmasked
from unmask.types import Trace


class Form:
    """The shape of one endpoint's answers. All objects of an answer share its id and the time it was begun."""

    prefix: str
    whole: str
    chunk: str

    def __init__(self, model: str, tokenizer: ChatTokenizer):
        self.tokenizer = tokenizer
        self.has_usage = False  # chunks say it: null but in the last
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def answer(self, usage: dict[str, Any], fingerprint: str) -> dict[str, Any]:
        """All but its choices. fingerprint: of the weights, which a stream does not know before its end."""
        return {**self._head, "object": self.whole, "system_fingerprint": fingerprint, "usage": usage}

    def event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        return {**self._head, "object": self.chunk, "choices": choices, **({"usage": usage} if self.has_usage else {})}

    def choice(self, index: int, text: str, finish_reason: str, logprobs: dict | None, extra: dict) -> dict[str, Any]:
        raise NotImplementedError

    def part(
        self, index: int, text: str | None, finish_reason: str | None = None, logprobs: dict | None = None,
        extra: dict | None = None, *, is_first: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """A choice of a chunk. text: None = no text."""
        raise NotImplementedError

    def logprobs(self, ids: Sequence[int], logprobs: Sequence[float], offset: int) -> dict[str, Any]:
        """offset: characters of the answer before these tokens."""
        raise NotImplementedError


class ChatForm(Form):
    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, text: str, finish_reason: str, logprobs: dict | None, extra: dict) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "finish_reason": finish_reason, "logprobs": logprobs, "unmask": extra}

    def part(
        self, index: int, text: str | None, finish_reason: str | None = None, logprobs: dict | None = None,
        extra: dict | None = None, *, is_first: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        delta = {"role": "assistant", "content": ""} if is_first else {} if text is None else {"content": text}
        part = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        return part if extra is None else {**part, "unmask": extra}

    def logprobs(self, ids: Sequence[int], logprobs: Sequence[float], offset: int) -> dict[str, Any]:
        content = [
            {"token": piece, "logprob": value, "bytes": _bytes(piece), "top_logprobs": []}
            for piece, value in zip(self.tokenizer.pieces(ids), logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}


class CompletionForm(Form):
    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, index: int, text: str, finish_reason: str, logprobs: dict | None, extra: dict) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": logprobs, "unmask": extra}

    def part(
        self, index: int, text: str | None, finish_reason: str | None = None, logprobs: dict | None = None,
        extra: dict | None = None, *, is_first: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        part = {"index": index, "text": text or "", "finish_reason": finish_reason, "logprobs": logprobs}
        return part if extra is None else {**part, "unmask": extra}

    def logprobs(self, ids: Sequence[int], logprobs: Sequence[float], offset: int) -> dict[str, Any]:
        pieces = self.tokenizer.pieces(ids)
        offsets = list(accumulate(map(len, pieces[:-1]), initial=offset)) if pieces else []
        return {"tokens": pieces, "token_logprobs": list(logprobs), "top_logprobs": None, "text_offset": offsets}


def answer_text(tokenizer: ChatTokenizer, trace: Trace) -> str:
    """Without special tokens, up to the first stop string."""
    text = tokenizer.decode(trace.response_ids)
    return text[: cut_at_stop(text, trace.settings["stop_strings"])]


def facts(trace: Trace, checkpoint: str, *, with_trace: bool) -> dict[str, Any]:
    """How an answer was decoded, and with which weights."""
    extra: dict[str, Any] = {
        "num_forwards": trace.num_forwards, "tokens_per_forward": trace.tokens_per_forward, "seed": trace.seed,
        "policy_version": trace.policy_version, "checkpoint": checkpoint,
    }  # fmt: skip
    # `Trace.to_dict` copies every number, which takes longer than to write them.
    return {**extra, "trace": {field.name: getattr(trace, field.name) for field in fields(trace)}} if with_trace else extra


def beginning(tokenizer: ChatTokenizer, prompt_ids: list[int], block_size: int, num_canvas: int, is_block_causal: bool) -> dict:
    """What somebody who draws the canvas needs before its first step. num_canvas: tokens it has at most."""
    return {
        "start": {
            "prompt_token_ids": prompt_ids, "prompt_tokens": tokenizer.pieces(prompt_ids), "block_size": block_size,
            "num_canvas_tokens": num_canvas, "is_block_causal": is_block_causal,
        }
    }  # fmt: skip


def step_event(tokenizer: ChatTokenizer, step: StepUnmasked) -> dict[str, Any]:
    """What one denoising step unmasked; positions count from the first token after the prompt."""
    pieces = tokenizer.pieces(step.ids)
    rows = zip(step.positions, pieces, step.ids, step.confidences, step.logprobs, strict=True)
    return {
        "step": step.step,
        "tokens": [
            {"position": position, "token": piece, "token_id": token, "confidence": confidence, "logprob": logprob}
            for position, piece, token, confidence, logprob in rows
        ],
    }


def usage(num_prompt_tokens: int, traces: Sequence[Trace]) -> dict[str, Any]:
    num_tokens, num_forwards = sum(t.num_response_tokens for t in traces), sum(t.num_forwards for t in traces)
    return {
        "prompt_tokens": num_prompt_tokens, "completion_tokens": num_tokens, "total_tokens": num_prompt_tokens + num_tokens,
        "num_forwards": num_forwards, "tokens_per_forward": num_tokens / max(1, num_forwards),
    }  # fmt: skip


def _bytes(piece: str) -> list[int] | None:
    """None for a part of a character, whose bytes the text does not tell."""
    return None if "\ufffd" in piece else list(piece.encode("utf-8", "replace"))
