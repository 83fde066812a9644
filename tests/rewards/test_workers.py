"""Worker processes: time limits from the start of an item, and a clear result whatever happens to the process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from unmask.errors import UnmaskError
from unmask.rewards.workers import WorkerPool

HOME = "tests.rewards.test_workers"


def make(delay: float = 0.0):
    """What the workers run: acts of all kinds, by name."""
    time.sleep(delay)

    def act(item):
        name, *arguments = item
        return ACTS[name](*arguments)

    return act


def broken():
    raise UnmaskError("one line that says what is missing")


def crash():
    os._exit(3)


def hold_the_lock():
    sum(range(10**12))  # C code that looks at no signal


def log_and_die(file):
    with open(file, "a") as log:
        log.write("tried\n")
    os.kill(os.getpid(), signal.SIGKILL)


def swallow_everything():
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            pass


ACTS = {
    "echo": lambda value: value,
    "sleep": lambda seconds: time.sleep(seconds) or os.getpid(),
    "pid": os.getpid,
    "exit": sys.exit,
    "os._exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "log and die": log_and_die,
    "raise": lambda: [][1],
    "unpicklable": lambda: lambda: None,
    "huge": lambda: b"x" * 10**8,
    "print": lambda: (print("no result"), os.write(1, b"nor this"), "printed")[-1],
    "deep": lambda: (lambda f: f(f))(lambda f: f(f)),
    "lock": hold_the_lock,
    "swallow": swallow_everything,
}


def run(*items, num_workers: int = 1, time_limit: float = 5.0, factory: str = "make", arguments=()):
    """The results of the items, all asked for at once; and for how long each was waited."""

    async def timed(pool, item):
        start = time.monotonic()
        result = await pool.run(item, time_limit)
        return result, time.monotonic() - start

    async def main():
        pool = WorkerPool(HOME, factory, arguments, num_workers)
        await pool.start()
        try:
            return await asyncio.gather(*(timed(pool, item) for item in items))
        finally:
            await pool.close()

    results = asyncio.run(main())
    return [result for result, _ in results], [seconds for _, seconds in results]


def test_workers_are_other_processes_and_persist() -> None:
    (results, _) = run(*[("pid",)] * 6, ("echo", {"a": [1, None]}))
    pids = {result.value for result in results[:-1]}
    assert len(pids) <= 2  # one, and the one that stands by
    assert os.getpid() not in pids
    assert results[-1] == ({"a": [1, None]}, "", "")


@pytest.mark.parametrize(
    ("act", "failure", "error"),
    [
        (("exit", 0), "the worker process died (exit code 0)", ""),
        (("os._exit",), "the worker process died (exit code 3)", ""),
        (("kill",), "the worker process died (signal 9)", ""),
        (("raise",), "", "IndexError: list index out of range"),
        (("deep",), "", "RecursionError: maximum recursion depth exceeded"),
        (("unpicklable",), "", "the result cannot be sent"),
        (("huge",), "", "the result is too large: 100000"),
        (("sleep", 60), "took longer than 0.5 s", ""),
        (("swallow",), "took longer than 0.5 s", ""),
        (("lock",), "took longer than 0.5 s", ""),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_whatever_happens_is_said_and_the_pool_goes_on(act, failure, error) -> None:
    is_late = failure.startswith("took longer")
    (bad, good), (seconds, _) = run(act, ("echo", 1), time_limit=0.5 if is_late else 20.0)
    assert bad.value is None
    assert bad.failure == failure
    assert bad.error.startswith(error)
    assert bool(bad.error) == bool(error)
    assert good.value == 1
    assert seconds < 15  # on a busy machine; without a limit, a minute and more


def test_an_item_that_can_be_interrupted_does_not_cost_its_process() -> None:
    async def main():
        pool = WorkerPool(HOME, "make")
        await pool.start()
        while pool._idle.qsize() < 2:
            await asyncio.sleep(0.01)
        before = set(pool._workers)
        results = [await pool.run(("sleep", 60), 0.3) for _ in range(2)]
        after = set(pool._workers)
        await pool.close()
        return [result.failure for result in results], before == after

    assert asyncio.run(main()) == (["took longer than 0.3 s"] * 2, True)


def test_what_is_printed_is_no_result(capfd) -> None:
    ([result], _) = run(("print",))
    assert result.value == "printed"
    assert "nor this" not in capfd.readouterr().out


def test_items_do_not_pay_for_waiting_or_for_starting() -> None:
    """Five of 0.3 s for one worker and a limit of 0.6 s; a process that takes 0.8 s to be ready."""
    results, _ = run(*[("sleep", 0.3)] * 5, time_limit=0.6, arguments=(0.8,))
    assert [result.failure for result in results] == [""] * 5


def test_one_hangs_after_the_other_and_none_waits_for_a_new_process() -> None:
    """The next item is for the worker that stands by."""

    async def main():
        pool = WorkerPool(HOME, "make", (1.0,))
        await pool.start()
        while pool._idle.qsize() < 2:
            await asyncio.sleep(0.01)
        seconds = []
        for _ in range(2):
            start = time.monotonic()
            assert (await pool.run(("lock",), 0.5)).failure == "took longer than 0.5 s"
            seconds.append(time.monotonic() - start)
        await pool.close()
        return seconds

    assert max(asyncio.run(main())) < 1.5


def test_workers_run_at_the_same_time() -> None:
    start = time.monotonic()
    results, _ = run(*[("sleep", 1.0)] * 3, num_workers=3)
    assert len({result.value for result in results}) == 3
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
def test_disturbed_while_idle_and_while_at_work(number) -> None:
    """Neither costs an item: what a disturbed worker was at is done once more."""

    async def main():
        pool = WorkerPool(HOME, "make", (), 1)
        await pool.start()
        while pool._idle.qsize() < 2:
            await asyncio.sleep(0.01)
        for worker in pool._workers:
            os.kill(worker._process.pid, number)
        time.sleep(0.2)
        first = await pool.run(("echo", 1), 20.0)
        while pool._idle.qsize() < 2:
            await asyncio.sleep(0.01)
        at_work = asyncio.create_task(pool.run(("sleep", 1.5), 20.0))
        await asyncio.sleep(0.3)
        [busy] = [w for w in pool._workers if w not in pool._idle._queue]
        os.kill(busy._process.pid, number)
        start = time.monotonic()
        second = await at_work
        assert time.monotonic() - start < 10  # and not after the time limit
        assert second.value not in (None, busy._process.pid)
        assert busy._process.poll() == -signal.SIGKILL
        third = await pool.run(("echo", 3), 5.0)
        while pool._idle.qsize() < 2:
            await asyncio.sleep(0.01)
        processes = [worker._process for worker in pool._workers]
        await pool.close()
        return first, second, third, [process.poll() for process in processes]

    first, second, third, codes = asyncio.run(main())
    assert (first.value, second.failure, third.value) == (1, "", 3)
    assert codes == [-9, -9]


def test_what_ends_its_worker_by_a_signal_does_it_twice_at_most(tmp_path) -> None:
    result, _ = run(("log and die", str(tmp_path / "log")), ("echo", 1), time_limit=20.0)
    assert [each[:2] for each in result] == [(None, "the worker process died (signal 9)"), (1, "")]
    assert (tmp_path / "log").read_text() == "tried\n" * 2


def test_a_worker_that_is_killed_as_it_starts_is_started_again() -> None:
    async def main():
        pool = WorkerPool(HOME, "make", (0.5,))
        await pool.start()
        while len(pool._workers) < 2:
            await asyncio.sleep(0.01)
        [starting] = [worker for worker in pool._workers if worker not in pool._idle._queue]
        os.kill(starting._process.pid, signal.SIGKILL)
        while pool._idle.qsize() < 2:
            await asyncio.sleep(0.01)
        result = await pool.run(("echo", 1), 5.0)
        await pool.close()
        return result, starting in pool._workers

    assert asyncio.run(asyncio.wait_for(main(), 60)) == ((1, "", ""), False)


def test_a_cancelled_item_frees_its_place() -> None:
    async def main():
        pool = WorkerPool(HOME, "make")
        await pool.start()
        item = asyncio.create_task(pool.run(("sleep", 30), 60.0))
        await asyncio.sleep(0.2)
        item.cancel()
        result = await pool.run(("echo", 1), 5.0)
        await pool.close()
        return result

    assert asyncio.run(main()).value == 1


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("broken", "one line that says what is missing"),
        ("nothing", "AttributeError: module 'tests.rewards.test_workers' has no attribute 'nothing'"),
        ("crash", r"a worker process did not start \(exit code 3\)"),
    ],
)
def test_what_cannot_start_says_so_at_the_start(factory, message) -> None:
    with pytest.raises(UnmaskError, match=f"^{message}$"):
        run(factory=factory)


def test_scripts_need_no_guard(tmp_path) -> None:
    """A worker does not run the caller's main module again, be it a file or standard input."""
    code = "import unmask\nprint(unmask.verify_math('The answer is 3.', '3').correct)"
    (tmp_path / "script.py").write_text(code)
    for arguments, text in (([str(tmp_path / "script.py")], None), (["-"], code)):
        result = subprocess.run([sys.executable, *arguments], input=text, capture_output=True, text=True, check=False)
        assert (result.stdout, result.stderr, result.returncode) == ("True\n", "", 0)
