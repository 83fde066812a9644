"""Open-loop load on `unmask serve`: latency against throughput, with the engine's own ceiling beside.

Requests arrive as a Poisson process, whether earlier ones are answered or not. Prompts and answers have the lengths of GSM8K's
training rows in Qwen's tokens, where these are at hand, or log-normal ones of the same mean and spread. The model has random
weights and does not stop before its limit, so that every request costs what it says. The ceiling is the engine alone, in a
process of its own, with all requests there from the beginning; "all at once" is the same through the server, every answer
streamed to a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from padding import SHARED, drawn_items, real_items

from unmask import Engine, SamplingParams, load_model
from unmask.data.chat import ChatTokenizer
from unmask.models.checkpoint import new_model, save_model

WORDS = [f"w{i} " for i in range(500)]
BAR, LAG_BAR = 0.9, 0.05


@dataclass
class Ask:
    content: str
    num_prompt: int
    num_tokens: int
    seed: int


@dataclass
class Told:
    """Seconds from sending to the first text and to the end; what was wrong, if anything was."""

    first_s: float = math.nan
    total_s: float = math.nan
    num_tokens: int = 0
    problem: str = ""


def lengths_of_rows(num: int) -> np.ndarray:
    """[num, 2]: tokens of prompts (in the chat template) and answers."""
    rows, tokenizer = SHARED / "gsm8k" / "train_head1000.jsonl", SHARED / "tokenizers" / "qwen2.5"
    items = real_items(rows, tokenizer, num) if rows.exists() and tokenizer.exists() else drawn_items(num)
    return np.array([(len(item.prompt_ids), len(item.response_ids)) for item in items])


def make_asks(num: int) -> list[Ask]:
    lengths, rng = lengths_of_rows(num), np.random.default_rng(0)
    asks = []
    for i, (prompt, answer) in enumerate(lengths.tolist()):
        content = "".join(WORDS[j] for j in rng.integers(0, len(WORDS), max(1, prompt - 2)))
        asks.append(Ask(content, prompt, answer, i))
    return asks


def make_model(folder: Path, size: argparse.Namespace) -> None:
    tokenizer = ChatTokenizer.tiny(["0", *WORDS])
    tokenizer.save(folder / "tokenizer")
    model = new_model(
        "sdar/tiny", 0, vocab_size=size.vocab, hidden_size=size.hidden, intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers, num_attention_heads=size.hidden // 64, num_key_value_heads=max(1, size.hidden // 128),
        head_dim=64, block_size=size.block, max_position_embeddings=4096, **tokenizer.special_ids,
    )  # fmt: skip
    save_model(model, folder / "model", tokenizer_from=folder / "tokenizer")
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters, blocks of {size.block}")


def body_of(ask: Ask, threshold: float) -> dict:
    return {
        "messages": [{"role": "user", "content": ask.content}], "max_tokens": ask.num_tokens, "seed": ask.seed, "stream": True,
        "stream_options": {"include_usage": True}, "unmask": {"confidence_threshold": threshold, "ignore_eos": True},
    }  # fmt: skip


def offline(model: str, num_sequences: int, threshold: float, asks: list[Ask]) -> float:
    """Tokens per second of the engine alone."""
    tokenizer = ChatTokenizer.load(model)
    engine = Engine(load_model(model), max_sequences=num_sequences)
    from unmask.types import Example, Message

    prompts = [tokenizer.prompt_ids(Example(id="0", messages=(Message(role="user", content=a.content),))) for a in asks]
    params = [
        SamplingParams(max_new_tokens=a.num_tokens, seed=a.seed, confidence_threshold=threshold, ignore_eos=True) for a in asks
    ]
    engine.generate(prompts[:8], params[:8])
    engine.update_weights()
    start = time.perf_counter()
    traces = engine.generate(prompts, params)
    return sum(t.num_response_tokens for t in traces) / (time.perf_counter() - start)


async def ask_server(port: int, body: bytes) -> Told:
    told, start = Told(), time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close"
        writer.write(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        status = int((await reader.readline()).split()[1])
        async for line in reader:
            if math.isnan(told.first_s) and b'"content":"w' in line:
                told.first_s = time.perf_counter() - start
            if b'"completion_tokens":' in line:
                told.num_tokens = int(re.search(rb'"completion_tokens":(\d+)', line)[1])
            if b"[DONE]" in line:
                told.total_s = time.perf_counter() - start
        writer.close()
        if status != 200 or math.isnan(told.total_s):
            told.problem = f"status {status}"
    except OSError as error:
        told.problem = type(error).__name__
    return told


async def load(port: int, asks: list[Ask], threshold: float, rate: float) -> tuple[list[Told], float]:
    """All answers, and the seconds until the last one. rate: requests per second; infinite = all at once."""
    bodies = [json.dumps(body_of(a, threshold)).encode() for a in asks]
    rng, tasks, start = np.random.default_rng(1), [], time.perf_counter()
    due = 0.0
    for body in bodies:
        if math.isfinite(rate):
            due += rng.exponential(1 / rate)
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask_server(port, body)))
    told = await asyncio.gather(*tasks)
    return told, time.perf_counter() - start


async def get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text


def start_server(model: Path, args: argparse.Namespace) -> tuple[subprocess.Popen, int]:
    command = [
        sys.executable, "-m", "unmask", "serve", str(model), "--port", "0", f"engine.max_sequences={args.sequences}",
        f"server.max_queue={args.requests}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"serving .* at http://[^:]*:(\d+)", line):
            return process, int(found[1])
    raise SystemExit("the server did not start")


def percentiles(values: list[float]) -> str:
    return " ".join(f"{np.percentile(values, q):7.2f}" for q in (50, 90, 99)) if values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=128, help="of each level of load")
    parser.add_argument("--sequences", type=int, default=64, help="decoded together (engine.max_sequences)")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--loads", type=float, nargs="*", default=[0.25, 0.5, 0.75, 0.9], help="shares of the ceiling")
    parser.add_argument("--offline", help=argparse.SUPPRESS)
    args = parser.parse_args()
    asks = make_asks(args.requests)
    if args.offline:
        print(offline(args.offline, args.sequences, args.threshold, asks))
        return
    with tempfile.TemporaryDirectory() as scratch:
        make_model(Path(scratch), args)
        run(Path(scratch) / "model", args, asks)


def run(model: Path, args: argparse.Namespace, asks: list[Ask]) -> None:
    again = [sys.executable, __file__, *sys.argv[1:], "--offline", str(model)]
    ceiling = float(subprocess.run(again, check=True, capture_output=True, text=True).stdout)
    mean = sum(a.num_tokens for a in asks) / len(asks)
    print(f"{args.requests} requests, {mean:.0f} tokens in the mean; {args.sequences} decoded together; {os.cpu_count()} cores")
    print(f"engine alone: {ceiling:.0f} tokens/s")
    print(
        f"{'load':>12} {'tokens/s':>9} {'of engine':>9}   first text, s (50 90 99 %)   whole answer, s (50 90 99 %)   loop, ms"
    )
    process, port = start_server(model, args)
    try:
        asyncio.run(load(port, asks[:8], args.threshold, math.inf))  # warm-up
        for share in [*args.loads, math.inf]:
            told, seconds = asyncio.run(load(port, asks, args.threshold, share * ceiling / mean))
            if problems := [t.problem for t in told if t.problem]:
                raise SystemExit(f"{len(problems)} requests failed: {problems[0]}")
            speed = sum(t.num_tokens for t in told) / seconds
            lag = float(re.search(r"(?m)^unmask_event_loop_lag_seconds (\S+)", asyncio.run(get(port, "/metrics")))[1])
            name = f"{share:.0%}" if math.isfinite(share) else "all at once"
            first, whole = percentiles([t.first_s for t in told]), percentiles([t.total_s for t in told])
            print(f"{name:>12} {speed:9.0f} {speed / ceiling:9.2f}   {first}      {whole}       {lag * 1e3:6.1f}", flush=True)
        print(f"at saturation {speed / ceiling:.2f} of the engine's tokens/s (bar: {BAR})")
        print(f"event loop late by {lag:.3f} s (bar: {LAG_BAR})")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


if __name__ == "__main__":
    main()
