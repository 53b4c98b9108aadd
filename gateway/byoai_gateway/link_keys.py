"""Which link key an agent may prove itself with: the current one, and for a moment the one before.

An agent's answer to a renewal may get lost. Until the new key has been used once, the key before
may still fetch tokens, and may ask again for a certificate of the very same new key (whoever has
both keys is the agent, not a copy of its old state). Anything else signed by a replaced key is
told `key_replaced`; a renewal signed by one means that two hosts have the agent's state, unless it
repeats one that was answered long ago: that is a backup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway import schema
from byoai_gateway.authorities import Issued
from byoai_shared.identity import key_thumbprint

KEYS_REMEMBERED: Final = 64
"""Per agent: with daily certificates a copied state is recognised for weeks."""


@dataclass(frozen=True, slots=True)
class LinkKey:
    """A link key of an agent and the certificate it has."""

    generation: int
    public_key: bytes
    """DER; equal exactly when the keys are."""
    certificate_thumbprint: str
    certificate_expires_at: int
    is_confirmed: bool

    def load(self) -> ec.EllipticCurvePublicKey:
        """The key, to check signatures with."""
        key = load_der_public_key(self.public_key)
        assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 -- only such are stored
        return key


class Standing(Enum):
    """What a key may do."""

    CURRENT = auto()
    PREVIOUS = auto()
    """Its successor was never used: the agent may not have got it."""
    REPLACED = auto()


def standing(key: LinkKey, keys: Sequence[LinkKey]) -> Standing:
    """What one of an agent's keys may do."""
    current = max(keys, key=lambda it: it.generation)
    if key.generation == current.generation:
        return Standing.CURRENT
    if key.generation == current.generation - 1 and not current.is_confirmed:
        return Standing.PREVIOUS
    return Standing.REPLACED


class Renewal(Enum):
    """What a request for a certificate is."""

    NEW_KEY = auto()
    SAME_AGAIN = auto()
    """The answer to the same renewal was lost."""
    KEY_REUSED = auto()
    """It names a key that the agent has had; each certificate gets a new one."""
    OLD_STATE = auto()
    """It repeats an old renewal: the state was restored from a backup made in the middle of it."""
    CLONE = auto()
    """It comes from a key that was replaced by another."""


def renewal(signer: LinkKey, requested: bytes, keys: Sequence[LinkKey]) -> Renewal:
    """What a renewal signed by `signer` for the key `requested` is."""
    current = max(keys, key=lambda it: it.generation)
    if signer.generation == current.generation:
        is_known = any(key.public_key == requested for key in keys)
        return Renewal.KEY_REUSED if is_known else Renewal.NEW_KEY
    next_generation = signer.generation + 1
    successors = [key.public_key for key in keys if key.generation == next_generation]
    if requested not in successors:
        return Renewal.CLONE
    return Renewal.SAME_AGAIN if next_generation == current.generation else Renewal.OLD_STATE


def signers(keys: Sequence[LinkKey], key_id: str) -> Sequence[LinkKey]:
    """Return those of `keys`, newest first, to verify an assertion with: the one that it names.

    Assertions of older agents name none. They are tried with the keys that may do something: the
    current one, and the one before it until the current one has been used.
    """
    if key_id:
        return [key for key in keys if key_thumbprint(key.public_key) == key_id]
    return [key for key in keys[:2] if standing(key, keys) is not Standing.REPLACED]


async def load_keys(connection: AsyncConnection, agent_id: str) -> list[LinkKey]:
    """The keys of an agent that are remembered, the newest first."""
    table = schema.link_keys
    rows = await connection.execute(
        select(table)
        .where(table.c.agent_id == agent_id)
        .order_by(table.c.generation.desc())
        .limit(KEYS_REMEMBERED)
    )
    return [_link_key(row) for row in rows]


async def has_newest_key(connection: AsyncConnection, agent_id: str, key_id: str) -> bool:
    """Whether a thumbprint is that of an agent's newest key."""
    keys = await load_keys(connection, agent_id)
    return bool(keys) and key_thumbprint(keys[0].public_key) == key_id


async def add_key(
    connection: AsyncConnection, agent_id: str, generation: int, key: bytes, issued: Issued
) -> None:
    """Store a new current key; those that are too many are forgotten."""
    table = schema.link_keys
    await connection.execute(
        insert(table).values(
            agent_id=agent_id,
            generation=generation,
            public_key=key,
            certificate_thumbprint=issued.thumbprint,
            certificate_expires_at=issued.expires_at,
        )
    )
    await connection.execute(
        delete(table).where(
            table.c.agent_id == agent_id, table.c.generation <= generation - KEYS_REMEMBERED
        )
    )


async def end_certificate(connection: AsyncConnection, agent_id: str, now: float) -> None:
    """Let the certificates of an agent be over now: it must renew before it gets a token."""
    table = schema.link_keys
    await connection.execute(
        update(table)
        .where(table.c.agent_id == agent_id, table.c.certificate_expires_at > int(now))
        .values(certificate_expires_at=int(now))
    )


async def reissued(
    connection: AsyncConnection, agent_id: str, generation: int, issued: Issued
) -> None:
    """Store that a key has another certificate now."""
    table = schema.link_keys
    await connection.execute(
        update(table)
        .where(table.c.agent_id == agent_id, table.c.generation == generation)
        .values(certificate_thumbprint=issued.thumbprint, certificate_expires_at=issued.expires_at)
    )


async def confirm_key(
    connection: AsyncConnection, agent_id: str, generation: int, now: float
) -> None:
    """Store that the agent has used a key: its predecessor is replaced for good."""
    table = schema.link_keys
    await connection.execute(
        update(table)
        .where(
            table.c.agent_id == agent_id,
            table.c.generation == generation,
            table.c.confirmed_at.is_(None),
        )
        .values(confirmed_at=int(now))
    )


def _link_key(row: Row[Any]) -> LinkKey:
    return LinkKey(
        generation=row.generation,
        public_key=row.public_key,
        certificate_thumbprint=row.certificate_thumbprint,
        certificate_expires_at=row.certificate_expires_at,
        is_confirmed=row.confirmed_at is not None,
    )
