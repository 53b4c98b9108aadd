"""Disks that fail: by injection for every kind of fault, and real ones in a mount namespace."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from byoai_shared import private_files

_BLOCK: Final = 4096


class FailingDisk:
    """Stands in for the one function that writes files; fails from a given write on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real: Callable[..., None] = private_files.write_new_file
        self._number = 0
        self._after = 0
        self._directory = Path()
        self._room: int | None = None
        self.writes = 0
        self.before_write: Callable[[], object] = lambda: None
        monkeypatch.setattr(private_files, "write_new_file", self._write)

    def fail(self, number: int = errno.ENOSPC, after: int = 0) -> None:
        """Refuse writes with an errno, once `after` more have succeeded."""
        self._number, self._after, self.writes = number, after, 0

    def fill_up(self, directory: Path, room: int) -> None:
        """Be a disk with so many bytes, which the files of a directory use."""
        self._directory, self._room = directory, room

    def mend(self) -> None:
        """Take writes again."""
        self._number = 0

    def _write(self, path: Path, content: bytes, *, durable: bool = True) -> None:
        self.before_write()
        self.writes += 1
        if self._number and self.writes > self._after:
            path.write_bytes(content[: len(content) // 2])  # what a full disk leaves of a file
            raise OSError(self._number, os.strerror(self._number))
        if self._room is not None and self._used() + _blocks(content) > self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._real(path, content, durable=durable)

    def _used(self) -> int:
        return sum(_blocks(path.read_bytes()) for path in self._directory.iterdir())


def _blocks(content: bytes) -> int:
    """What a file takes of a disk that gives room in blocks."""
    return -(-len(content) // _BLOCK) * _BLOCK


def _can_mount() -> bool:
    unshare = shutil.which("unshare")
    if sys.platform != "linux" or unshare is None:
        return False
    command = (unshare, "--mount", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt")
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


NEEDS_MOUNTS = pytest.mark.skipif(
    not _can_mount(), reason="mounting a file system in a namespace of its own is not permitted"
)
