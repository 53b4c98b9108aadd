"""How many files, sockets among them, this process may open. Windows has no such limit."""

import sys
from contextlib import suppress

if sys.platform != "win32":
    import resource


def open_files_limit() -> int | None:
    """Return the limit in force; None if there is none."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_open_files_limit() -> None:
    """Use as much as the system allows: the soft limit is for programs that use select(2)."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
