"""Key-encryption keys at hand: read from a file or a setting, made for a first start.

It refuses what is not exactly a key, a key that is there twice, and a file that others can read.
"""

import base64
import binascii
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from byoai_gateway.aead import decrypt, encrypt
from byoai_gateway.config import VaultSection
from byoai_shared.config import ConfigError
from byoai_shared.private_files import read_key_file, write_new_file

_KEY_BYTES: Final = 32
_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


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
        return encrypt(self.keys[key_id], data_key, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Unwrap.

        Raises:
            ValueError: another key or another context wrapped it.
        """
        return decrypt(self.keys[key_id], wrapped, context)


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
        return parse_keys(read_key_file(path).decode("utf-8"), str(path))
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
    warning = "# Losing this file loses every secret in the gateway's database.\n"
    try:
        write_new_file(path, f"{warning}{line}".encode())
    except OSError as error:
        raise ConfigError(f"cannot make vault.key_file {path}: {error}") from error
    return parse_keys(line, str(path))
