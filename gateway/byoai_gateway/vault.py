"""Seals secrets for the database, so that a stolen copy of it opens nothing.

AES-256-GCM with a fresh data key per secret; the data key is wrapped by a key-encryption key
whose id stands in the record. Who holds that key is a `KeyWrapper`: a key ring from a file or the
environment, or a key service that never gives it out. The associated data of both is the record's
owner and field: a record copied to another row does not open. Several key-encryption keys may be
known at once; the first seals, all of them open.

It refuses to make up a key: a record whose key is not known names that key.
"""

import asyncio
import base64
import binascii
import os
import re
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final, NoReturn, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from byoai_gateway.config import VaultSection
from byoai_gateway.refusals import Refusal
from byoai_shared.config import ConfigError
from byoai_shared.errors import ByoaiError
from byoai_shared.logs import get_logger

_VERSION: Final = 2
_FIRST_VERSION: Final = 1
"""Its wrapped key was always as long as a ring makes it; later ones say how long theirs is."""
_WRAPPER_S: Final = 5.0
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_WRAPPED_BYTES: Final = _KEY_BYTES + 16
_LENGTH_BYTES: Final = 2
_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = get_logger("gateway")


class VaultError(ByoaiError):
    """A sealed record does not open."""


class VaultKeyMissing(VaultError):
    """The key-encryption key of a record is not known here."""

    def __init__(self, key_ids: set[str]) -> None:
        self.key_ids = frozenset(key_ids)
        super().__init__(
            f"the database holds secrets sealed with key {', '.join(sorted(key_ids))}, which is "
            "not among the known key-encryption keys; put it back into vault.key_file "
            "or vault.keys"
        )


class KeysUnavailable(Refusal):
    """Who holds the key-encryption keys does not answer now; the record may be sound."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "unavailable",
            "the gateway cannot open its secrets now; try again in a moment",
            retry_after_s=1,
        )


class KeyWrapper(Protocol):
    """Holds key-encryption keys and wraps data keys with them.

    What it raises: OSError when it cannot be reached; ValueError when what it is given was not
    wrapped with that key in that context.
    """

    @property
    def current(self) -> str:
        """The id of the key that wraps."""
        ...

    def knows(self, key_id: str) -> bool:
        """Tell whether a key can be asked for."""
        ...

    async def wrap(self, key_id: str, data_key: bytes, context: bytes) -> bytes:
        """Wrap a data key; only the same context unwraps it."""
        ...

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Give a data key back."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record belongs; part of what its seal protects."""

    owner: str
    field: str

    def associated_data(self, purpose: bytes, key_id: str) -> bytes:
        """Bytes that no other place, purpose or key gives: each part is preceded by its length."""
        parts = (purpose, key_id.encode(), self.owner.encode(), self.field.encode())
        return b"byoai.vault.v1" + b"".join(len(it).to_bytes(4, "big") + it for it in parts)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The key-encryption keys by id, and the id of the one that seals: a wrapper at hand."""

    current: str
    keys: Mapping[str, bytes] = field(repr=False)

    def knows(self, key_id: str) -> bool:
        """Tell whether a key is in the ring."""
        return key_id in self.keys

    async def wrap(self, key_id: str, data_key: bytes, context: bytes) -> bytes:
        """Wrap with AES-256-GCM."""
        return _encrypt(self.keys[key_id], data_key, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Unwrap.

        Raises:
            ValueError: another key or another context wrapped it.
        """
        return _decrypt(self.keys[key_id], wrapped, context)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A record as it is stored."""

    key_id: str
    content: bytes


class Vault:
    """Seals and opens with the keys of a wrapper."""

    def __init__(self, wrapper: KeyWrapper) -> None:
        self._wrapper = wrapper

    @property
    def current_key_id(self) -> str:
        """The key that seals."""
        return self._wrapper.current

    def missing_keys(self, key_ids: set[str]) -> set[str]:
        """Those of the ids that are not known here."""
        return {key_id for key_id in key_ids if not self._wrapper.knows(key_id)}

    async def seal(self, place: Place, secret: bytes) -> Sealed:
        """Seal a secret for its place.

        Raises:
            KeysUnavailable: who holds the keys does not answer.
        """
        key_id = self._wrapper.current
        data_key = AESGCM.generate_key(256)
        context = place.associated_data(b"key", key_id)
        async with _answering():
            wrapped = await self._wrapper.wrap(key_id, data_key, context)
        content = _encrypt(data_key, secret, place.associated_data(b"secret", key_id))
        head = bytes((_VERSION,)) + len(wrapped).to_bytes(_LENGTH_BYTES, "big")
        return Sealed(key_id, head + wrapped + content)

    async def open(self, place: Place, sealed: Sealed) -> bytes:
        """Open a record.

        Raises:
            VaultKeyMissing: its key is not known.
            VaultError: it was damaged, or belongs to another place.
            KeysUnavailable: who holds the keys does not answer.
        """
        key_id = sealed.key_id
        if not self._wrapper.knows(key_id):
            raise VaultKeyMissing({key_id})
        wrapped, content = _parts(place, sealed.content)
        try:
            async with _answering():
                context = place.associated_data(b"key", key_id)
                data_key = await self._wrapper.unwrap(key_id, wrapped, context)
            return _decrypt(data_key, content, place.associated_data(b"secret", key_id))
        except ValueError:
            _refuse(place, "damaged or moved from another row")


@asynccontextmanager
async def _answering() -> AsyncGenerator[None]:
    """Bound the wait for a wrapper, and say in one way that it is away."""
    try:
        async with asyncio.timeout(_WRAPPER_S):
            yield
    except OSError as error:  # a TimeoutError is one
        log.error(  # noqa: TRY400 -- what a service said may name what must not be logged
            "vault.keys_unavailable",
            reason=type(error).__name__,
            next="whoever asked is told to try again",
        )
        raise KeysUnavailable from error


def _parts(place: Place, record: bytes) -> tuple[bytes, bytes]:
    """The wrapped key and the content of a record."""
    version = record[0] if record else 0
    if version == _FIRST_VERSION:
        start, length = 1, _NONCE_BYTES + _WRAPPED_BYTES
    elif version == _VERSION:
        start = 1 + _LENGTH_BYTES
        length = int.from_bytes(record[1:start], "big")
    else:
        _refuse(place, "unknown version")
    return record[start : start + length], record[start + length :]


def _refuse(place: Place, why: str) -> NoReturn:
    raise VaultError(f"the sealed {place.field} of {place.owner} does not open: {why}")


def _encrypt(key: bytes, plain: bytes, context: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, context)


def _decrypt(key: bytes, record: bytes, context: bytes) -> bytes:
    nonce, content = record[:_NONCE_BYTES], record[_NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, content, context)
    except InvalidTag as error:
        raise ValueError("the key or the context is another") from error


def parse_keys(text: str, source: str) -> KeyRing:
    """Read `ID=BASE64URL` lines; empty lines and `#` comments are skipped.

    Raises:
        ConfigError: a line is not a key. It is named by number: the line itself may be one.
    """
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        key_id, _, encoded = entry.partition("=")
        key = _decode_key(encoded)
        if not _KEY_ID.fullmatch(key_id) or key is None:
            raise ConfigError(f"{source}, line {number}: not ID=KEY with a key of 32 bytes")
        if key_id in keys:
            raise ConfigError(f"{source}, line {number}: key {key_id} is there twice")
        keys[key_id] = key
    if not keys:
        raise ConfigError(f"{source}: there is no key-encryption key in it")
    return KeyRing(next(iter(keys)), keys)


def _decode_key(encoded: str) -> bytes | None:
    padded = encoded + "=" * (-len(encoded) % 4)
    try:
        key = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    return key if len(key) == _KEY_BYTES else None


def load_ring(settings: VaultSection) -> KeyRing | None:
    """The configured keys; None when there is no key file yet.

    Raises:
        ConfigError: the file cannot be read, others can read it, or it holds no keys.
    """
    if settings.keys is not None:
        return parse_keys(settings.keys.reveal(), "vault.keys")
    path = settings.key_file
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise ConfigError(f"others can read the vault's keys; run: chmod 600 {path}")
        return parse_keys(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read vault.key_file {path}: {error}") from error


def new_key_line() -> tuple[str, str]:
    """Make a key: its id, and its line for the file."""
    key_id = f"kek-{secrets.token_hex(4)}"
    key = base64.urlsafe_b64encode(secrets.token_bytes(_KEY_BYTES))
    return key_id, f"{key_id}={key.decode().rstrip('=')}\n"


def create_ring(path: Path) -> KeyRing:
    """Make a first key and write it to a new file that only its owner can read.

    Raises:
        ConfigError: the file cannot be made.
    """
    _, line = new_key_line()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("# Losing this file loses every secret in the gateway's database.\n")
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"cannot make vault.key_file {path}: {error}") from error
    return parse_keys(line, str(path))
