"""Files and directories that only their owner may read: private keys, and the state around them.

Who may own them: the account that the program runs as, or root. A key may not be readable by
anyone else, with one exception: a key of root may be readable by its group, as root has no other
way to hand it to an unprivileged program (Kubernetes mounts a secret with `fsGroup` as 0440
root:group). Root itself reads keys of any owner, for an administrator's commands.

A directory that is the program's own is given mode 0700: service managers and volumes make them
0755, and nothing in them was readable meanwhile. It is the program's own if it is empty or holds
only the program's files. A directory that the program shares with others keeps its mode. Both are
refused if every account may write into them: it could have replaced a key. One exception: a
directory of root's with the sticky bit (mode 1777, as Kubernetes makes the volume of a secret) may
hold keys that are only read, as only its owner can replace a file in it.
An open key is refused rather than mended, because it may have been read.

Windows has no such modes: access lists of the user's profile keep others out, and every check
passes.
"""

import os
import re
import secrets
import stat
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from byoai_shared.errors import ConfigError

_ROOT: Final = 0
_OTHERS: Final = 0o077
_OTHERS_OF_ROOTS_KEY: Final = 0o037
_ANYONE_WRITES: Final = 0o002
_LEFTOVER: Final = re.compile(r"^\.(.+)\.[0-9a-f]{16}$")
"""What a crash in `replace_file` leaves beside a file."""
_OF_THE_FILE_SYSTEM: Final = "lost+found"
"""A volume of the program's own has it as well."""


class NotPrivate(ConfigError):
    """A file or directory is open to other accounts; the sentence ends with what to do."""


def own_directory(path: Path, names: Collection[str]) -> bool:
    """Make a directory for this program alone; return whether an open one was made private.

    `names` are the program's files. An open directory that holds any other file is shared, and its
    mode is not changed: `/var/lib` with mode 0700 would stop the host's other programs.

    Raises:
        NotPrivate: another account owns it, every account may write into it, or it is open and
            shared.
        OSError: it cannot be made or changed.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform == "win32":
        return False
    check_directory(path)
    found = path.stat()
    is_open = bool(found.st_mode & _OTHERS)
    if not is_open or found.st_uid != os.geteuid():
        return False
    _require_unshared(path, found, names)
    path.chmod(0o700)
    return True


def _require_unshared(path: Path, found: os.stat_result, names: Collection[str]) -> None:
    for entry in path.iterdir():
        name = _LEFTOVER.sub(r"\1", entry.name)
        if name not in names and name != _OF_THE_FILE_SYSTEM:
            raise NotPrivate(
                f"the directory {path} (mode {_mode(found)}) is open to other accounts and holds "
                f"files that are not this program's, such as {entry.name}; its mode was not "
                f"changed; use a directory of its own, such as {path / 'byoai'}, or, if no other "
                f"program needs this one, run: chmod 700 {path}"
            )


def check_directory(path: Path, *, is_only_read: bool = False) -> None:
    """Check a directory with private files that may hold others as well; it is not changed.

    With `is_only_read` the program reads keys from it and keeps no state there.

    Raises:
        NotPrivate: another account owns it, or every account may write into it.
        OSError: it cannot be looked at.
    """
    if sys.platform == "win32":
        return
    reason = directory_fault(path, path.stat(), os.geteuid(), is_only_read=is_only_read)
    if reason:
        raise NotPrivate(reason)


def read_key_file(path: Path) -> bytes:
    """Read a file that holds a private key.

    Raises:
        NotPrivate: others own it or can read it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if sys.platform != "win32":
            # Of the open file: its name may lead to another one by now.
            reason = key_fault(path, os.fstat(file.fileno()), os.geteuid())
            if reason:
                raise NotPrivate(reason)
        return file.read()


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file that only its owner can read, as a whole: readers see the old or the new one.

    With `durable` it survives a power cut once this returns. What a crash leaves behind is a
    hidden file beside it; `remove_leftovers` removes those.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_new_file(fresh, content, durable=durable)
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
    if durable:
        _sync_directory(path.parent)


def replace_files(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Replace several files of a directory; all are on the disk before the first one changes.

    A full disk therefore changes none of them. Only a crash between two renames can leave some
    old and some new: they change in the order of `contents`, so put the decisive file last.

    Raises:
        OSError: one cannot be written; no file has changed, unless renaming itself failed.
    """
    fresh = {name: directory / f".{name}.{secrets.token_hex(8)}" for name in contents}
    try:
        for name, content in contents.items():
            write_new_file(fresh[name], content)
        for name, path in fresh.items():
            path.replace(directory / name)
    except BaseException:
        for path in fresh.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    _sync_directory(directory)


def write_new_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file that must not exist yet and that only its owner can read.

    Raises:
        FileExistsError: it exists.
        OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):  # half a file would stand in the way of the next attempt
            path.unlink()
        raise


def remove_leftovers(path: Path) -> None:
    """Remove what a crash in `replace_file` left beside a file; call it while nobody writes it."""
    for leftover in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 16}"):
        with suppress(OSError):
            leftover.unlink()


def directory_fault(
    path: Path, found: os.stat_result, user_id: int, *, is_only_read: bool = False
) -> str:
    """Say why a directory must not be used, and what mends it; empty if it may."""
    if found.st_uid not in (user_id, _ROOT):
        return _foreign(path, found, user_id, f"chown -R {user_id} {path}")
    is_roots_volume = found.st_uid == _ROOT and bool(found.st_mode & stat.S_ISVTX)
    if found.st_mode & _ANYONE_WRITES and not (is_only_read and is_roots_volume):
        return (
            f"every account can write to the directory {path} (mode {_mode(found)}), and could "
            f"have replaced the keys in it; if none has, run: chmod o-w {path}"
        )
    return ""


def key_fault(path: Path, found: os.stat_result, user_id: int) -> str:
    """Say why a file with a private key must not be used, and what mends it; empty if it may."""
    if user_id != _ROOT and found.st_uid not in (user_id, _ROOT):
        return _foreign(path, found, user_id, f"chown {user_id} {path}")
    is_handed_by_root = found.st_uid == _ROOT and user_id != _ROOT
    if found.st_mode & (_OTHERS_OF_ROOTS_KEY if is_handed_by_root else _OTHERS):
        mode = "640" if is_handed_by_root else "600"
        return (
            f"others can read the key file {path} (mode {_mode(found)}); if none did, run: "
            f"chmod {mode} {path}  otherwise replace the key"
        )
    return ""


def _foreign(path: Path, found: os.stat_result, user_id: int, command: str) -> str:
    return (
        f"{path} belongs to another account (user id {found.st_uid}, mode {_mode(found)}; this "
        f"program runs as user id {user_id}); run it as that account, or give it to this one: "
        f"{command}"
    )


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"


def _sync_directory(path: Path) -> None:
    """Make a rename itself survive a power cut; Windows cannot and need not."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
