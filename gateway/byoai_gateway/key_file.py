"""The file with the key-encryption keys: followed while it changes, and given a new first key.

A gateway that runs beside `keys rotate` meets records that are sealed with a key it has not read.
It looks at the file again before it seals and before it calls a key unknown, so that no record is
refused and none is sealed with yesterday's key. What it cannot read it says, and goes on with what
it knows.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from byoai_gateway.config import VaultSection
from byoai_gateway.key_ring import KeyRing, load_ring, new_key_line
from byoai_shared.config import ConfigError
from byoai_shared.logs import get_logger

_Stamp = tuple[int, int, int]
_NO_FILE: Final = (0, 0, 0)

log = get_logger("gateway")


class KeyFile:
    """A key ring that is read again when its file has changed."""

    def __init__(self, settings: VaultSection, ring: KeyRing) -> None:
        self._settings = settings
        self._ring = ring
        # Read before the file may have changed: the first look reads it once more.
        self._seen: _Stamp = _NO_FILE

    @property
    def current(self) -> str:
        """The id of the key that wraps: the first one in the file."""
        self._look()
        return self._ring.current

    def knows(self, key_id: str) -> bool:
        """Tell whether a key is in the file."""
        if not self._ring.knows(key_id):
            self._look()
        return self._ring.knows(key_id)

    async def wrap(self, key_id: str, data_key: bytes, context: bytes) -> bytes:
        """Wrap with a key that is known."""
        return await self._ring.wrap(key_id, data_key, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Unwrap with a key that is known.

        Raises:
            ValueError: another key or another context wrapped it.
        """
        return await self._ring.unwrap(key_id, wrapped, context)

    def _look(self) -> None:
        stamp = _stamp(self._settings.key_file)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            ring = load_ring(self._settings)
        except ConfigError as error:
            log.error("vault.keys_not_read", reason=str(error))  # noqa: TRY400 -- it says all
            return
        if ring is None:
            log.error("vault.keys_gone", path=str(self._settings.key_file), next="put it back")
            return
        if ring.current != self._ring.current:
            log.info("vault.key_changed", key_id=ring.current)
        self._ring = ring


def add_first_key(path: Path) -> str:
    """Put a new key in front of the others; answers its id.

    Raises:
        ConfigError: the file cannot be read or written, or somebody else is at it.
    """
    key_id, line = new_key_line()
    _change(path, lambda text: _put_first(line, text.splitlines(keepends=True)))
    return key_id


def add_last_key(path: Path) -> str:
    """Put a new key behind the others, where it opens and does not seal; answers its id.

    Raises:
        ConfigError: the file cannot be read or written, or somebody else is at it.
    """
    key_id, line = new_key_line()
    _change(path, lambda text: text.rstrip("\n") + "\n" + line)
    return key_id


def make_first(path: Path, key_id: str) -> None:
    """Put a key that is in the file in front of the others.

    Raises:
        ConfigError: it is not there, or the file cannot be read or written.
    """

    def moved(text: str) -> str:
        lines = text.splitlines(keepends=True)
        chosen = [line for line in lines if line.strip().startswith(f"{key_id}=")]
        if not chosen:
            raise ConfigError(f"{path} holds no key {key_id}")
        others = [line for line in lines if line not in chosen]
        return _put_first(chosen[0].strip() + "\n", others)

    _change(path, moved)


def _put_first(line: str, others: list[str]) -> str:
    """Before all keys, and after the comment that the file begins with."""
    at = next(
        (n for n, it in enumerate(others) if not it.startswith("#")),
        len(others),
    )
    return "".join([*others[:at], line, *others[at:]])


def _change(path: Path, edit: Callable[[str], str]) -> None:
    """Put a new file in the place of the old one as a whole: readers see one or the other."""
    fresh = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(
            f"{fresh} is there: another rotation is running, or one was broken off; "
            "if none is running, remove it"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot make {fresh}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            _keep_owner(descriptor, path)
            file.write(edit(path.read_text(encoding="utf-8")))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException as error:
        # Not in a `finally`: once it has taken the other's place, the name may be somebody else's.
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError | UnicodeDecodeError):
            raise ConfigError(f"cannot change vault.key_file {path}: {error}") from error
        raise
    _keep_rename(path.parent)


def _keep_owner(descriptor: int, path: Path) -> None:
    """Let the gateway go on reading a file that root changes by hand."""
    if os.name != "posix":
        return
    owner = path.stat()
    if owner.st_uid != os.geteuid():
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _keep_rename(directory: Path) -> None:
    """Have the new file survive a power cut; where folders cannot be synced it does anyway."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return _NO_FILE
    return found.st_mtime_ns, found.st_ino, found.st_size
