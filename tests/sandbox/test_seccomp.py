"""The filter of system calls, carried out by a small interpreter: what it refuses, on both machines."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from unmask.sandbox import seccomp

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000
OWN = 4711
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
ALL = {**seccomp.REFUSED, **seccomp.OWN_ONLY, **seccomp.METADATA, "clone": seccomp._CLONE, "clone3": seccomp._CLONE3,
       "tkill": seccomp._TKILL, "socketpair": seccomp._SOCKETPAIR, "mmap": seccomp._MMAP, "fcntl": seccomp._FCNTL,
       "ioctl": seccomp._IOCTL}  # fmt: skip


def decide(machine: str, number: int, *args: int, own_pid: int | None = None, arch: int | None = None) -> int:
    """What the kernel would do. As it does, this stops at a jump out of the program."""
    program = seccomp.build(machine, own_pid)
    data = {0: number, 4: seccomp._ARCHITECTURE[machine] if arch is None else arch}
    data |= {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate([*args, *[0] * 6][:6])}
    at = accumulator = 0
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        match code:
            case 0x20:
                accumulator = data[k]
            case 0x54:
                accumulator &= k
            case 0x15:
                at += if_true if accumulator == k else if_false
            case 0x35:
                at += if_true if accumulator >= k else if_false
            case 0x45:
                at += if_true if accumulator & k else if_false
            case 0x06:
                return k
            case _:
                raise ValueError(code)


def number_of(name: str, machine: str) -> int:
    return ALL[name][seccomp.MACHINES.index(machine)] or -1


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_what_is_refused(machine: str) -> None:
    for name in seccomp.REFUSED:
        assert decide(machine, number_of(name, machine)) == EPERM, name
    assert decide(machine, number_of("clone3", machine)) == ENOSYS
    assert decide(machine, 41, arch=0x40000003) == KILL
    assert decide(machine, 0x40000000 | 1) == EPERM
    others = set(range(480)) - {numbers[seccomp.MACHINES.index(machine)] for numbers in ALL.values()}
    assert {decide(machine, number, own_pid=own) for number in others for own in (None, OWN)} == {ALLOW}


@pytest.mark.parametrize("machine", seccomp.MACHINES)
@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("clone", [(0x11,), (0x3D0F00,), (0x4111,)], [(0x10000011,), (0x20000,), (0x40000000,), (0x80,)]),
        ("socketpair", [(1, 1), (1, 0x80801), (1, 5)], [(1, 2), (1, 3), (1, 0x80802), (2, 1), (16, 1), (30, 5)]),
        ("mmap", [(0, 1, 3, 0x22), (0, 1, 3, 0x02), (0, 1, 3, 0x01)], [(0, 1, 3, 0x21), (0, 1, 3, 0x23), (0, 1, 3, 0x8021)]),
        ("fcntl", [(0, 1), (0, 1030)], [(0, 8), (0, 15)]),
        ("ioctl", [(0, 0x5401), (0, 0x5413)], [(0, 0x5412), (0, 0x8901), (0, 0x8902)]),
    ],
)
def test_arguments(machine: str, name: str, allowed: list[tuple[int, ...]], refused: list[tuple[int, ...]]) -> None:
    number = number_of(name, machine)
    for own in (None, OWN):
        assert {decide(machine, number, *args, own_pid=own) for args in allowed} == {ALLOW}
        assert {decide(machine, number, *args, own_pid=own) for args in refused} == {EPERM}


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_without_namespaces_there_is_more(machine: str) -> None:
    for name in seccomp.OWN_ONLY:
        number = number_of(name, machine)
        assert {decide(machine, number, pid, own_pid=OWN) for pid in (0, OWN)} == {ALLOW}
        assert {decide(machine, number, pid, own_pid=OWN) for pid in (1, -1, -OWN, OWN + 1)} == {EPERM}
        assert decide(machine, number, 1) == ALLOW
    for name in ("tkill", *(name for name in seccomp.METADATA if number_of(name, machine) >= 0)):
        assert decide(machine, number_of(name, machine), own_pid=OWN) == EPERM
        assert decide(machine, number_of(name, machine)) == ALLOW


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_numbers_are_the_kernels(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"no kernel headers: {header}")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())}
    known |= {"umount2": known.get("umount2", -1)}
    for name, numbers in ALL.items():
        number = numbers[seccomp.MACHINES.index(machine)]
        if name in known and number is not None:
            assert number == known[name], name
        elif number is None:
            assert name not in known, name
    assert sum(name in known for name in ALL) > 50


def test_an_unknown_machine() -> None:
    with pytest.raises(OSError, match="no table of system calls for riscv64"):
        seccomp.build("riscv64", None)
