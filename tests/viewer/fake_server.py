"""A server as the live page knows it: it serves the page and streams scripted answers, as slowly as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from unmask.types import TraceRecord


class Gate:
    """A place in a script where the server waits until the test opens it."""

    def __init__(self) -> None:
        event = threading.Event()
        self.open, self.wait = event.set, lambda: event.wait(20)


@dataclass
class Reply:
    """`script`: chunks to send as events, texts to send as they are, seconds to wait, gates; then the connection ends."""

    script: list[Any] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def refuse(status: int, message: str, **headers: str) -> Reply:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    names = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, headers=names, body=json.dumps({"error": error}).encode())


DONE = "data: [DONE]\n\n"


def chunk(
    unmask: dict[str, Any] | None = None, content: str | None = None, finish_reason: str | None = None, **delta: str
) -> Any:
    choice = {"index": 0, "delta": delta if content is None else {"content": content}, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return {**head, "choices": [choice if unmask is None else {**choice, "unmask": unmask}]}


def start_chunk(record: TraceRecord, is_block_causal: bool = True, num_canvas_tokens: int | None = None) -> Any:
    start = {
        "prompt_token_ids": record.trace.prompt_ids,
        "prompt_tokens": record.prompt_pieces,
        "block_size": record.trace.block_size,
        "num_canvas_tokens": num_canvas_tokens or len(record.trace.canvas_ids),
        "is_block_causal": is_block_causal,
    }
    return chunk({"start": start}, role="assistant", content="")


def step_chunks(record: TraceRecord) -> list[Any]:
    """One chunk a denoising step; those without a token are there, too."""
    trace = record.trace
    return [
        chunk(
            {
                "step": step,
                "tokens": [
                    {
                        "position": i,
                        "token": record.canvas_pieces[i],
                        "token_id": trace.canvas_ids[i],
                        "confidence": trace.confidences[i],
                        "logprob": trace.logprobs[i],
                    }
                    for i, when in enumerate(trace.step_map)
                    if when == step
                ],
            }
        )
        for step in range(max(trace.step_map) + 1)
    ]


def end_chunks(record: TraceRecord) -> list[Any]:
    trace = record.trace
    unmask = {
        "num_forwards": trace.num_forwards,
        "tokens_per_forward": trace.tokens_per_forward,
        "seed": 1,
        "policy_version": 0,
    }
    usage = {"prompt_tokens": len(trace.prompt_ids), "completion_tokens": trace.num_response_tokens}
    return [
        chunk(content=record.response_text),
        chunk({**unmask, "trace": trace.to_dict()}, finish_reason=trace.finish_reason),
        {"choices": [], "usage": usage},
        DONE,
    ]


def answer(record: TraceRecord, **start: Any) -> Reply:
    """The whole answer, without a pause."""
    return Reply([start_chunk(record, **start), *step_chunks(record), *end_chunks(record)])


class FakeServer:
    """`page` is served at `/` (below a prefix: the page's requests are relative); `reply(body)` says what a question gets."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.reply: Callable[[dict[str, Any]], Reply] = lambda body: refuse(500, "no reply was scripted")
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.num_hung_up = 0  # the page left before the end
        self.url = ""


@contextmanager
def serve(page: str) -> Iterator[FakeServer]:
    fake = FakeServer(page)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None: ...

        def do_GET(self) -> None:
            content = fake.page.encode() if self.path == "/below/" else b""
            self.send_response(200 if content else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append((dict(self.headers), body))
            reply = fake.reply(body) if self.path == "/below/v1/chat/completions" else refuse(404, self.path)
            self.send_response(reply.status)
            for name, value in ({"Content-Type": "text/event-stream"} | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            try:
                for part in reply.script:
                    self._send(part)
            except (BrokenPipeError, ConnectionResetError):
                fake.num_hung_up += 1

        def _send(self, part: Any) -> None:
            if isinstance(part, Gate):
                part.wait()
            elif isinstance(part, float):
                threading.Event().wait(part)
            else:
                text = part if isinstance(part, str) else f"data: {json.dumps(part)}\n\n"
                self.wfile.write(text.encode())
                self.wfile.flush()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}/below/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
