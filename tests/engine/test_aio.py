"""The engine in a thread, for the tasks of an event loop: the same traces, streams that can be closed, faults that are told."""

from __future__ import annotations

import asyncio

import pytest
import torch

from tests.conftest import random_prompts
from tests.engine.plain import assert_nothing_left, assert_same, variety
from unmask.diffusion.generate import generate
from unmask.engine import AsyncEngine, Engine, EngineFailedError
from unmask.errors import UnmaskError
from unmask.types import SamplingParams

LONG = SamplingParams(max_new_tokens=200, block_size=4, stop_token_ids=())


def test_tasks_get_the_traces_of_generate(model) -> None:
    prompts, params = random_prompts([i % 13 for i in range(30)]), variety(4, 30)
    want = generate(model, prompts, params)

    async def run() -> list:
        async with AsyncEngine(Engine(model, max_sequences=8)) as engine:
            return await asyncio.gather(*(engine.generate(p, s) for p, s in zip(prompts, params, strict=True)))

    assert_same(asyncio.run(run()), want)


def test_a_stream_has_every_token_and_step_once(model) -> None:
    params = SamplingParams(max_new_tokens=22, block_size=4, confidence_threshold=0.3)
    want = generate(model, [[5, 6, 7]], params)[0]

    async def run() -> None:
        async with AsyncEngine(Engine(model)) as engine:
            ids, steps = [], []
            async for news in engine.stream([5, 6, 7], params, reports_steps=True):
                ids += news.new_ids
                steps.append(news.unmasked.step)
            assert ids == want.response_ids
            assert steps == list(range(want.num_forwards))
            assert news.trace == want

    asyncio.run(run())


def test_what_is_closed_or_cancelled_leaves_nothing_behind(model) -> None:
    own = Engine(model, num_pages=200, page_size=4)

    async def run() -> None:
        async with AsyncEngine(own) as engine:
            stream = engine.stream([5, 6, 7], LONG)
            await anext(stream)
            await stream.aclose()
            tasks = [asyncio.create_task(engine.generate([i], LONG)) for i in range(5)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert engine.num_requests == 0
            assert (await engine.generate([8], LONG.model_copy(update={"max_new_tokens": 4}))).num_response_tokens == 4

    asyncio.run(run())
    assert_nothing_left(own)


def test_a_bad_request_is_refused_and_others_go_on(model) -> None:
    async def run() -> None:
        async with AsyncEngine(Engine(model, num_pages=20, page_size=4)) as engine:
            with pytest.raises(UnmaskError, match="outside the vocabulary"):
                await engine.generate([10**6])
            with pytest.raises(UnmaskError, match="need 51 pages"):
                await engine.submit([3], LONG)
            assert await engine.generate([3], SamplingParams(max_new_tokens=4))
        with pytest.raises(EngineFailedError, match="not running"):
            await engine.generate([3])

    asyncio.run(run())


def test_weights_change_between_requests_not_within(model) -> None:
    """What has begun ends with the old weights; what waits, and what comes while it does, gets the new ones."""
    other = {name: tensor * 1.1 for name, tensor in model.state_dict().items()}
    params = LONG.model_copy(update={"max_new_tokens": 40})
    old = [generate(model, [[5, 6, i]], params)[0] for i in range(3)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    async def run() -> list:
        async with AsyncEngine(Engine(model, max_sequences=2)) as engine:
            requests = [await engine.submit([5, 6, i], params) for i in range(3)]
            await anext(requests[0])
            assert await engine.update_weights(other, policy_version=7) == 7
            late = await engine.generate([5, 6, 2], params)
            traces = []
            for request in requests:
                traces += [news.trace async for news in request if news.trace]
            with pytest.raises(UnmaskError, match="is missing"):
                await engine.update_weights({})
            assert_same([late], traces[2:])
            return traces

    try:
        traces = asyncio.run(run())
        assert_same(traces[:2], old[:2])
        want = generate(model, [[5, 6, 2]], params)
        assert_same(traces[2:], want)
        assert [trace.policy_version for trace in traces] == [0, 0, 7]
        assert traces[2].canvas_ids != old[2].canvas_ids
    finally:
        model.load_state_dict(before)


def test_broken_weights_fail_the_requests_and_not_the_engine(model) -> None:
    async def run() -> None:
        async with AsyncEngine(Engine(model)) as engine:
            good = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            await engine.update_weights({name: torch.full_like(tensor, torch.inf) for name, tensor in good.items()})
            outcomes = await asyncio.gather(*(engine.generate([i, 4]) for i in range(3)), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [EngineFailedError] * 3
            assert "not finite" in str(outcomes[0])
            await engine.update_weights(good)
            assert (await engine.generate([4])).finish_reason in ("stop", "length")

    asyncio.run(run())


def test_updates_at_the_same_time_are_done_one_after_the_other(model) -> None:
    async def run() -> None:
        async with AsyncEngine(Engine(model)) as engine:
            good = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            updates = asyncio.gather(*(engine.update_weights(good) for _ in range(4)))
            assert await asyncio.wait_for(updates, 30) == [1, 2, 3, 4]

    asyncio.run(run())


def test_several_are_submitted_all_or_none(model) -> None:
    own = Engine(model, num_pages=200, page_size=4)

    async def run() -> None:
        async with AsyncEngine(own) as engine:
            with pytest.raises(UnmaskError, match="outside the vocabulary"):
                await engine.submit_all([([5], LONG), ([10**6], LONG), ([10**6], LONG)])
            assert engine.num_requests == 0
            requests = await engine.submit_all([([i], LONG.model_copy(update={"max_new_tokens": 4})) for i in range(3)])
            assert [[news.trace async for news in request][-1].prompt_ids for request in requests] == [[0], [1], [2]]

    asyncio.run(run())
    assert_nothing_left(own)


def test_a_defect_in_one_request_is_not_that_of_others(model, monkeypatch) -> None:
    own = Engine(model)
    add = own.add_request

    def broken(prompt_ids, *args, **more):
        if prompt_ids == [13]:
            raise MemoryError("no room")
        return add(prompt_ids, *args, **more)

    monkeypatch.setattr(own, "add_request", broken)

    async def run() -> None:
        async with AsyncEngine(own) as engine:
            other = asyncio.create_task(engine.generate([5], LONG))
            with pytest.raises(EngineFailedError, match="MemoryError: no room"):
                await engine.generate([13])
            assert (await other).num_response_tokens == 200

    asyncio.run(run())


def test_closing_tells_whoever_waits(model) -> None:
    async def run() -> None:
        engine = AsyncEngine(Engine(model))
        async with engine:
            task = asyncio.create_task(engine.generate([5], LONG))
            await asyncio.sleep(0.05)
        with pytest.raises(EngineFailedError, match="has ended"):
            await task

    asyncio.run(run())


def test_who_waits_for_news_of_a_cancelled_request_is_woken(model) -> None:
    async def run() -> None:
        async with AsyncEngine(Engine(model, max_sequences=1)) as engine:
            first, second = await engine.submit([5], LONG), await engine.submit([6], LONG)
            waiting = asyncio.create_task(anext(second))  # behind the first one
            await asyncio.sleep(0.01)
            second.cancel()
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(waiting, 10)
            first.cancel()

    asyncio.run(run())
