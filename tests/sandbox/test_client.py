"""The sandbox itself: what is left when one of its processes, or its caller, ends before the others."""

from __future__ import annotations

import asyncio
import os
import pwd
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.sandbox.arena import ROOT, Arena, _is_readable, below, new_sandbox, processes, start
from unmask.errors import UnmaskError
from unmask.rewards.code_tests import CodeLimits, run_tests
from unmask.sandbox import client
from unmask.sandbox.client import Sandbox
from unmask.sandbox.jail import Bounds
from unmask.types import CodeTests

ISOLATIONS = pytest.mark.parametrize("isolation", ["namespaces", "process"])
SLEEPS = "import os, time\nos.fork()\nopen('x', 'w').close()\nwhile True: time.sleep(1)"


@pytest.fixture
def arena(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    with Arena(monkeypatch) as arena:
        yield arena


def server_of(sandbox: Sandbox) -> int:
    assert sandbox._connection is not None
    return sandbox._connection.server.pid


async def vanish(server: int) -> bool:
    """Whether all of the server's processes are gone, in a while."""
    for _ in range(300):
        if not below(server):
            return True
        await asyncio.sleep(0.01)
    return False


async def begin(sandbox: Sandbox) -> asyncio.Task[object]:
    """A program that runs: keeper, first, program and its child."""
    task: asyncio.Task[object] = asyncio.create_task(sandbox.run_script(SLEEPS, "", Bounds(time_s=60.0)))
    while len(below(server_of(sandbox))) < 4:
        await asyncio.sleep(0.01)
    return task


@ISOLATIONS
def test_a_job_is_cancelled(isolation: str, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        sandbox = new_sandbox(isolation, monkeypatch)
        await start(sandbox)
        try:
            task = await begin(sandbox)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await vanish(server_of(sandbox))
            assert (await sandbox.run_script("print(1)", "", Bounds())).stdout == b"1\n"
        finally:
            await sandbox.close()

    asyncio.run(go())
    assert not arena.changes()


@ISOLATIONS
def test_the_server_is_killed(isolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        sandbox = new_sandbox(isolation, monkeypatch)
        await start(sandbox)
        try:
            server = server_of(sandbox)
            waits = "import time; time.sleep(0.5); print(input())"
            tasks = [asyncio.create_task(sandbox.run_script(waits, str(i), Bounds(time_s=9.0))) for i in range(5)]
            while len(below(server)) < 3:
                await asyncio.sleep(0.01)
            os.kill(server, signal.SIGKILL)
            assert [ran.stdout for ran in await asyncio.gather(*tasks)] == [b"%d\n" % i for i in range(5)]
            assert server_of(sandbox) != server
            assert await vanish(server)
        finally:
            await sandbox.close()
        with pytest.raises(UnmaskError, match="not running"):
            await sandbox.run_script("print(1)", "", Bounds())

    asyncio.run(go())


def test_what_cannot_be_run_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be run, some more times; and where only this cannot, once."""
    monkeypatch.setattr(client, "_PAUSES_S", (0.0, 0.0, 0.0))

    async def go() -> None:
        async with Sandbox("auto", 2) as sandbox:
            assert sandbox._connection is not None
            hand_over, num_tried, failing = sandbox._connection.hand_over, 0, 0

            def fail(request: object, descriptors: Sequence[int]) -> bool:
                nonlocal num_tried
                num_tried += 1
                return num_tried > failing and hand_over(request, descriptors)

            monkeypatch.setattr(sandbox._connection, "hand_over", fail)
            for failing, expected in ((0, 1), (1, 3), (2, 3), (3, 5), (5, 7)):  # noqa: B007  # between two tries, our own program
                num_tried = 0
                assert (await sandbox.run_script("print(1)", "", Bounds())).stdout == b"1\n"
                assert num_tried == expected
            num_tried, failing = 0, 6
            with pytest.raises(UnmaskError, match="stopped running programs, even our own"):
                await sandbox.run_script("print(1)", "", Bounds())

            def refuse(request: object, descriptors: Sequence[int]) -> bool:
                return b"bad" not in os.pread(descriptors[-1], 9999, 0) and hand_over(request, descriptors)

            monkeypatch.setattr(sandbox._connection, "hand_over", refuse)
            tests = CodeTests(test_method="stdio", test_input=["1"], test_output=["1"])
            [result] = await run_tests(sandbox, "print('bad')", tests, CodeLimits())
            assert result == (False, "the sandbox could not run it")

    asyncio.run(go())


CALLER = """
import asyncio, sys
from unmask.sandbox.client import Sandbox
from unmask.sandbox.jail import Bounds
async def go():
    async with Sandbox(sys.argv[1]) as sandbox:
        print(sandbox._connection.server.pid, flush=True)
        print((await sandbox.run_script(sys.argv[2], "", Bounds(time_s=float(sys.argv[3])))).outcome, flush=True)
asyncio.run(go())
"""


def call(
    isolation: str, program: str, time_s: float, user: int | None = None, python: str = sys.executable
) -> subprocess.Popen[str]:
    command = [python, "-B", "-c", CALLER, isolation, program, str(time_s)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT / "src")}, cwd="/",
        user=user, group=user, extra_groups=None if user is None else [],
    )  # fmt: skip


def test_the_caller_is_killed() -> None:
    caller = call("namespaces", SLEEPS, 60)
    assert caller.stdout is not None
    with caller:
        if not (line := caller.stdout.readline()):
            pytest.skip("not here: no namespaces")
        server = int(line)
        while len(below(server)) < 4:
            time.sleep(0.01)
        caller.kill()
    assert asyncio.run(vanish(server))
    for _ in range(300):
        if server not in processes():
            return
        time.sleep(0.01)
    raise AssertionError("the server has not ended")


@ISOLATIONS
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_as_another_user(isolation: str) -> None:
    """Whose processes, unlike root's, have the same rights as the programs: a signal to all reaches none of them."""
    python = next((p for p in (sys.executable, "/usr/bin/python3") if Path(p).exists() and _is_readable(p)), None)
    if python is None or not _is_readable(str(ROOT / "src" / "unmask" / "sandbox")):
        pytest.skip("no interpreter, or no source, that another user than root can read")
    program = "import os\nfor to in (0, os.getppid(), 1):\n    try: os.kill(to, 19 if to else 9)\n    except OSError: pass"
    with call(isolation, program, 1.0, pwd.getpwnam("nobody").pw_uid, python) as caller:
        out, errors = caller.communicate(timeout=60)
    if "does not run here" in errors:
        pytest.skip(f"not here: {errors.splitlines()[-1]}")
    assert "exit_code=-9, stopped_for=''" in out, errors


def test_many_tests_and_few_descriptors() -> None:
    async def go() -> list[bool]:
        async with Sandbox("auto", 2) as sandbox:
            tests = CodeTests(test_method="stdio", test_input=["1"] * 150, test_output=["1"] * 150)
            return [result.passed for result in await run_tests(sandbox, "print(input())", tests, CodeLimits(time_s=5.0))]

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 64, before[1]))
    try:
        assert asyncio.run(go()) == [True] * 150
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_server_is_of_the_same_package(tmp_path: Path) -> None:
    """And not of one that is installed in another version."""
    other = tmp_path / "unmask"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the wrong one')")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import unmask.sandbox.connection as c; print(c.IMPORT)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    which = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {found.strip()}; print(unmask.__file__)"
    shown = subprocess.run([sys.executable, "-c", which], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == str(ROOT / "src" / "unmask" / "__init__.py")


@pytest.mark.slow
def test_the_server_does_not_grow() -> None:
    def memory(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()

    async def go() -> None:
        async with Sandbox("auto", 2) as sandbox:
            run = [sandbox.run_script("print(1)", "", Bounds(time_s=5.0)) for _ in range(500)]
            await asyncio.gather(*run)
            before, descriptors = memory(server_of(sandbox)), len(os.listdir(f"/proc/{server_of(sandbox)}/fd"))
            await asyncio.gather(*(sandbox.run_script("print(1)", "", Bounds(time_s=5.0)) for _ in range(2000)))
            assert memory(server_of(sandbox)) < before + (1 << 20)
            assert len(os.listdir(f"/proc/{server_of(sandbox)}/fd")) <= descriptors

    asyncio.run(go())
