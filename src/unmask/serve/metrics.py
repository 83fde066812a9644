"""What Prometheus is told. The one importer of prometheus_client."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from unmask.engine.worker import Snapshot

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS_PER_FORWARD = (0.5, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 32)


class Metrics:
    """One server's numbers, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("unmask_requests", "HTTP requests answered", ["route", "status"], registry=r)
        self.errors = Counter("unmask_errors", "answers with an error, and streams that ended with one", ["type"], registry=r)
        self.disconnects = Counter("unmask_disconnects", "requests whose client went away", registry=r)
        self.first_block = Histogram(
            "unmask_time_to_first_block_seconds", "from a request's arrival to its first committed tokens",
            buckets=_SECONDS, registry=r,
        )  # fmt: skip
        self.duration = Histogram(
            "unmask_request_seconds", "from a request's arrival to its whole answer", buckets=_SECONDS, registry=r
        )
        self.per_forward = Histogram(
            "unmask_tokens_per_forward", "of each answer", buckets=_TOKENS_PER_FORWARD, registry=r
        )  # fmt: skip
        self.prompt_tokens = Counter("unmask_prompt_tokens", "of requests that were accepted", registry=r)
        self.tokens = Counter("unmask_tokens", "committed tokens of answers", registry=r)
        self.under_way = Gauge("unmask_answers_under_way", "answers being decoded or waiting for it", registry=r)
        self.loop_lag = Gauge("unmask_event_loop_lag_seconds", "longest delay of the event loop in the last 10 s", registry=r)
        self._gauges = {
            name: Gauge(f"unmask_{name}", text, registry=r)
            for name, text in {
                "requests_waiting": "in the engine's queue",
                "requests_running": "decoded together now",
                "kv_pages_used": "pages of keys and values in use",
                "kv_pages": "pages of keys and values in all",
                "kv_cache_use": "share of the pages in use",
                "tokens_per_second": "committed tokens per second, over the last 10 s",
            }.items()
        }
        self._counts = {
            name: Gauge(f"unmask_engine_{name}", text, registry=r)
            for name, text in {
                "num_forwards": "forward passes of the whole batch so far",
                "num_tokens": "tokens forwarded so far",
                "num_shared_tokens": "prompt tokens whose keys and values were taken over so far",
                "num_preemptions": "requests that gave their pages back so far",
            }.items()
        }

    def render(self, snapshot: Snapshot, tokens_per_second: float, num_under_way: int) -> tuple[bytes, str]:
        """The text of `/metrics` and its content type."""
        self.under_way.set(num_under_way)
        values = {
            "requests_waiting": snapshot.num_waiting, "requests_running": snapshot.num_running,
            "kv_pages_used": snapshot.num_pages_used, "kv_pages": snapshot.num_pages,
            "kv_cache_use": snapshot.num_pages_used / snapshot.num_pages, "tokens_per_second": tokens_per_second,
        }  # fmt: skip
        for name, value in values.items():
            self._gauges[name].set(value)
        for name, gauge in self._counts.items():
            gauge.set(getattr(snapshot.stats, name))
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
