"""Users' settings in the database, and what the router remembers of them for a moment.

Keys stand sealed in `secrets`, bound to their user and field. One that does not open is reported
as such: it is never taken for one that is not there.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final

from sqlalchemy import Row, Table, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway import schema
from byoai_gateway.audit import Action, Audit
from byoai_gateway.clock import Clock
from byoai_gateway.database import Database, DatabaseUnavailable
from byoai_gateway.memory import Memory
from byoai_gateway.preferences.preferences import (
    KEYS,
    Attention,
    Changes,
    Preferences,
    Saved,
    Setting,
    conflicts,
)
from byoai_gateway.refusals import invalid_fields, tunnel_not_found
from byoai_gateway.router.upstream import ProviderName
from byoai_gateway.sealed_secrets import SealedSecrets
from byoai_gateway.vault import KeysUnavailable, Place, VaultError
from byoai_shared.logs import get_logger
from byoai_shared.secret import Secret

_COLUMNS: Final = {
    Setting.PROVIDER: "ai_provider",
    Setting.OPENROUTER_MODEL: "openrouter_model",
    Setting.FALLBACK: "fallback_to_default",
    Setting.TUNNEL: "tunnel_id",
    Setting.SELF_HOSTED_URL: "self_hosted_url",
}
_LONGEST_OWNER: Final = 200
_NOTE_S: Final = 2.0
"""Longest wait for the database when it is only noted how a setting does: an answer waits too."""

_AWAY: Final = (SQLAlchemyError, DatabaseUnavailable, KeysUnavailable, TimeoutError)

TUNNEL_NOT_FOUND: Final = "tunnel_not_found"
TUNNEL_LOCKED: Final = "tunnel_locked"

log = get_logger("gateway")


class PreferenceStore:
    """The settings of all users."""

    def __init__(
        self, database: Database, secrets: SealedSecrets, audit: Audit, clock: Clock
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._audit = audit
        self._clock = clock
        self._known: Memory[str, Preferences] = Memory(self._look_up)
        self.on_changed: Callable[[str], None] = _nobody_listens
        """Told whose settings were saved here; of other gateways' it is not told."""

    async def of(self, user_id: str) -> Preferences:
        """What the router goes by: as saved here, or a moment ago elsewhere."""
        return await self._known.get(user_id)

    async def show(self, user_id: str) -> Saved:
        """Everything that is saved, as it is now."""
        async with self._database.reading() as connection:
            return await self._read(connection, user_id)

    async def save(self, user_id: str, changes: Changes) -> Saved:
        """Change some settings, all of them or none; without any nothing is written down.

        Raises:
            Refusal: they contradict each other, or the tunnel is not the user's.
        """
        if not changes.settings:
            return await self.show(user_id)
        async with self._database.writing() as connection:
            await self._make_row(connection, user_id)
            before = await self._read(connection, user_id)
            await _check_tunnel(connection, user_id, changes)
            if found := conflicts(before.preferences, changes):
                raise invalid_fields({str(name): text for name, text in found.items()})
            await self._write(connection, user_id, changes)
            await self._audit.note(
                connection, user_id, Action.PREFERENCES_SAVED, fields=changes.settings
            )
            after = await self._read(connection, user_id)
        self._changed(user_id)
        log.info("preferences.saved", user_id=user_id, count=len(changes.settings))
        return after

    async def note_attention(
        self, user_id: str, setting: str, code: str, used: Preferences
    ) -> None:
        """Remember that a setting stopped working; what is remembered already costs nothing.

        Since when stays as it is while it fails; why is the newest reason.
        `used` is what the request that failed went by: nothing is remembered of a value that was
        replaced since. A database that is away, or who holds the keys, is logged: the answer that
        this comes with must not fail for it.
        """
        try:
            async with asyncio.timeout(_NOTE_S):
                if (await self.of(user_id)).attention.get(setting) != code:
                    await self._note(user_id, setting, code, used)
        except _AWAY as error:
            _log_lost(setting, error)

    async def clear_attention(
        self, user_id: str, settings: Iterable[Setting], used: Preferences
    ) -> None:
        """Forget that settings had stopped working: they work again, as they were in `used`."""
        wanted = frozenset(settings)
        try:
            async with asyncio.timeout(_NOTE_S):
                if not wanted.isdisjoint((await self.of(user_id)).attention):
                    await self._clear(user_id, wanted, used)
        except _AWAY as error:
            _log_lost(",".join(sorted(wanted)), error)

    # -- within

    def _changed(self, user_id: str) -> None:
        self._known.forget(user_id)
        self.on_changed(user_id)

    async def _look_up(self, user_id: str) -> Preferences:
        return (await self.show(user_id)).preferences

    async def _note(self, user_id: str, setting: str, code: str, used: Preferences) -> None:
        async with self._database.writing() as connection:
            now = (await self._read(connection, user_id)).preferences
            if not now.agrees_on(setting, used):
                return
            await _note_attention(
                connection, Attention(setting, code, since=int(self._clock())), user_id
            )
        self._known.forget(user_id)
        log.info("preferences.needs_attention", user_id=user_id, setting=setting, code=code)

    async def _clear(self, user_id: str, settings: frozenset[Setting], used: Preferences) -> None:
        async with self._database.writing() as connection:
            now = (await self._read(connection, user_id)).preferences
            working = tuple(it for it in settings if now.agrees_on(it, used))
            await _forget_attention(connection, user_id, working)
        self._known.forget(user_id)

    async def _make_row(self, connection: AsyncConnection, user_id: str) -> None:
        await _insert_if_absent(
            connection,
            schema.preferences,
            user_id=user_id,
            ai_provider=ProviderName.DEFAULT.value,
            fallback_to_default=False,
            updated_at=int(self._clock()),
        )

    async def _write(self, connection: AsyncConnection, user_id: str, changes: Changes) -> None:
        table = schema.preferences
        values: dict[str, Any] = {_COLUMNS[it]: value for it, value in changes.plain.items()}
        await connection.execute(
            update(table)
            .where(table.c.user_id == user_id)
            .values(updated_at=int(self._clock()), **values)
        )
        for setting, key in changes.keys.items():
            place = place_of(user_id, setting)
            await self._secrets.delete(connection, place)
            if key is not None:
                await self._secrets.put(connection, place, key.reveal().encode())
        await _forget_attention(connection, user_id, changes.settings)

    async def _read(self, connection: AsyncConnection, user_id: str) -> Saved:
        table = schema.preferences
        row = (
            await connection.execute(select(table).where(table.c.user_id == user_id))
        ).one_or_none()
        if row is None:
            return Saved()
        attention = await _attention_of(connection, user_id)
        if row.tunnel_id is not None:
            attention += await _attention_for_tunnel(connection, row)
        keys: dict[Setting, Secret] = {}
        closed: set[Setting] = set()
        for setting in KEYS:
            try:
                plain = await self._secrets.find(connection, place_of(user_id, setting))
            except VaultError:
                log.warning("preferences.key_does_not_open", user_id=user_id, setting=setting)
                closed.add(setting)
            else:
                if plain is not None:
                    keys[setting] = Secret(plain.decode())
        return Saved(_preferences(row, keys, closed, attention), attention, row.updated_at)


def place_of(user_id: str, setting: Setting) -> Place:
    """Where a user's key is stored; ids that are too long for the column stand as their hash."""
    if len(user_id) <= _LONGEST_OWNER:
        return Place(f"user/{user_id}", setting.value)
    return Place(f"user-sha256/{hashlib.sha256(user_id.encode()).hexdigest()}", setting.value)


def _preferences(
    row: Row[Any],
    keys: dict[Setting, Secret],
    closed: set[Setting],
    attention: tuple[Attention, ...],
) -> Preferences:
    return Preferences(
        provider=ProviderName(row.ai_provider),
        openrouter_key=keys.get(Setting.OPENROUTER_KEY),
        openrouter_model=row.openrouter_model,
        fallback_to_default=row.fallback_to_default,
        tunnel_id=row.tunnel_id,
        self_hosted_url=row.self_hosted_url,
        self_hosted_key=keys.get(Setting.SELF_HOSTED_KEY),
        attention={it.setting: it.code for it in attention},
        needs_reentry=frozenset(setting.value for setting in closed),
    )


async def _attention_of(connection: AsyncConnection, user_id: str) -> tuple[Attention, ...]:
    table = schema.attention
    rows = await connection.execute(
        select(table).where(table.c.user_id == user_id).order_by(table.c.setting)
    )
    return tuple(Attention(row.setting, row.code, row.noticed_at) for row in rows)


async def _attention_for_tunnel(
    connection: AsyncConnection, row: Row[Any]
) -> tuple[Attention, ...]:
    """Say that the chosen tunnel is gone or locked: nobody has to fail by it to be shown that."""
    table = schema.tunnels
    found = (
        await connection.execute(
            select(table.c.revoked_at, table.c.locked_at).where(
                table.c.tunnel_id == row.tunnel_id, table.c.user_id == row.user_id
            )
        )
    ).one_or_none()
    if found is None or found.revoked_at is not None:
        since = row.updated_at if found is None else found.revoked_at
        return (Attention(Setting.TUNNEL, TUNNEL_NOT_FOUND, since),)
    if found.locked_at is not None:
        return (Attention(Setting.TUNNEL, TUNNEL_LOCKED, found.locked_at),)
    return ()


async def _note_attention(connection: AsyncConnection, noted: Attention, user_id: str) -> None:
    table = schema.attention
    await _insert_if_absent(
        connection,
        table,
        user_id=user_id,
        setting=noted.setting,
        code=noted.code,
        noticed_at=noted.since,
    )
    await connection.execute(
        update(table)
        .where(
            table.c.user_id == user_id,
            table.c.setting == noted.setting,
            table.c.code != noted.code,
        )
        .values(code=noted.code)
    )


async def _forget_attention(
    connection: AsyncConnection, user_id: str, settings: tuple[str, ...]
) -> None:
    table = schema.attention
    await connection.execute(
        delete(table).where(
            table.c.user_id == user_id, table.c.setting.in_([str(it) for it in settings])
        )
    )


async def _check_tunnel(connection: AsyncConnection, user_id: str, changes: Changes) -> None:
    tunnel_id = changes.plain.get(Setting.TUNNEL)
    if tunnel_id is None:
        return
    if not await _has_tunnel(connection, user_id, str(tunnel_id)):
        raise tunnel_not_found(Setting.TUNNEL.value)


async def _has_tunnel(connection: AsyncConnection, user_id: str, tunnel_id: str) -> bool:
    table = schema.tunnels
    found = await connection.scalar(
        select(table.c.tunnel_id).where(
            table.c.tunnel_id == tunnel_id,
            table.c.user_id == user_id,
            table.c.revoked_at.is_(None),
        )
    )
    return found is not None


async def _insert_if_absent(connection: AsyncConnection, table: Table, **values: object) -> None:
    """Insert a row unless its key is taken; SQL has no common word for it."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    await connection.execute(make(table).values(**values).on_conflict_do_nothing())


def _nobody_listens(_: str) -> None:
    """Until somebody does."""


def _log_lost(setting: str, error: Exception) -> None:
    log.warning("preferences.attention_lost", setting=setting, reason=type(error).__name__)
