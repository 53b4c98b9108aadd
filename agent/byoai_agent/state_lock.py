"""The lock that keeps two agents from running on one state directory.

It is a lock of the operating system on a file in the directory, so that it ends with its process.
Where a read-only or full disk lets no such file be made, the directory itself is locked. Where the
file system knows no locks (NFS without its lock service, some FUSE and SMB mounts), a file in the
host's directory for temporary files is locked instead: it keeps out a second agent of this host
and account, not one of another host. Where that fails as well there is no lock, and the agent
starts all the same: the gateway notices two agents with one state.
"""

import errno
import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from byoai_shared.errors import ByoaiError

_HELD: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK})


class StateLocked(ByoaiError):
    """Another agent holds the lock; it can end by itself, so another start may succeed."""


class StateLock:
    """An advisory lock, released by `release` or by the end of the process.

    Raises:
        StateLocked: another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        self.weakness = ""
        """What this lock does not keep out and why; empty for a lock of the usual strength."""
        descriptor = -1
        try:
            descriptor = _open(path)
            _lock_file(descriptor)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                _refuse_if_held(path.parent, error)
            self._lock_elsewhere(path.parent, error)
        else:
            self._descriptor = descriptor

    def release(self) -> None:
        """Let another agent run."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock_elsewhere(self, directory: Path, reason: OSError) -> None:
        cause = f"the state directory {directory} cannot be locked ({reason.strerror})"
        fix = "a directory on a local disk can: --state-dir"
        try:
            descriptor = _open_local(directory)
        except OSError:
            self.weakness = f"{cause}; make sure that no second agent uses it; {fix}"
            return
        try:
            _lock_range(descriptor)
        except OSError as error:
            os.close(descriptor)
            _refuse_if_held(directory, error)
            self.weakness = f"{cause}; make sure that no second agent uses it; {fix}"
            return
        self._descriptor = descriptor
        self.weakness = f"{cause}; make sure that no agent on another host uses it; {fix}"


def is_locked(path: Path) -> bool:
    """Whether an agent holds the lock now."""
    try:
        StateLock(path).release()
    except StateLocked:
        return True
    return False


def _open(path: Path) -> int:
    with suppress(OSError):
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return os.open(path.parent, os.O_RDONLY)


def _refuse_if_held(directory: Path, error: OSError) -> None:
    if error.errno in _HELD:
        raise StateLocked(
            f"another byoai-agent runs on {directory}; stop it first, "
            "or give this one its own --state-dir and join code"
        ) from error


if sys.platform == "win32":
    import msvcrt

    def _lock_file(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    _lock_range = _lock_file

    def _open_local(directory: Path) -> int:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(directory))

else:
    import fcntl

    def _lock_file(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _lock_range(descriptor: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _open_local(directory: Path) -> int:
        """A file that stands for the directory, in the place for temporary files."""
        digest = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
        name = f"byoai-agent-{os.geteuid()}-{digest}.lock"
        path = Path(tempfile.gettempdir()) / name
        # Others can write there: no link of theirs is followed, no file of theirs is used.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if os.fstat(descriptor).st_uid != os.geteuid():
            os.close(descriptor)
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        return descriptor
