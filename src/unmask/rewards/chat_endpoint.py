"""Asking a model behind an OpenAI-compatible endpoint: politely (rate limit, retries), once (cache), and within a budget."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from unmask.errors import UnmaskError
from unmask.rewards.interface import RewardOptions


class EndpointOptions(RewardOptions):
    """How to reach the model, and how much of it to use."""

    base_url: str = Field(description="of the endpoint, for example http://localhost:8000/v1")
    model: str = Field(description="name of the model there")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key; where it is not set, none is sent"
    )
    temperature: float = Field(1.0, ge=0, le=2, description="of the judge's own drawing")
    max_answer_tokens: int = Field(1024, ge=1, description="limit on the length of its answer")
    timeout_s: float = Field(120.0, gt=0, description="for one answer")
    max_retries: int = Field(
        4, ge=0, le=20, description="after refusals (429), server errors and lost connections, with growing pauses"
    )
    max_concurrent: int = Field(16, ge=1, le=1024, description="requests at a time")
    requests_per_minute: float = Field(0.0, ge=0, description="0 = as many as it takes")
    max_requests: int = Field(0, ge=0, description="budget: the run stops before one more is sent; 0 = no limit")
    max_tokens: int = Field(
        0, ge=0, description="budget: the run stops when this many have been used, of prompts and answers; 0 = no limit"
    )
    cache: str = Field("", description="file of answers that are not asked for again; empty = ~/.cache/unmask/judge.sqlite")


class ChatEndpoint:
    """Use between `start` and `close`, in one event loop. `num_requests`, `num_tokens`: what was sent and used, without what
    the cache had."""

    def __init__(self, options: EndpointOptions):
        self.options = options
        self.num_requests = self.num_tokens = 0
        self._slots = asyncio.Semaphore(options.max_concurrent)
        self._next_at = 0.0
        self._client: Any = None
        self._cache: sqlite3.Connection | None = None

    async def start(self) -> None:
        """Raises `UnmaskError` where the client is not installed or the cache cannot be opened."""
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise UnmaskError(f"the reward `judge` needs the extra `judge`: pip install 'unmask[judge]' ({error})") from None
        o = self.options
        self._client = AsyncOpenAI(
            base_url=o.base_url, api_key=os.environ.get(o.api_key_env) or "none", timeout=o.timeout_s, max_retries=o.max_retries
        )  # fmt: skip
        self._cache = _open_cache(o.cache)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        if self._cache is not None:
            self._cache.close()
        self._client = self._cache = None

    async def ask(self, messages: Sequence[dict[str, str]], number: int) -> str:
        """The answer. number: tells several answers to the same question apart, in the cache and in the request's seed.

        Raises `UnmaskError` where there is none after all retries, and when the budget is used up.
        """
        assert self._client is not None
        assert self._cache is not None
        o = self.options
        request = {
            "model": o.model, "messages": list(messages), "temperature": o.temperature, "max_tokens": o.max_answer_tokens,
            "seed": number,
        }  # fmt: skip
        key = hashlib.sha256(json.dumps([o.base_url, request], sort_keys=True).encode()).hexdigest()
        async with self._slots:
            if (row := self._cache.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()) is not None:
                return str(row[0])
            await self._wait_for_turn()
            self._spend()
            answer = await self._send(request)
        self._cache.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))
        self._cache.commit()
        return answer

    async def _wait_for_turn(self) -> None:
        if self.options.requests_per_minute:
            now = time.monotonic()
            turn = max(now, self._next_at)
            self._next_at = turn + 60 / self.options.requests_per_minute
            await asyncio.sleep(turn - now)

    def _spend(self) -> None:
        for name, used, limit in (
            ("max_requests", self.num_requests, self.options.max_requests),
            ("max_tokens", self.num_tokens, self.options.max_tokens),
        ):
            if limit and used >= limit:
                raise UnmaskError(
                    f"the judge's budget is used up: reward.options.{name} is {limit}; what was answered is in the cache"
                )
        self.num_requests += 1

    async def _send(self, request: dict[str, Any]) -> str:
        from openai import OpenAIError

        try:
            reply = await self._client.chat.completions.create(**request)
        except OpenAIError as error:
            reason = " ".join(str(error).split())[:200]
            raise UnmaskError(f"{self.options.base_url}: no answer from the judge ({type(error).__name__}: {reason})") from None
        if reply.usage is not None:
            self.num_tokens += reply.usage.total_tokens
        if not reply.choices:
            raise UnmaskError(f"{self.options.base_url}: the judge's reply has no choices")
        return reply.choices[0].message.content or ""


def _open_cache(path: str) -> sqlite3.Connection:
    file = (
        Path(path).expanduser()
        if path
        else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unmask" / "judge.sqlite"
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        cache = sqlite3.connect(file, timeout=60, check_same_thread=False)
        cache.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        cache.commit()
    except (OSError, sqlite3.Error) as error:
        raise UnmaskError(f"{file}: cannot be used as the judge's cache ({error})") from None
    return cache
