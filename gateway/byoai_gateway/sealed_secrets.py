"""The one table that holds secrets: each sealed for its owner and field, opened on demand.

Callers bring the transaction, so that a secret and what it belongs to are stored together. To seal
and to open asks who holds the keys, which may take seconds: who writes much or often does that
before or after the transaction, with `seal` and `open`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.config import VaultSection
from byoai_gateway.database import Database
from byoai_gateway.key_file import KeyFile
from byoai_gateway.key_ring import create_ring, load_ring
from byoai_gateway.key_use import FORGOTTEN, keys_in_use
from byoai_gateway.schema import secrets
from byoai_gateway.vault import (
    Place,
    Sealed,
    Vault,
    VaultError,
    VaultKeyMissing,
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


def _never() -> bool:
    return False


class SealedSecrets:
    """Puts secrets into the table and gets them out."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._rewrapped_for: str | None = None

    async def put(self, connection: AsyncConnection, place: Place, secret: bytes) -> None:
        """Store a new secret."""
        await self._insert(connection, place, await self._vault.seal(place, secret))

    async def seal(self, place: Place, secret: bytes) -> Sealed:
        """Seal a secret that is to be stored with `replace`.

        Raises:
            KeysUnavailable: who holds the keys does not answer.
        """
        return await self._vault.seal(place, secret)

    def is_current(self, sealed: Sealed) -> bool:
        """Whether the key that sealed a record is still the one that seals."""
        return sealed.key_id == self._vault.current_key_id

    async def replace(
        self, connection: AsyncConnection, place: Place, sealed: Sealed | None
    ) -> None:
        """Store what was sealed in the place of what was there; None stores nothing."""
        await self.delete(connection, place)
        if sealed is not None:
            await self._insert(connection, place, sealed)

    async def get(self, connection: AsyncConnection, place: Place) -> bytes:
        """Open a secret that must be there.

        Raises:
            VaultError: it does not open.
        """
        sealed = await self.look(connection, place)
        if sealed is None:
            raise VaultError(f"the sealed {place.field} of {place.owner} is not there")
        return await self._vault.open(place, sealed)

    async def look(self, connection: AsyncConnection, place: Place) -> Sealed | None:
        """A secret as it is stored, unopened; None when there is none."""
        row = (
            await connection.execute(
                select(secrets.c.key_id, secrets.c.sealed).where(
                    secrets.c.owner == place.owner, secrets.c.field == place.field
                )
            )
        ).one_or_none()
        return None if row is None else Sealed(row.key_id, row.sealed)

    async def open(self, place: Place, sealed: Sealed) -> bytes:
        """Open what `look` found.

        Raises:
            VaultError: it does not open.
            KeysUnavailable: who holds the keys does not answer.
        """
        return await self._vault.open(place, sealed)

    async def delete(self, connection: AsyncConnection, place: Place) -> None:
        """Forget a secret."""
        await connection.execute(
            delete(secrets).where(secrets.c.owner == place.owner, secrets.c.field == place.field)
        )

    async def follow_key(self, database: Database, is_over: Callable[[], bool] = _never) -> None:
        """Seal anew what older keys sealed, once for each key that comes to seal here.

        Not again and again: two gateways in the middle of a change, one with the new key first
        and one with the old, would undo each other's work all the while.
        """
        key_id = self._vault.current_key_id
        if key_id != self._rewrapped_for:
            await self.rewrap(database, is_over)
            if not is_over():
                self._rewrapped_for = key_id

    async def rewrap(self, database: Database, is_over: Callable[[], bool] = _never) -> Rewrapped:
        """Seal all records of older keys with the current one, some at a time.

        A record that does not open stays as it is and stops nothing. Once none is left, the older
        keys may be taken away. `is_over` is asked between them and ends it early.
        """
        done = failed = 0
        for key_id in await self._older_keys(database):
            after = Place("", "")
            while (rows := await self._sealed_with(database, key_id, after)) and not is_over():
                anew = [await self._sealed_anew(row) for row in rows]
                done += await self._store_anew(database, rows, anew)
                failed += anew.count(None)
                after = Place(rows[-1].owner, rows[-1].field)
        if failed:
            log.error("vault.records_do_not_open", count=failed, next="enter those secrets again")
        return Rewrapped(done, failed)

    async def _older_keys(self, database: Database) -> list[str]:
        """The keys besides the current one that records are sealed with.

        One question for each key, which an index answers; all at once would read every record.
        """
        found: list[str] = []
        known: str | None = FORGOTTEN
        async with database.reading() as connection:
            while known is not None:
                known = await connection.scalar(
                    select(func.min(secrets.c.key_id)).where(secrets.c.key_id > known)
                )
                if known is not None and known != self._vault.current_key_id:
                    found.append(known)
        return found

    async def _sealed_with(self, database: Database, key_id: str, after: Place) -> list[Row[Any]]:
        """The next records of a key in order."""
        query = (
            select(secrets)
            .where(
                secrets.c.key_id == key_id,
                tuple_(secrets.c.owner, secrets.c.field) > (after.owner, after.field),
            )
            .order_by(secrets.c.owner, secrets.c.field)
            .limit(_REWRAP_AT_ONCE)
        )
        async with database.reading() as connection:
            return list((await connection.execute(query)).all())

    async def _sealed_anew(self, row: Row[Any]) -> Sealed | None:
        """A record sealed with the current key; None when it does not open."""
        place = Place(row.owner, row.field)
        try:
            plain = await self._vault.open(place, Sealed(row.key_id, row.sealed))
        except VaultError:
            return None
        return await self._vault.seal(place, plain)

    async def _store_anew(
        self, database: Database, rows: list[Row[Any]], anew: list[Sealed | None]
    ) -> int:
        """Store those that are still as they were read; answers how many that is."""
        done = 0
        async with database.writing() as connection:
            for row, sealed in zip(rows, anew, strict=True):
                if sealed is None:
                    continue
                stored = await connection.execute(
                    update(secrets)
                    .where(
                        secrets.c.owner == row.owner,
                        secrets.c.field == row.field,
                        secrets.c.sealed == row.sealed,
                    )
                    .values(key_id=sealed.key_id, sealed=sealed.content)
                )
                done += stored.rowcount
        return done

    async def _insert(self, connection: AsyncConnection, place: Place, sealed: Sealed) -> None:
        await connection.execute(
            insert(secrets).values(
                owner=place.owner,
                field=place.field,
                key_id=sealed.key_id,
                sealed=sealed.content,
            )
        )


async def open_secrets(
    database: Database, settings: VaultSection, *, may_create: bool = True
) -> SealedSecrets:
    """Load the key-encryption keys, or make the first one for an empty database.

    Users' keys whose key-encryption key is not known stop nothing: they are to be entered again.
    Without a secret of the gateway's own it cannot do its work, and does not start.

    Raises:
        VaultKeyMissing: a secret of the gateway's own needs a key that is not there.
        ConfigError: the keys cannot be read, or are all missing.
    """
    async with database.reading() as connection:
        in_use = await keys_in_use(connection)
    ring = load_ring(settings)
    if ring is None:
        if in_use:
            raise ConfigError(
                f"vault.key_file {settings.key_file.absolute()} is missing, and the database "
                f"holds secrets sealed with key {', '.join(sorted(in_use))}; put the file back, "
                "or, when it is lost for good: byoai-gateway keys forget"
            )
        if not may_create:
            raise ConfigError(
                f"there is no vault.key_file {settings.key_file.absolute()}; run this in the "
                "folder in which the gateway serves, or give its --config; the first "
                "`byoai-gateway serve` makes the file"
            )
        ring = create_ring(settings.key_file)
        log.info("vault.key_created", key_id=ring.current, path=str(settings.key_file))
    vault = Vault(KeyFile(settings, ring) if settings.keys is None else ring)
    missing = {key_id: in_use[key_id] for key_id in vault.missing_keys(set(in_use))}
    if own := {key_id for key_id, count in missing.items() if count.is_own}:
        raise VaultKeyMissing(own)
    if missing:
        log.warning(
            "vault.users_keys_do_not_open",
            count=sum(it.users for it in missing.values()),
            keys=sorted(missing),
            next="their users are asked to enter them again; put the named keys back into "
            "vault.key_file or vault.keys, or, when they are lost for good: "
            "byoai-gateway keys forget",
        )
    return SealedSecrets(vault)
