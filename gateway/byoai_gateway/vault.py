"""Seals secrets for the database, so that a stolen copy of it opens nothing.

AES-256-GCM with a fresh data key per secret; the data key is wrapped by a key-encryption key
whose id stands in the record. Who holds that key is a `KeyWrapper`: a key ring from a file or the
environment, or a key service that never gives it out. The associated data of both is the record's
owner and field: a record copied to another row does not open. Several key-encryption keys may be
known at once; the first seals, all of them open.

It refuses to make up a key: a record whose key is not known names that key.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, NoReturn, Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from byoai_gateway.aead import NONCE_BYTES, TAG_BYTES, decrypt, encrypt
from byoai_gateway.refusals import Refusal
from byoai_shared.errors import ByoaiError
from byoai_shared.logs import get_logger

_VERSION: Final = 2
_FIRST_VERSION: Final = 1
"""Its wrapped key was always as long as a ring makes it; later ones say how long theirs is."""
_WRAPPER_S: Final = 5.0
_WRAPPED_BYTES: Final = NONCE_BYTES + 32 + TAG_BYTES
_LENGTH_BYTES: Final = 2

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
            "or vault.keys, or, when it is lost for good: byoai-gateway keys forget"
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
        content = encrypt(data_key, secret, place.associated_data(b"secret", key_id))
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
        except ValueError:
            _refuse(
                place,
                f"the key-encryption key known here as {key_id} is not the one that sealed it, "
                "or it was damaged or moved from another row",
            )
        try:
            return decrypt(data_key, content, place.associated_data(b"secret", key_id))
        except ValueError:
            _refuse(place, "it was damaged")


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
        start, length = 1, _WRAPPED_BYTES
    elif version == _VERSION:
        start = 1 + _LENGTH_BYTES
        length = int.from_bytes(record[1:start], "big")
    else:
        _refuse(place, "it is of an unknown version")
    return record[start : start + length], record[start + length :]


def _refuse(place: Place, why: str) -> NoReturn:
    raise VaultError(f"the sealed {place.field} of {place.owner} does not open: {why}")
