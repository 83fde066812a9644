"""A filter of system calls: no sockets, no other process's memory, no new namespaces or mounts.

Namespaces hide what these calls could reach; where the kernel grants none (in many containers) the filter is what is left.
"""

from __future__ import annotations

import ctypes
import errno
import os

from unmask.sandbox import kernel

# Refused with EPERM: name -> number on (x86_64, aarch64). `socketpair` stays: it connects a process with itself.
REFUSED = {
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432),
    "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "process_madvise": (440, 440), "msgget": (68, 186),
    "semget": (64, 190), "shmget": (29, 194), "mq_open": (240, 180), "sched_setscheduler": (144, 119),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "personality": (135, 92), "acct": (163, 89),
}  # fmt: skip
# Allowed for the process itself only: the first argument is 0, its id, or (kill) its own group. `tgkill` and `tkill` too.
OWN_ONLY = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_NEW_NAMESPACES = 0x7E020080  # user, pid, net, ipc, uts, cgroup, mount, time
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

MACHINES = tuple(_ARCHITECTURE)

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_ANY, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT_0 = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x50000, 0x80000000


def build(machine: str, own_pid: int | None) -> list[tuple[int, int, int, int]]:
    """BPF instructions (code, jump if true, jump if false, k). own_pid: signals to others are refused; None = they are not.

    Raises `OSError` for a machine whose numbers are not known.
    """
    if machine not in _ARCHITECTURE:
        raise OSError(f"seccomp: no table of system calls for {machine}")
    column = MACHINES.index(machine)
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    program = [(_LOAD, 0, 0, _ARCH), (_JUMP_EQ, 1, 0, _ARCHITECTURE[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    program += [(_JUMP_GE, 0, 1, 0x40000000), refuse]  # the x32 numbering of the same calls
    for numbers in REFUSED.values():
        program += [(_JUMP_EQ, 0, 1, numbers[column]), refuse]
    # Flags are out of a filter's sight in clone3: told that it does not exist, the C library uses clone.
    program += [(_JUMP_EQ, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    program += [(_JUMP_EQ, 0, 4, _CLONE[column]), (_LOAD, 0, 0, _ARGUMENT_0), (_JUMP_ANY, 0, 1, _NEW_NAMESPACES), refuse]
    program += [(_RETURN, 0, 0, _ALLOW)]
    if own_pid is not None:
        for numbers in OWN_ONLY.values():
            program += [(_JUMP_EQ, 0, 5, numbers[column]), (_LOAD, 0, 0, _ARGUMENT_0)]
            program += [(_JUMP_EQ, 2, 0, 0), (_JUMP_EQ, 1, 0, own_pid), refuse, (_RETURN, 0, 0, _ALLOW)]
        program += [(_JUMP_EQ, 0, 1, (200, 130)[column]), refuse]  # tkill names a thread of anyone
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def install(*, own_signals_only: bool) -> None:
    """For this process and all it starts, for good. Raises `OSError`. `PR_SET_NO_NEW_PRIVS` has been set."""
    instructions = build(kernel.machine, os.getpid() if own_signals_only else None)

    class Instruction(ctypes.Structure):
        _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction)))

    array = (Instruction * len(instructions))(*(Instruction(*values) for values in instructions))
    program = Program(len(instructions), array)
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.addressof(program))
