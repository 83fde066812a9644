"""Asking a model behind an OpenAI-compatible endpoint: politely (rate limit, retries), once (cache), and within a budget."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from pydantic import BaseModel, Field, ValidationError

from unmask.errors import UnmaskError
from unmask.rewards.interface import RewardOptions

_FIRST_PAUSE_S = 0.5  # before a retry, where the endpoint does not say how long; twice as long each time
_LONGEST_PAUSE_S = 60.0


class EndpointOptions(RewardOptions):
    """How to reach the model, and how much of it to use."""

    base_url: str = Field(description="of the endpoint, for example http://localhost:8000/v1")
    model: str = Field(description="name of the model there")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key; where it is not set, none is sent"
    )
    temperature: float = Field(1.0, ge=0, le=2, description="of the judge's own drawing")
    max_answer_tokens: int = Field(1024, ge=1, description="limit on the length of its answer")
    timeout_s: float = Field(120.0, gt=0, description="for one answer, from its request to its last byte")
    max_retries: int = Field(
        4,
        ge=0,
        le=20,
        description="after refusals (429), server errors, lost connections and replies that are none, with growing pauses",
    )
    max_concurrent: int = Field(16, ge=1, le=1024, description="requests at a time")
    requests_per_minute: float = Field(0.0, ge=0, description="retries included; 0 = as many as it takes")
    max_requests: int = Field(
        0, ge=0, description="budget, retries included: the run stops before one more is sent; 0 = no limit"
    )
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
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
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
            base_url=o.base_url, api_key=os.environ.get(o.api_key_env) or "none", timeout=o.timeout_s, max_retries=0
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
        # Of the same question, asked twice at a time, the second waits for the answer to the first.
        async with self._asking.setdefault(key, asyncio.Lock()), self._slots:
            if (row := self._cache.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()) is not None:
                return str(row[0])
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
        """The text of the reply. Retries are here and not the client's own, so that they count for the rate and the budget."""
        from openai import APIConnectionError, APIStatusError

        for number in range(self.options.max_retries + 1):
            await self._wait_for_turn()
            self._spend()
            pause = _FIRST_PAUSE_S * 2**number
            try:
                async with asyncio.timeout(self.options.timeout_s):  # the client's own is for each part of a reply
                    raw = await self._client.chat.completions.with_raw_response.create(**request)
                return self._read(raw.http_response.content)
            except APIStatusError as error:
                reason, is_over = _reason(error), error.status_code < 500 and error.status_code not in (408, 409, 429)
                pause = _asked_pause(error.response.headers, pause)
            except APIConnectionError as error:
                reason, is_over = _reason(error), False
            except TimeoutError:
                reason, is_over = f"none within {self.options.timeout_s:g} s", False
            except ValidationError as error:
                problem = error.errors()[0]
                reason, is_over = f"its reply is none: {'.'.join(map(str, problem['loc']))} {problem['msg']}", False
            if is_over:
                break
            if number < self.options.max_retries:
                await asyncio.sleep(min(pause, _LONGEST_PAUSE_S))
        raise UnmaskError(f"{self.options.base_url}: no answer from the judge ({reason})")

    def _read(self, content: bytes) -> str:
        """Raises `ValidationError` for what is no reply of the protocol."""
        reply = _Reply.model_validate_json(content)
        if reply.usage is not None:
            self.num_tokens += reply.usage.total_tokens
        elif self.options.max_tokens:
            raise UnmaskError(
                f"{self.options.base_url}: does not say how many tokens it used, so that reward.options.max_tokens cannot be "
                "kept; limit max_requests instead"
            )
        return reply.choices[0].message.content or ""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    total_tokens: int


class _Reply(BaseModel):
    """What is read of a reply."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _asked_pause(headers: Mapping[str, str], default: float) -> float:
    """Seconds that the endpoint asks for; the default where it does not, or by a date."""
    for name, seconds in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            return max(0.0, float(headers[name]) * seconds)
    return default


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
