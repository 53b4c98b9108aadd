"""What the agent keeps on disk, and that nobody else can read it.

The directory is 0700 and its files are 0600. A file is made under a new name that must not
exist, synced and then renamed over the old one, so that a crash leaves the old or the new
content and never half of either. A key and its certificate share one file for the same
reason. When another user could read the directory or a file, loading is refused rather than
repaired: whoever could read it may have read it.

Tokens and authentication keys are never written here; the agent asks for them at each start.

On Windows there are no such mode bits. The directory lies in the user's own profile, whose
access list keeps other users out, and the checks are skipped.

Layout:

    agent.json        who this agent is and where its gateway and relays are
    link.pem          the link key and the link certificate
    link-next.pem     a link key that was offered for renewal and is not confirmed yet
    end-to-end.pem    the end-to-end key and its certificate
    status.json       what the running agent says of itself (for `byoai-agent status`)
    lock              held by the running agent
"""

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from byoai_shared.errors import ByoaiError

_POSIX: Final = os.name == "posix"
_AGENT: Final = "agent.json"
_LINK: Final = "link.pem"
_LINK_NEXT: Final = "link-next.pem"
_END_TO_END: Final = "end-to-end.pem"
_STATUS: Final = "status.json"
_LOCK: Final = "lock"


class StateError(ByoaiError):
    """The state directory cannot be used; the sentence ends with what to do."""


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
        return (self.path / _AGENT).exists()

    def prepare(self) -> None:
        """Make the directory, or check the one that is there.

        Raises:
            StateError: it cannot be made, or others can read it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"cannot make the state directory {self.path}: {error.strerror}; "
                "choose another with --state-dir"
            ) from error
        self._check_private(self.path)

    def save(self, membership: Membership, link: KeyPair, end_to_end: KeyPair) -> None:
        """Write a whole new agent; `agent.json` comes last and makes it count."""
        self.prepare()
        self._write(_END_TO_END, _join_pem(end_to_end))
        self._write(_LINK, _join_pem(link))
        self.discard_next_key()
        self.save_membership(membership)

    def save_membership(self, membership: Membership) -> None:
        """Replace what the agent was told (relays and CA bundles change over time)."""
        self._write(_AGENT, msgspec.json.format(msgspec.json.encode(membership), indent=2))

    def membership(self) -> Membership:
        """Who this agent is.

        Raises:
            StateError: no agent lives here, or its file is damaged or readable by others.
        """
        if not self.is_joined:
            raise StateError(f"no agent lives in {self.path}; join first: byoai-agent join CODE")
        try:
            return msgspec.json.decode(self._read(_AGENT), type=Membership)
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
        """Replace the link key and certificate in one step; the offered key is settled."""
        self._write(_LINK, _join_pem(pair))
        self.discard_next_key()

    def save_end_to_end(self, pair: KeyPair) -> None:
        """Replace the end-to-end key and certificate in one step."""
        self._write(_END_TO_END, _join_pem(pair))

    def save_next_key(self, key_pem: bytes) -> None:
        """Keep the key of a renewal before it is offered: its answer may get lost."""
        self._write(_LINK_NEXT, key_pem)

    def next_key(self) -> bytes | None:
        """The key of a renewal whose answer never came."""
        return self._read(_LINK_NEXT) if (self.path / _LINK_NEXT).exists() else None

    def discard_next_key(self) -> None:
        """Forget the offered key."""
        (self.path / _LINK_NEXT).unlink(missing_ok=True)

    def save_status(self, content: bytes) -> None:
        """Replace the running agent's report of itself; it need not survive a power cut."""
        self._write(_STATUS, content, durable=False)

    def status(self) -> bytes | None:
        """The last report of a running agent, if there is one."""
        return self._read(_STATUS) if (self.path / _STATUS).exists() else None

    def lock(self) -> "StateLock":
        """Keep a second agent from running on the same state.

        Raises:
            StateError: one runs already.
        """
        lock = StateLock(self.path / _LOCK)
        for leftover in self.path.glob(".*.pem.*"):  # a crash between writing and renaming
            leftover.unlink(missing_ok=True)
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
        path = self.path / name
        self._check_private(self.path)
        try:
            self._check_private(path)
            return path.read_bytes()
        except OSError as error:
            raise StateError(
                f"cannot read {path}: {error.strerror}; run as the user who joined, "
                "or join again: byoai-agent join CODE --replace"
            ) from error

    def _write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        path = self.path / name
        fresh = self.path / f".{name}.{secrets.token_hex(8)}"
        try:
            _write_new(fresh, content, durable=durable)
            fresh.replace(path)
            if durable:
                _sync_directory(self.path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise StateError(
                f"cannot write {path}: {error.strerror}; check the disk and its permissions"
            ) from error

    def _check_private(self, path: Path) -> None:
        if not _POSIX:
            return
        found = path.stat()
        if stat.S_IMODE(found.st_mode) & 0o077:
            wanted = "700" if stat.S_ISDIR(found.st_mode) else "600"
            raise StateError(
                f"others can read {path} (mode {stat.S_IMODE(found.st_mode):o}); if nobody did, "
                f"run: chmod {wanted} {path}  otherwise join again with a new code"
            )


def _write_new(path: Path, content: bytes, *, durable: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Make the rename itself survive a power cut; Windows cannot and need not."""
    if not _POSIX:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


class StateLock:
    """An advisory lock on a file, released by `release` or by the end of the process."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock_file(self._descriptor)
        except OSError as error:
            os.close(self._descriptor)
            raise StateError(
                f"another byoai-agent runs on {path.parent}; stop it first, "
                "or give this one its own --state-dir and join code"
            ) from error

    def release(self) -> None:
        """Let another agent run."""
        os.close(self._descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock_file(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock_file(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
