"""Seals secrets for the database, so that a stolen copy of it opens nothing.

AES-256-GCM with a fresh data key per secret; the data key is wrapped, with AES-256-GCM too, by
a key-encryption key that lives in a file or the environment and whose id stands in the record.
The associated data of both is the record's owner and field: a record copied to another row does
not open. Several key-encryption keys may be known at once; the first seals, all of them open.

It refuses to make up a key: a record whose key is not known names that key.
"""

import base64
import binascii
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from byoai_gateway.config import VaultSection
from byoai_shared.config import ConfigError
from byoai_shared.errors import ByoaiError

_VERSION: Final = 1
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_WRAPPED_BYTES: Final = _KEY_BYTES + 16
_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


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
    """The key-encryption keys by id, and the id of the one that seals."""

    current: str
    keys: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A record as it is stored."""

    key_id: str
    content: bytes


class Vault:
    """Seals and opens with the keys of a ring."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    @property
    def current_key_id(self) -> str:
        """The key that seals."""
        return self._ring.current

    def missing_keys(self, key_ids: set[str]) -> set[str]:
        """Those of the ids that are not known here."""
        return key_ids - self._ring.keys.keys()

    def seal(self, place: Place, secret: bytes) -> Sealed:
        """Seal a secret for its place."""
        key_id = self._ring.current
        data_key = AESGCM.generate_key(256)
        wrapped = _encrypt(self._ring.keys[key_id], data_key, place, b"key", key_id)
        content = _encrypt(data_key, secret, place, b"secret", key_id)
        return Sealed(key_id, bytes((_VERSION,)) + wrapped + content)

    def open(self, place: Place, sealed: Sealed) -> bytes:
        """Open a record.

        Raises:
            VaultKeyMissing: its key is not known.
            VaultError: it was damaged, or belongs to another place.
        """
        key = self._ring.keys.get(sealed.key_id)
        if key is None:
            raise VaultKeyMissing({sealed.key_id})
        if sealed.content[:1] != bytes((_VERSION,)):
            _refuse(place, "unknown version")
        end = 1 + _NONCE_BYTES + _WRAPPED_BYTES
        try:
            data_key = _decrypt(key, sealed.content[1:end], place, b"key", sealed.key_id)
            return _decrypt(data_key, sealed.content[end:], place, b"secret", sealed.key_id)
        except (InvalidTag, ValueError):
            _refuse(place, "damaged or moved from another row")


def _refuse(place: Place, why: str) -> NoReturn:
    raise VaultError(f"the sealed {place.field} of {place.owner} does not open: {why}")


def _encrypt(key: bytes, plain: bytes, place: Place, purpose: bytes, key_id: str) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, place.associated_data(purpose, key_id))


def _decrypt(key: bytes, record: bytes, place: Place, purpose: bytes, key_id: str) -> bytes:
    nonce, content = record[:_NONCE_BYTES], record[_NONCE_BYTES:]
    return AESGCM(key).decrypt(nonce, content, place.associated_data(purpose, key_id))


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


def create_ring(path: Path) -> KeyRing:
    """Make a first key and write it to a new file that only its owner can read.

    Raises:
        ConfigError: the file cannot be made.
    """
    key_id = f"kek-{secrets.token_hex(4)}"
    key = secrets.token_bytes(_KEY_BYTES)
    line = f"{key_id}={base64.urlsafe_b64encode(key).decode().rstrip('=')}\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("# Losing this file loses every secret in the gateway's database.\n")
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"cannot make vault.key_file {path}: {error}") from error
    return KeyRing(key_id, {key_id: key})
