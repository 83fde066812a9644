"""Ten thousand requests of all kinds, good, bad and broken off: nothing is left of them."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.serve.client import Client, head, read_answer
from tests.serve.running import Local, Served, wait_until

NUM = int(os.environ.get("UNMASK_SOAK", "10000"))
SHORT = {"max_tokens": 8}
STEPS = {"stream_unmask": True, "block_size": 8, "return_trace": True}
FEW = ("engine.num_pages=2000", "engine.page_size=4", "engine.max_sequences=16", "server.max_queue=64")


def one(client: Client, kind: int, rng: random.Random) -> str:
    """A request of some kind, and how it went."""
    prompt = "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(1, 40)))
    if kind == 0:
        return f"chat {client.chat(prompt, **SHORT).status}"
    if kind == 1:
        return f"stream {client.complete(prompt, stream=True, n=2, logprobs=0, unmask=STEPS, **SHORT).status}"
    if kind == 2:
        return f"stop {client.chat(prompt, stop=['a', 'b'], logprobs=True, seed=rng.randrange(99), **SHORT).status}"
    if kind == 3:
        return f"wrong {client.complete(prompt, temperature=-1).status}"
    if kind == 4:
        return f"no json {client.post('/v1/completions', b'{').status}"
    if kind == 5:
        return f"large {client.post('/v1/completions', b'x' * 1_100_000).status}"
    if kind == 6:  # a stream that is broken off
        stream = client.begin(max_tokens=4000, unmask={"ignore_eos": True, "stop_token_ids": []})
        stream.recv(rng.randint(1, 3000))
        stream.close()
        return "broken off"
    body = json.dumps({"prompt": prompt, "max_tokens": 2000}).encode()
    with client.connect() as connection:
        if kind == 7:  # an answer that nobody waits for
            connection.sendall(head("POST", "/v1/completions", len(body)) + body)
            return "left"
        if kind == 8:  # half a request
            connection.sendall((head("POST", "/v1/completions", len(body)) + body)[: rng.randint(1, 150)])
            return "half"
        connection.sendall(b"nonsense\r\n\r\n")
        return f"nonsense {read_answer(connection).status}"


def ask(client: Client, num: int, seed: int) -> Counter[str]:
    """From several threads; those that find no room are refused, which is a kind, too."""
    rng = random.Random(seed)
    jobs = [(rng.randrange(10), rng.randrange(2**32)) for _ in range(num)]
    with ThreadPoolExecutor(12) as pool:
        return Counter(pool.map(lambda job: one(client, job[0], random.Random(job[1])), jobs))


def state(served: Served) -> dict[str, tuple[int, int, float]]:
    """Threads, open files and megabytes of both processes."""
    processes = {"server": psutil.Process(served.process.pid), "engine": served.engine}
    return {name: (p.num_threads(), p.num_fds(), p.memory_info().rss / 2**20) for name, p in processes.items()}


@pytest.mark.slow
def test_ten_thousand_requests_leave_nothing(folders) -> None:
    with Served(folders["sdar"], *FEW) as served:
        ask(served.client, max(400, NUM // 5), 0)
        served.assert_idle()
        wait_until(lambda: state(served)["server"][1] < 40, "connections closed")
        before, seen = state(served), Counter[str]()
        for part in range(4):
            seen += ask(served.client, NUM // 4, part + 1)
            served.assert_idle()
            print(part, state(served), flush=True)
        wait_until(lambda: state(served)["server"][1] <= before["server"][1] + 2, "connections closed")
        after = state(served)
        print(before, after, dict(seen), sep="\n")
        for name, (threads, files, megabytes) in after.items():
            assert threads <= before[name][0] + 1
            assert files <= before[name][1] + 2
            assert megabytes <= before[name][2] + 12, (before, after)
        assert not [kind for kind in seen if " 5" in kind]
        assert not any("Traceback" in line for line in served.lines)


def test_some_hundred_leave_no_task_and_no_page(folders) -> None:
    """The same, looked at from within."""
    limits = {"num_pages": 2000, "page_size": 4, "max_sequences": 16, "server_max_queue": 64}
    with Local(folders["sdar"], **limits) as server:
        before = server.num_tasks
        seen = ask(server.client, 250, 1)
        assert len(seen) >= 10
        assert not [kind for kind in seen if " 5" in kind], seen
        server.assert_idle()
        wait_until(lambda: server.num_tasks == before, "no tasks")
        wait_until(lambda: not server.num_connections, "no connections")
        assert server.service.engine.num_requests == 0
        assert (server.service.admission.num_answers, dict(server.service.admission._of_key)) == (0, {})
        assert not server.engine.request_ids
        scheduler = server.engine.scheduler
        assert scheduler.pool.num_available == scheduler.pool.num_pages
        assert len(scheduler._slots) == scheduler.max_sequences
