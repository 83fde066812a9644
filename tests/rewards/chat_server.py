"""A local server that speaks the chat protocol, for tests of judges."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """`answer(question, seed)` makes the text; a number stands for an HTTP status, None for a lost connection, bytes for a
    whole reply. pause: seconds after each 100 bytes."""

    def __init__(self, answer, pause: float = 0.0):
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body | {"path": self.path, "key": self.headers["Authorization"]})
                    outer.times.append(time.monotonic())
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                said = answer(body["messages"][-1]["content"], body["seed"])
                time.sleep(0.01)
                with lock:
                    outer.at_once -= 1
                if said is None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}]
                usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
                reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}
                data = said if isinstance(said, bytes) else json.dumps(reply).encode()
                self.send_response(said if isinstance(said, int) else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Retry-After-Ms", "10")
                self.end_headers()
                with suppress(OSError):  # the client has left
                    for begin in range(0, len(data), 100):
                        self.wfile.write(data[begin : begin + 100])
                        time.sleep(pause)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> Server:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server.shutdown()
        self.server.server_close()
