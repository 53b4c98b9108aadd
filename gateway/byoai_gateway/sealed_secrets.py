"""The one table that holds secrets: each sealed for its owner and field, opened on demand.

Callers bring the transaction, so that a secret and what it belongs to are stored together.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.config import VaultSection
from byoai_gateway.database import Database
from byoai_gateway.key_file import KeyFile
from byoai_gateway.schema import secrets
from byoai_gateway.vault import (
    Place,
    Sealed,
    Vault,
    VaultError,
    VaultKeyMissing,
    create_ring,
    load_ring,
)
from byoai_shared.config import ConfigError
from byoai_shared.logs import get_logger

_REWRAP_AT_ONCE: Final = 200

log = get_logger("gateway")


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """How many records were sealed anew, and how many did not open."""

    done: int
    failed: int


class SealedSecrets:
    """Puts secrets into the table and gets them out."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._rewrapped_for: str | None = None

    async def put(self, connection: AsyncConnection, place: Place, secret: bytes) -> None:
        """Store a new secret."""
        sealed = await self._vault.seal(place, secret)
        await connection.execute(
            insert(secrets).values(
                owner=place.owner,
                field=place.field,
                key_id=sealed.key_id,
                sealed=sealed.content,
            )
        )

    async def get(self, connection: AsyncConnection, place: Place) -> bytes:
        """Open a secret that must be there.

        Raises:
            VaultError: it does not open.
        """
        secret = await self.find(connection, place)
        if secret is None:
            raise VaultError(f"the sealed {place.field} of {place.owner} is not there")
        return secret

    async def find(self, connection: AsyncConnection, place: Place) -> bytes | None:
        """Open a secret; None when there is none.

        Raises:
            VaultError: there is one, and it does not open.
        """
        row = (
            await connection.execute(
                select(secrets.c.key_id, secrets.c.sealed).where(
                    secrets.c.owner == place.owner, secrets.c.field == place.field
                )
            )
        ).one_or_none()
        return (
            None if row is None else await self._vault.open(place, Sealed(row.key_id, row.sealed))
        )

    async def delete(self, connection: AsyncConnection, place: Place) -> None:
        """Forget a secret."""
        await connection.execute(
            delete(secrets).where(secrets.c.owner == place.owner, secrets.c.field == place.field)
        )

    async def follow_key(self, database: Database) -> None:
        """Seal anew what older keys sealed, once for each key that comes to seal here.

        Not again and again: two gateways in the middle of a change, one with the new key first
        and one with the old, would undo each other's work all the while.
        """
        key_id = self._vault.current_key_id
        if key_id != self._rewrapped_for:
            await self.rewrap(database)
            self._rewrapped_for = key_id

    async def rewrap(self, database: Database) -> Rewrapped:
        """Seal all records of older keys with the current one, some at a time.

        A record that does not open stays as it is and stops nothing. Once none is left, the older
        keys may be taken away.
        """
        done = failed = 0
        after: Place | None = None
        while rows := await self._rewrap_some(database, after):
            opened = sum(rows.values())
            done, failed = done + opened, failed + len(rows) - opened
            after = list(rows)[-1]
        if failed:
            log.error("vault.records_do_not_open", count=failed, next="enter those secrets again")
        return Rewrapped(done, failed)

    async def _rewrap_some(self, database: Database, after: Place | None) -> dict[Place, bool]:
        """The next records in order, and whether each of them opened."""
        query = select(secrets).where(secrets.c.key_id != self._vault.current_key_id)
        if after is not None:
            query = query.where(
                (secrets.c.owner > after.owner)
                | ((secrets.c.owner == after.owner) & (secrets.c.field > after.field))
            )
        query = query.order_by(secrets.c.owner, secrets.c.field).limit(_REWRAP_AT_ONCE)
        async with database.writing() as connection:
            return {
                Place(row.owner, row.field): await self._rewrap_one(connection, row)
                for row in (await connection.execute(query)).all()
            }

    async def _rewrap_one(self, connection: AsyncConnection, row: Row[Any]) -> bool:
        place = Place(row.owner, row.field)
        try:
            plain = await self._vault.open(place, Sealed(row.key_id, row.sealed))
        except VaultError:
            return False
        sealed = await self._vault.seal(place, plain)
        await connection.execute(
            update(secrets)
            .where(secrets.c.owner == row.owner, secrets.c.field == row.field)
            .values(key_id=sealed.key_id, sealed=sealed.content)
        )
        return True


async def open_secrets(database: Database, settings: VaultSection) -> SealedSecrets:
    """Load the key-encryption keys, or make the first one for an empty database.

    Raises:
        VaultKeyMissing: the database needs a key that is not there.
        ConfigError: the keys cannot be read, or are all missing.
    """
    in_use = await _keys_in_use(database)
    ring = load_ring(settings)
    if ring is None:
        if in_use:
            raise ConfigError(
                f"vault.key_file {settings.key_file} is missing, and the database holds secrets "
                f"sealed with key {', '.join(sorted(in_use))}; put the file back"
            )
        ring = create_ring(settings.key_file)
        log.info("vault.key_created", key_id=ring.current, path=str(settings.key_file))
    vault = Vault(KeyFile(settings, ring) if settings.keys is None else ring)
    if missing := vault.missing_keys(in_use):
        raise VaultKeyMissing(missing)
    return SealedSecrets(vault)


async def _keys_in_use(database: Database) -> set[str]:
    async with database.reading() as connection:
        found = await connection.scalars(select(secrets.c.key_id).distinct())
        return set(found)
