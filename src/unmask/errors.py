"""The one exception type for mistakes of the user: bad input, missing files, full disks."""

from __future__ import annotations


class UnmaskError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with `exit_code`. Anything else that is raised is a
    defect of this library and keeps its traceback.
    """

    exit_code = 2


class TryAgainError(UnmaskError):
    """What ends the ranks of a run, though these would go on if they were started again, with --resume.

    The launcher of `--nproc` does so.
    """

    exit_code = 75  # EX_TEMPFAIL in sysexits.h
