"""A filter of system calls: no sockets, no other process's memory, no memory that no process is charged for, no objects that
live outside of processes and files, no watching of files, no new namespaces or mounts.

Namespaces hide what these calls could reach; where the kernel grants none (in many containers) the filter is what is left.
"""

from __future__ import annotations

import ctypes
import errno
import os

from unmask.sandbox import kernel

# Refused with EPERM: name -> number on (x86_64, aarch64).
REFUSED = {
    "socket": (41, 198), "bind": (49, 200), "connect": (42, 203), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432),
    "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "process_madvise": (440, 440), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193),
    "semtimedop": (220, 192), "semctl": (66, 191), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "mq_open": (240, 180), "mq_unlink": (241, 181), "inotify_add_watch": (254, 27), "fanotify_init": (300, 262),
    "sched_setscheduler": (144, 119),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "personality": (135, 92), "acct": (163, 89),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "sched_setattr": (314, 274), "sched_setparam": (142, 118), "setpriority": (141, 140), "ioprio_set": (251, 30),
}  # fmt: skip
# Allowed for the process itself only: the first argument is 0, its id, or (kill) its own group. `tgkill` and `tkill` too.
OWN_ONLY = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261), "sched_setaffinity": (203, 122)}
# Refused where programs may run as a user who owns files: Landlock keeps them from a file's content, not from its mode.
METADATA: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466), "file_setattr": (469, 469),
}  # fmt: skip
_CLONE, _CLONE3, _TKILL = (56, 220), (435, 435), (200, 130)
_SOCKETPAIR, _MMAP, _FCNTL, _IOCTL = (53, 199), (9, 222), (72, 25), (16, 29)
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_TYPE = 1, 1, 5, 0xF
_SHARED_ANONYMOUS = 0x21
_SET_OWNER = (8, 15)  # F_SETOWN, F_SETOWN_EX
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_SOCKET_OWNER = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP
_NEW_NAMESPACES = 0x7E020080  # user, pid, net, ipc, uts, cgroup, mount, time
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

MACHINES = tuple(_ARCHITECTURE)

_LOAD, _AND, _JUMP_EQ, _JUMP_GE, _JUMP_ANY, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, (16, 24, 32, 40)  # offsets in struct seccomp_data, of an argument's lower half
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x50000, 0x80000000


def build(machine: str, own_pid: int | None) -> list[tuple[int, int, int, int]]:
    """BPF instructions (code, jump if true, jump if false, k). own_pid: there are no namespaces: signals to others than this
    process are refused, and changes of a file's mode, owner and times.

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
    allow = (_RETURN, 0, 0, _ALLOW)
    first, second, _, fourth = ((_LOAD, 0, 0, offset) for offset in _ARGUMENTS)
    rules: list[tuple[tuple[int | None, int | None], list[tuple[int, int, int, int]]]]
    rules = [(_CLONE, [first, (_JUMP_ANY, 0, 1, _NEW_NAMESPACES), refuse, allow])]
    # A pair of streams connects a process with itself. One of datagrams can send to any other socket.
    is_stream = [second, (_AND, 0, 0, _SOCK_TYPE), (_JUMP_EQ, 2, 0, _SOCK_STREAM), (_JUMP_EQ, 1, 0, _SOCK_SEQPACKET), refuse]
    rules += [(_SOCKETPAIR, [first, (_JUMP_EQ, 1, 0, _AF_UNIX), refuse, *is_stream, allow])]
    # Such memory is nobody's own once it is mapped and no more touched.
    rules += [(_MMAP, [fourth, (_AND, 0, 0, _SHARED_ANONYMOUS), (_JUMP_EQ, 0, 1, _SHARED_ANONYMOUS), refuse, allow])]
    # Signals to whom a descriptor is said to belong; input of a terminal.
    for numbers, commands in ((_FCNTL, _SET_OWNER), (_IOCTL, _TERMINAL_INPUT + _SOCKET_OWNER)):
        rules += [(numbers, [second, *(line for k in commands for line in ((_JUMP_EQ, 0, 1, k), refuse)), allow])]
    if own_pid is not None:
        own = [first, (_JUMP_EQ, 2, 0, 0), (_JUMP_EQ, 1, 0, own_pid), refuse, allow]
        rules += [(numbers, own) for numbers in OWN_ONLY.values()]
        rules += [(numbers, [refuse]) for numbers in (_TKILL, *METADATA.values())]  # tkill names a thread of anyone
    for either, lines in rules:
        if (number := either[column]) is not None:
            program += [(_JUMP_EQ, 0, len(lines), number), *lines]
    return [*program, allow]


def install(*, has_namespaces: bool) -> None:
    """For this process and all it starts, for good. Raises `OSError`. `PR_SET_NO_NEW_PRIVS` has been set."""
    instructions = build(kernel.machine, None if has_namespaces else os.getpid())

    class Instruction(ctypes.Structure):
        _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction)))

    array = (Instruction * len(instructions))(*(Instruction(*values) for values in instructions))
    program = Program(len(instructions), array)
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.addressof(program))
