"""How many files, sockets among them, this process may open. Windows has no such limit."""

import sys
from contextlib import suppress
from typing import Final

from structlog.stdlib import BoundLogger

if sys.platform != "win32":
    import resource

_OTHER_FILES: Final = 128
"""Descriptors for databases, other links, the listeners and what is just being closed."""
_FEWEST_CONNECTIONS: Final = 64


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


def connections_that_fit(wanted: int, files: int | None, log: BoundLogger) -> int:
    """Fit `limits.connections` to the limit of open files, with a warning if there are fewer.

    Half of the files are left: a connection to the gateway may need one to a provider as well, and
    the relay has two listeners.
    """
    if files is None:
        return wanted
    fitting = max(_FEWEST_CONNECTIONS, (files - _OTHER_FILES) // 2)
    if fitting < wanted:
        log.warning(
            "connections.limited",
            setting="limits.connections",
            count=fitting,
            reason=f"this process may open {files} files",
            next="raise its limit of open files (ulimit -n, LimitNOFILE), or lower the setting",
        )
    return min(wanted, fitting)
