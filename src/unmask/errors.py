"""The one exception type for mistakes of the user: bad input, missing files, full disks."""

from __future__ import annotations


class UnmaskError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with code 2. Anything else that is raised is a
    defect of this library and keeps its traceback.
    """
