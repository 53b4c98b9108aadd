"""What the agent keeps on disk, and that nobody else can read it.

The directory is 0700 and its files are 0600. A file is made under a new name that must not
exist, synced and then renamed over the old one, so that a crash leaves the old or the new
content and never half of either. A key and its certificate share one file for the same
reason. A directory that service managers made 0755 gets its mode back, because nothing in it
was readable. A private key that other accounts can read is refused: one may have read it.

Tokens and authentication keys are never written here; the agent asks for them at each start.

On Windows there are no such mode bits. The directory lies in the user's own profile, whose
access list keeps other users out, and the checks are skipped.

Layout:

    agent.json        who this agent is and where its gateway and relays are
    link.pem          the link key and the link certificate
    link-next.pem     a link key that was offered for renewal and is not confirmed yet
    end-to-end-next.pem   the end-to-end key that was offered with it, if there was one
    end-to-end.pem    the end-to-end key and its certificate
    status.json       what the running agent says of itself (for `byoai-agent status`)
    lock              held by the running agent
    agent.toml        the settings, which a person writes
"""

import errno
import os
import stat
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from byoai_agent.state_lock import StateLock, is_locked
from byoai_shared import private_files
from byoai_shared.errors import ByoaiError, ConfigError

CONFIG_NAME: Final = "agent.toml"
_ROOM: Final = "reserved"
_ROOM_BYTES: Final = 32 * 1024
"""More than all files of one agent together."""
_AGENT: Final = "agent.json"
_LINK: Final = "link.pem"
_LINK_NEXT: Final = "link-next.pem"
_END_TO_END: Final = "end-to-end.pem"
_END_TO_END_NEXT: Final = "end-to-end-next.pem"
_STATUS: Final = "status.json"
_LOCK: Final = "lock"
_WRITTEN: Final = (_AGENT, _LINK, _LINK_NEXT, _END_TO_END, _END_TO_END_NEXT, _STATUS, _ROOM)
_OURS: Final = frozenset({*_WRITTEN, _LOCK, CONFIG_NAME})
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022
# What stays wrong when the program is started again; a full disk or a lost mount may not.
_LASTING: Final = frozenset({
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EEXIST,
})  # fmt: skip


class StateError(ByoaiError):
    """The state directory cannot be used; the sentence ends with what to do."""

    def __init__(self, sentence: str, *, is_fatal: bool = True) -> None:
        super().__init__(sentence)
        self.is_fatal = is_fatal
        """Whether starting again is pointless without a person."""


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """Who this agent is, where it belongs and what it was told at enrolment."""

    tunnel_id: str
    agent_id: str
    gateway_url: str
    relays: tuple[str, ...]
    services_ca_pem: str
    gateway_ca_pem: str | None = None
    owner: str = ""
    key_fingerprint: str = ""
    upstreams: tuple[str, ...] = ()
    """Model servers named with `join --upstream`; empty means that they are looked for."""


class KeyPair(msgspec.Struct, frozen=True):
    """A private key and its certificate (leaf first, chain after), both PEM."""

    key_pem: bytes
    certificate_pem: bytes

    def __repr__(self) -> str:
        return "KeyPair(***)"


def default_directory(environ: dict[str, str] | None = None) -> Path:
    """Where the state lies unless told otherwise: the platform's place for such things."""
    env = dict(os.environ) if environ is None else environ
    home = Path.home()
    if sys.platform == "win32":
        return Path(env.get("LOCALAPPDATA", home / "AppData" / "Local")) / "byoai-agent"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "byoai-agent"
    if "STATE_DIRECTORY" in env:  # systemd's StateDirectory=
        return Path(env["STATE_DIRECTORY"].split(":")[0])
    return Path(env.get("XDG_STATE_HOME", home / ".local" / "state")) / "byoai-agent"


class StateDirectory:
    """One agent's directory; every method opens, uses and closes what it needs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_joined(self) -> bool:
        """Whether an agent lives here already."""
        return self.has(_AGENT)

    def has(self, name: str) -> bool:
        """Whether a file is there.

        Raises:
            StateError: this account may not know, or the disk does not say.
        """
        try:
            (self.path / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _unreadable(self.path / name, error) from error
        return True

    def prepare(self) -> None:
        """Make the directory, or check the one that is there.

        Raises:
            StateError: it cannot be made, or others can read it.
        """
        try:
            private_files.own_directory(self.path, _OURS)
        except ConfigError as error:
            raise StateError(str(error)) from error
        except OSError as error:
            raise StateError(
                f"cannot make the state directory {self.path}: {error.strerror}; "
                "choose another with --state-dir",
                is_fatal=error.errno in _LASTING,
            ) from error

    def close_to_others(self) -> str:
        """Give an open directory of ours mode 0700; return what to tell a person about it.

        It does not fail where the mode cannot be changed: the keys have modes of their own.
        """
        advice = "with systemd, set StateDirectoryMode=0700 in the unit"
        try:
            was_open = private_files.own_directory(self.path, _OURS)
        except (ConfigError, OSError) as error:
            if stat.S_IMODE(self.path.stat().st_mode) & _OTHERS == 0:
                return ""
            return f"others can list the state directory {self.path}: {error}; {advice}"
        return f"others could list {self.path}; its mode is 700 now ({advice})" if was_open else ""

    @contextmanager
    def reserved_room(self) -> Generator[None]:
        """Prove that the directory can be written, and keep room in it until the block ends.

        Raises:
            StateError: it cannot be written.
        """
        try:
            private_files.replace_file(self.path / _ROOM, bytes(_ROOM_BYTES))
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            yield
        finally:
            self.release_room()

    def release_room(self) -> None:
        """Give the reserved room back before the block ends, to what it was kept for."""
        self._discard(_ROOM)

    def save(self, membership: Membership, link: KeyPair, end_to_end: KeyPair) -> None:
        """Write a whole new agent; `agent.json` comes last and makes it count.

        Raises:
            StateError: it cannot be written; a former agent is still whole.
        """
        self.prepare()
        contents = {
            _END_TO_END: _join_pem(end_to_end),
            _LINK: _join_pem(link),
            _AGENT: _as_json(membership),
        }
        try:
            private_files.replace_files(self.path, contents)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.discard_next_key()

    def save_membership(self, membership: Membership) -> None:
        """Replace what the agent was told (relays and CA bundles change over time)."""
        self._write(_AGENT, _as_json(membership))

    def membership(self) -> Membership:
        """Who this agent is.

        Raises:
            StateError: no agent lives here, or its file is damaged or readable by others.
        """
        if not self.is_joined:
            raise StateError(f"no agent lives in {self.path}; join first: byoai-agent join CODE")
        try:
            return msgspec.json.decode(self._read_public(_AGENT), type=Membership)
        except msgspec.MsgspecError as error:
            raise StateError(
                f"{self.path / _AGENT} is damaged ({error}); "
                "get a new code and join again: byoai-agent join CODE --replace"
            ) from error

    def link(self) -> KeyPair:
        """The link key and certificate."""
        return self._pair(_LINK)

    def end_to_end(self) -> KeyPair:
        """The end-to-end key and certificate."""
        return self._pair(_END_TO_END)

    def save_link(self, pair: KeyPair) -> None:
        """Replace the link key and certificate in one step.

        The offered key is settled if it is this one. Another one belongs to a later renewal, and
        an agent that forgot it would look like a copy of itself.
        """
        self._write(_LINK, _join_pem(pair))
        with suppress(StateError):  # a key that stays does no harm
            if self.next_key() == pair.key_pem:
                self.discard_next_key()

    def save_end_to_end(self, pair: KeyPair) -> None:
        """Replace the end-to-end key and certificate in one step."""
        self._write(_END_TO_END, _join_pem(pair))

    def save_next_key(self, key_pem: bytes, end_to_end: KeyPair | None = None) -> None:
        """Keep the keys of a renewal before they are offered: its answer may get lost."""
        if end_to_end is None:
            self._discard(_END_TO_END_NEXT)
        else:
            self._write(_END_TO_END_NEXT, _join_pem(end_to_end))
        self._write(_LINK_NEXT, key_pem)

    def next_key(self) -> bytes | None:
        """The key of a renewal whose answer never came."""
        return self._read(_LINK_NEXT) if self.has(_LINK_NEXT) else None

    def next_end_to_end(self) -> KeyPair | None:
        """The end-to-end key that was offered with `next_key`."""
        return self._pair(_END_TO_END_NEXT) if self.has(_END_TO_END_NEXT) else None

    def discard_next_key(self) -> None:
        """Forget the offered keys; a key that stays on a read-only disk does no harm."""
        self._discard(_LINK_NEXT)
        self._discard(_END_TO_END_NEXT)

    def save_status(self, content: bytes) -> None:
        """Replace the running agent's report of itself; it need not survive a power cut."""
        self._write(_STATUS, content, durable=False)

    def status(self) -> bytes | None:
        """The last report of a running agent, if there is one."""
        return self._read_public(_STATUS) if self.has(_STATUS) else None

    def is_in_use(self) -> bool:
        """Whether an agent runs on it now."""
        return is_locked(self.path / _LOCK)

    def lock(self) -> StateLock:
        """Keep a second agent from running on the same state.

        Raises:
            StateLocked: one runs already.
        """
        lock = StateLock(self.path / _LOCK)
        for name in _WRITTEN:
            private_files.remove_leftovers(self.path / name)
        return lock

    def _pair(self, name: str) -> KeyPair:
        keys: list[bytes] = []
        certificates: list[bytes] = []
        for block in _pem_blocks(self._read(name)):
            (keys if b"PRIVATE KEY" in block.splitlines()[0] else certificates).append(block)
        if len(keys) != 1 or not certificates:
            raise StateError(
                f"{self.path / name} is damaged; "
                "get a new code and join again: byoai-agent join CODE --replace"
            )
        return KeyPair(keys[0], b"".join(certificates))

    def _read(self, name: str) -> bytes:
        """Read a file with a private key."""
        path = self.path / name
        try:
            private_files.check_directory(self.path)
            return private_files.read_key_file(path)
        except ConfigError as error:
            advice = "; or join again with a new code: byoai-agent join CODE --replace"
            raise StateError(f"{error}{advice}") from error
        except OSError as error:
            raise _unreadable(path, error) from error

    def _read_public(self, name: str) -> bytes:
        """Read a file that holds no secret; others may not have written it."""
        path = self.path / name
        try:
            private_files.check_directory(self.path)
            mode = stat.S_IMODE(path.stat().st_mode)
            if os.name == "posix" and mode & _OTHERS_WRITE:
                raise StateError(
                    f"others can write {path} (mode {mode:04o}); if none did, run: "
                    f"chmod 600 {path}  otherwise join again: byoai-agent join CODE --replace"
                )
            return path.read_bytes()
        except ConfigError as error:
            raise StateError(str(error)) from error
        except OSError as error:
            raise _unreadable(path, error) from error

    def _write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        path = self.path / name
        try:
            private_files.replace_file(path, content, durable=durable)
        except OSError as error:
            raise _unwritable(path, error) from error

    def _discard(self, name: str) -> None:
        with suppress(OSError):
            (self.path / name).unlink(missing_ok=True)


def _unreadable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot read {path}: {error.strerror}; run this as the user who joined, "
        "or join again: byoai-agent join CODE --replace",
        is_fatal=error.errno in _LASTING,
    )


def _unwritable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot write {path}: {error.strerror}; {_remedy(path, error)}",
        is_fatal=error.errno in _LASTING,
    )


def _remedy(path: Path, error: OSError) -> str:
    """What a person does about a write that failed."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            directory = path if path.is_dir() else path.parent
            return f"free some space on its disk (see: df -h {directory})"
        case errno.EROFS:
            return "mount it writable"
        case errno.EFBIG:
            return "raise this account's limit of file size (see: ulimit -f)"
        case errno.EIO:
            return "the disk reports errors: check it (see: dmesg)"
        case _:
            return "check the disk and its permissions"


def _as_json(membership: Membership) -> bytes:
    return msgspec.json.format(msgspec.json.encode(membership), indent=2)


def _join_pem(pair: KeyPair) -> bytes:
    return pair.key_pem.rstrip() + b"\n" + pair.certificate_pem


def _pem_blocks(content: bytes) -> Iterator[bytes]:
    lines: list[bytes] = []
    for line in content.splitlines(keepends=True):
        if line.startswith(b"-----BEGIN"):
            lines = []
        lines.append(line)
        if line.startswith(b"-----END"):
            yield b"".join(lines)
