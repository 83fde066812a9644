"""What programs see of the file system: the interpreter and its libraries, read-only, and four devices. Nothing else."""

from __future__ import annotations

import os
import sys
import sysconfig

from unmask.sandbox import kernel

_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
FOLDER = "/program"  # where programs run, and may write
LINKS = ("/tmp", "/dev/shm")  # to it, where they also expect to write
# Not /dev/zero: mapped, it is memory that no process is charged for.
DEVICES = ("/dev/null", "/dev/full", "/dev/urandom", "/dev/random")


def readable_paths() -> list[str]:
    """Those of the system and of this interpreter; a path below another one is left out. Symbolic links are listed, too."""
    mine = [sys.prefix, sys.base_prefix, sys.exec_prefix, *(sysconfig.get_paths()[key] for key in ("stdlib", "purelib"))]
    resolved = [os.path.realpath(sys.executable), *map(os.path.realpath, mine)]
    paths = sorted({os.path.abspath(path) for path in [*_SYSTEM, *mine, *resolved]})
    home = os.path.expanduser("~")
    paths = [path for path in paths if os.path.lexists(path) and path not in ("/", home)]
    is_below = {path: any(path.startswith(other + "/") and not os.path.islink(other) for other in paths) for path in paths}
    return [path for path in paths if not is_below[path]]


def enter(folder: str) -> None:
    """Makes the view, with a read-only root, and changes into it. `folder`: empty, becomes a mount point of this namespace.

    The mount namespace is this process's own. Raises `OSError`.
    """
    kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", folder, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path in [*readable_paths(), *DEVICES]:
        target = folder + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        kernel.mount(path, target, flags=kernel.MS_BIND | kernel.MS_REC)
        if path not in DEVICES:
            kernel.set_read_only(target)
    os.mkdir(folder + FOLDER)
    for path in LINKS:
        if not os.path.exists(f"{folder}{path}"):  # the interpreter may be there
            os.symlink(FOLDER, f"{folder}{path}")
    kernel.change_root(folder)
    # The root itself, not what is mounted in it: programs mount their own folders there.
    kernel.mount("", "/", flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV)
