"""One job: a program, and where there is test code, a process of its own for that. Started, watched, and ended with all
that belongs to it. A keeper knows neither program nor tests; it passes descriptors on.

    keeper -- first -- program            "first" waits for the program and for processes that it leaves behind. With
          \\-- first -- test code           namespaces it is process 1 of its own, and all others end when it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import NoReturn

from unmask.sandbox import folders, jail, kernel, roles, view
from unmask.sandbox.jail import Bounds
from unmask.sandbox.processes import Usage, end_all, measure, own_memory, program_waited_s

SETUP_S = 30.0  # until a program starts to run; more is a defect of the sandbox, or a machine that stands still
INTERVAL_S = 0.02  # between two looks at time and memory
_LONGEST_WAIT_S = 2.0  # for a processor, in one go
FOLDER_BYTES = "FOLDER_BYTES"  # a word of `Place.command` that stands for the size of a job's folder
_NAMESPACES = kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC


@dataclass(frozen=True, slots=True)
class Place:
    """What the server found out about the machine.

    proc: descriptor of /proc, which programs do not have; -1 = there is none. user: where the server is root, whom programs run
    as. is_own_user: nobody else does. command: words before those of a cold start (bubblewrap's).
    """

    isolation: str
    proc: int
    readable: list[str]
    server_pid: int
    user: int | None
    is_own_user: bool
    command: list[str]


@dataclass(slots=True)
class Outcome:
    """What became of a job.

    exit_code: of the program; negative = the signal that ended it; None = it was ended from here. stopped_for: "", "time",
    "memory", "output", "processes", or "setup": it never began to run. missing: protections that the system does not grant.
    """

    exit_code: int | None = None
    stopped_for: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_mb: float = 0.0
    missing: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Member:
    """A process of the job, with its descendants. pid: of its "first"; news: what that and the program's set-up report."""

    pid: int
    news: int
    started_at: float | None = None  # of the monotonic clock
    ended_at: float | None = None
    waited_s: float = 0.0  # for a processor, and not for other processes of its own
    last_waited_s: float | None = 0.0  # what `Usage.waited_s` was
    exit_code: int | None = None
    missing: list[str] = field(default_factory=list)
    rest: bytes = b""

    def read_news(self) -> None:
        data = os.read(self.news, 65536)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for message in map(json.loads, lines):
            if (total_s := message.pop("total_waited_s", None)) is not None and self.last_waited_s is not None:
                self.add_wait(total_s)
            for name, value in message.items():
                setattr(self, name, value)
        if not data and self.ended_at is None:
            self.ended_at = time.monotonic()

    def add_wait(self, total_s: float | None) -> None:
        if total_s is not None:
            self.waited_s += max(0.0, total_s - (total_s if self.last_waited_s is None else self.last_waited_s))
        self.last_waited_s = total_s


def keep(place: Place, bounds: Bounds, status: int, members: list[tuple[str, list[int]]], folder: str) -> NoReturn:
    """Runs the members of a job, each the name of a role and its descriptors; the job is over when the last of them is.

    Writes the outcome to `status`; when nobody reads there any more, the job is ended. folder: for the programs' files, where
    they do not get a file system of their own.
    """
    started: list[Member] = []
    is_other_user = False  # than the server's: one whom nobody else is
    outcome = Outcome(stopped_for="setup")
    try:
        os.setsid()
        if place.user is not None:
            if folder:
                os.chown(folder, place.user, place.user)  # it lies in a shared place, and is its owner's to remove
            os.setgroups([])
            os.setresgid(place.user, place.user, place.user)
            os.setresuid(place.user, place.user, place.user)
            is_other_user = place.is_own_user
        with contextlib.suppress(OSError):
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGTERM, _end)  # with the server a keeper ends, too, but not before its job has ended
        kernel.end_with_parent(signal.SIGTERM, place.server_pid)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        memory = own_memory(place.proc)
        for role, descriptors in members:
            started.append(_start(place, bounds, role, descriptors, folder, memory[0]))
        kernel.become_hidden()
        stdout = members[0][1][1]
        for fd in {fd for _, descriptors in members for fd in descriptors} - {stdout}:
            os.close(fd)  # sockets among them: who waits at one end is told when the other process has ended
        outcome = _watch(place, bounds, started, status, stdout, memory[1])
    except Exception as error:  # the caller is told that it was not set up; this is for whoever looks into it
        print(f"sandbox: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_all(place.proc, [member.pid for member in started], is_last_user=is_other_user)
        outcome.missing = sorted({what for member in started for what in member.missing})
        with contextlib.suppress(OSError):
            os.write(status, json.dumps(asdict(outcome)).encode())
        os.close(status)
        if folder:
            folders.remove(folder)  # which takes its time where a program has made very many files
        os._exit(0)


def _end(*_: object) -> NoReturn:
    raise InterruptedError("the server has ended")


def _start(place: Place, bounds: Bounds, role: str, descriptors: list[int], folder: str, memory: int) -> Member:
    news, report = os.pipe()
    is_own = place.isolation == "namespaces"
    user, group, keeper = os.geteuid(), os.getegid(), os.getpid()
    if is_own:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else the maps belong to root
    pid = kernel.clone(_NAMESPACES) if is_own else os.fork()
    if pid:
        os.close(report)
        return Member(pid, news)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(news)
        if is_own:
            _enter_namespaces(place, report, user, group, bounds)
        else:
            folder = folder and os.path.join(folder, role)
            with contextlib.suppress(OSError):
                kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
            kernel.end_with_parent(signal.SIGKILL, keeper)
        first = os.getpid()
        child = os.fork()
        if child:
            _be_first(child, report, place.proc)
        os.setsid()  # a signal to its group does not come here
        if not is_own:
            kernel.end_with_parent(signal.SIGKILL, first)
        if folder:
            os.mkdir(folder, 0o700)  # test code's files are not the program's
        os.chdir(view.FOLDER if is_own else folder or "/")
        jail.keep_descriptors([*descriptors, report])
        if place.command:
            size = str(bounds.file_mb << 20)
            command = [size if word == FOLDER_BYTES else word for word in place.command]
            os.execv(command[0], [*command, role, str(len(descriptors)), json.dumps(asdict(bounds))])
        has_own_count = is_own or place.is_own_user
        writable = [folder, *view.DEVICES]
        roles.begin(role, len(descriptors), bounds, place.isolation, place.readable, writable, memory, has_own_count)
    except Exception as error:  # of the set-up: what a program raises does not come this far
        print(f"sandbox: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def _enter_namespaces(place: Place, report: int, user: int, group: int, bounds: Bounds) -> None:
    """Of the first process in them: a user and an empty folder of its own."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=place.proc)
        os.write(fd, text.encode())
        os.close(fd)
    kernel.become_hidden()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(report, 0)
    if poll.poll(0):
        os._exit(1)  # the keeper ended before that
    kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    options = f"size={bounds.file_mb}m,mode=700,nr_inodes=10000"
    kernel.mount("tmpfs", view.FOLDER, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)


def _be_first(child: int, report: int, proc: int) -> NoReturn:
    jail.keep_descriptors([report, proc] if proc >= 0 else [report])
    proc = 1 if proc >= 0 else -1
    kernel.become_hidden()
    with contextlib.suppress(OSError):
        kernel.drop_capabilities()
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        if ended.si_pid == child:
            news = {"ended_at": time.monotonic(), "total_waited_s": program_waited_s(proc)}
            news["exit_code"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.write(0, json.dumps(news).encode() + b"\n")
            os._exit(0)
        os.waitpid(ended.si_pid, 0)


def _watch(place: Place, bounds: Bounds, members: list[Member], status: int, stdout: int, memory: int) -> Outcome:
    outcome = Outcome()
    poll = select.poll()
    poll.register(status, 0)  # an error there: nobody reads any more
    for member in members:
        poll.register(member.news, select.POLLIN)
    by_news = {member.news: member for member in members}
    begin, is_running = time.monotonic(), False
    spent: dict[int, float] = {}  # processor time of each process when it was last seen
    while True:
        for fd, _ in poll.poll(INTERVAL_S * 1000):
            if fd == status:
                return outcome
            by_news[fd].read_news()
            if by_news[fd].ended_at is not None:
                poll.unregister(fd)
        now = time.monotonic()
        if not is_running:
            starts = [member.started_at for member in members if member.started_at is not None]
            if len(starts) < len(members):
                if now - begin > SETUP_S or any(m.ended_at is not None and m.started_at is None for m in members):
                    outcome.stopped_for = "setup"
                    return outcome
                continue
            begin, is_running = max(starts), True
        end = members[-1].ended_at
        usage = measure(place.proc, [member.pid for member in members], memory)
        outcome.wall_s = max(0.0, (now if end is None else end) - begin)
        outcome.exit_code = members[0].exit_code
        spent |= usage.own_cpu_s  # a parent that ignores its children's ends is not charged for them
        outcome.cpu_s = max(outcome.cpu_s, usage.cpu_s, sum(spent.values()))
        for member, total_s in zip(members, usage.waited_s, strict=True):
            if member.ended_at is None:
                member.add_wait(total_s)
        outcome.memory_mb = max(outcome.memory_mb, usage.memory / 2**20)
        waited_s = sum(member.waited_s for member in members)
        outcome.stopped_for = _exceeded(bounds, outcome, usage, waited_s, end is not None)
        if not outcome.stopped_for and os.fstat(stdout).st_size > bounds.output_mb << 20:
            outcome.stopped_for = "output"
        if outcome.stopped_for or end is not None:
            return outcome


def _exceeded(bounds: Bounds, outcome: Outcome, usage: Usage, waited_s: float, has_ended: bool) -> str:
    own_s = outcome.wall_s - waited_s
    # What waits for a processor right now is not in `waited_s` yet.
    is_late = own_s > bounds.time_s + (0.0 if usage.is_idle or has_ended else _LONGEST_WAIT_S)
    if is_late or outcome.cpu_s > bounds.time_s or outcome.wall_s > bounds.hard_time_s:
        return "time"
    if outcome.memory_mb > bounds.memory_mb:
        return "memory"
    return "processes" if usage.num > bounds.num_processes + 1 else ""  # + 1: test code is a process of the job, too
