"""Users' settings in the database, and what the router remembers of them for a moment.

While the database does not answer, what is remembered is used for longer (`database.stale_s`).

Keys stand sealed in `secrets`, bound to their user and field. One that does not open is reported
as such: it is never taken for one that is not there. To seal and open them may take seconds, so
it is done outside transactions: nobody else who writes waits for it.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.audit import Action, Audit
from byoai_gateway.clock import Clock
from byoai_gateway.database import Database, DatabaseUnavailable
from byoai_gateway.memory import STALE_S, Memory
from byoai_gateway.preferences.attention import (
    ADDRESS_CHANGED,
    attention_for_tunnel,
    attention_of,
    forget_attention,
    note_attention,
)
from byoai_gateway.preferences.preferences import (
    KEYS,
    Attention,
    Changes,
    Preferences,
    Saved,
    Setting,
    conflicts,
    without_old_key,
)
from byoai_gateway.preferences.rows import find_row, has_tunnel, make_row, place_of, update_row
from byoai_gateway.refusals import invalid_fields, tunnel_not_found
from byoai_gateway.router.upstream import ProviderName
from byoai_gateway.sealed_secrets import SealedSecrets
from byoai_gateway.vault import KeysUnavailable, Sealed, VaultError
from byoai_shared.logs import get_logger
from byoai_shared.secret import Secret

_NOTE_S: Final = 2.0
"""Longest wait for the database when it is only noted how a setting does: an answer waits too."""

_AWAY: Final = (SQLAlchemyError, DatabaseUnavailable, KeysUnavailable, TimeoutError)

_Opened = dict[Sealed, Secret | None]
"""What was in records; None in one that does not open."""

log = get_logger("gateway")


@dataclass(frozen=True, slots=True)
class _Stored:
    """A user's settings as they were read, with keys still sealed."""

    row: Row[Any] | None
    noted: tuple[Attention, ...]
    derived: tuple[Attention, ...]
    """What the database shows to be wrong: to be shown, and not forgotten by a request."""
    sealed: Mapping[Setting, Sealed]

    def is_known(self, opened: _Opened) -> bool:
        """Whether all its keys were opened."""
        return opened.keys() >= set(self.sealed.values())

    def saved(self, opened: _Opened) -> Saved:
        """As values. A key that was not opened is there, and no more is known of it."""
        if self.row is None:
            return Saved()
        keys = {it: opened.get(sealed) for it, sealed in self.sealed.items()}
        return Saved(
            _preferences(self.row, keys, self.noted),
            (*self.noted, *self.derived),
            self.row.updated_at,
        )


class PreferenceStore:
    """The settings of all users."""

    def __init__(
        self,
        database: Database,
        secrets: SealedSecrets,
        audit: Audit,
        clock: Clock,
        *,
        stale_s: float = STALE_S,
    ) -> None:
        """`stale_s`: how old may be what is used while the database does not answer."""
        self._database = database
        self._secrets = secrets
        self._audit = audit
        self._clock = clock
        self._known: Memory[str, Preferences] = Memory(
            self._look_up, database.availability, stale_s=stale_s
        )
        self.on_changed: Callable[[str], None] = _nobody_listens
        """Told whose settings were saved here; of other gateways' it is not told."""

    async def of(self, user_id: str) -> Preferences:
        """What the router goes by: as saved here, or a moment ago elsewhere."""
        return await self._known.get(user_id)

    async def close(self) -> None:
        """End what is being looked up."""
        await self._known.close()

    async def show(self, user_id: str) -> Saved:
        """Everything that is saved, as it is now.

        Raises:
            KeysUnavailable: who holds the key-encryption keys does not answer.
        """
        return await self._saved(user_id, await self._stored(user_id), {})

    async def save(self, user_id: str, changes: Changes) -> Saved:
        """Change some settings, all of them or none; without any nothing is written down.

        A model server's key is removed when its address changes to another server's.

        Raises:
            Refusal: they contradict each other, or the tunnel is not the user's.
            KeysUnavailable: who holds the key-encryption keys does not answer.
        """
        if not changes.settings:
            return await self.show(user_id)
        # What is shown in the answer, and what is to be stored: nobody waits for it in turn.
        opened = await self._open_others(user_id, changes)
        fresh = await self._seal(user_id, changes)
        async with self._database.writing() as connection:
            await make_row(connection, user_id, self._clock())
            before = await self._check(connection, user_id, changes, opened)
            written = without_old_key(before, changes)
            await self._write(connection, user_id, written, fresh)
            if written is not changes:
                await self._note_key_removed(connection, user_id, changes)
            await self._audit.note(
                connection,
                user_id,
                Action.PREFERENCES_SAVED,
                fields=written.settings,
                emptied=written.emptied,
            )
            after = await self._read(connection, user_id)
        self._changed(user_id)
        log.info("preferences.saved", user_id=user_id, count=len(changes.settings))
        opened |= {after.sealed[it]: key for it, key in changes.keys.items() if key is not None}
        return await self._saved(user_id, after, opened)

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
        opened = await self._open_all(user_id)
        async with self._database.writing() as connection:
            if not (await self._agreeing(connection, user_id, {setting}, used, opened)):
                return
            noticed = Attention(setting, code, int(self._clock()))
            await note_attention(connection, user_id, noticed)
        self._known.outdate(user_id)
        log.info("preferences.needs_attention", user_id=user_id, setting=setting, code=code)

    async def _clear(self, user_id: str, settings: frozenset[Setting], used: Preferences) -> None:
        opened = await self._open_all(user_id)
        async with self._database.writing() as connection:
            working = await self._agreeing(connection, user_id, settings, used, opened)
            await forget_attention(connection, user_id, working)
        self._known.outdate(user_id)

    async def _agreeing(
        self,
        connection: AsyncConnection,
        user_id: str,
        settings: Iterable[str],
        used: Preferences,
        opened: _Opened,
    ) -> list[str]:
        """Those of the settings that are still what a request went by."""
        stored = await self._read(connection, user_id)
        if not stored.is_known(opened):
            return []  # a key was saved in this moment: nothing is known of the new one
        now = stored.saved(opened).preferences
        return [it for it in settings if now.agrees_on(it, used)]

    async def _check(
        self, connection: AsyncConnection, user_id: str, changes: Changes, opened: _Opened
    ) -> Preferences:
        """Return what is saved before the changes."""
        tunnel_id = changes.plain.get(Setting.TUNNEL)
        if tunnel_id is not None and not await has_tunnel(connection, user_id, str(tunnel_id)):
            raise tunnel_not_found(Setting.TUNNEL.value)
        before = (await self._read(connection, user_id)).saved(opened).preferences
        if found := conflicts(before, changes):
            raise invalid_fields({str(name): text for name, text in found.items()})
        return before

    async def _note_key_removed(
        self, connection: AsyncConnection, user_id: str, changes: Changes
    ) -> None:
        """Show that the new server has no key; without an address there is nothing to show."""
        if changes.plain[Setting.SELF_HOSTED_URL] is not None:
            noted = Attention(Setting.SELF_HOSTED_KEY, ADDRESS_CHANGED, int(self._clock()))
            await note_attention(connection, user_id, noted)

    async def _write(
        self,
        connection: AsyncConnection,
        user_id: str,
        changes: Changes,
        fresh: Mapping[Setting, Sealed],
    ) -> None:
        await update_row(connection, user_id, changes.plain, self._clock())
        for setting, key in changes.keys.items():
            place, sealed = place_of(user_id, setting), fresh.get(setting)
            if sealed is not None and key is not None and not self._secrets.is_current(sealed):
                # The key was changed since: what seals all anew may have passed here already.
                sealed = await self._secrets.seal(place, key.reveal().encode())
            await self._secrets.replace(connection, place, sealed)
        await forget_attention(connection, user_id, changes.settings)

    async def _seal(self, user_id: str, changes: Changes) -> dict[Setting, Sealed]:
        return {
            setting: await self._secrets.seal(place_of(user_id, setting), key.reveal().encode())
            for setting, key in changes.keys.items()
            if key is not None
        }

    async def _open_others(self, user_id: str, changes: Changes) -> _Opened:
        """The keys that a save does not change."""
        stored = await self._stored(user_id)
        return {
            sealed: await self._open(user_id, setting, sealed)
            for setting, sealed in stored.sealed.items()
            if setting not in changes
        }

    async def _open_all(self, user_id: str) -> _Opened:
        return await self._open_others(user_id, Changes())

    async def _saved(self, user_id: str, stored: _Stored, opened: _Opened) -> Saved:
        """As values, with the keys that were not opened yet."""
        missing = {
            sealed: await self._open(user_id, setting, sealed)
            for setting, sealed in stored.sealed.items()
            if sealed not in opened
        }
        return stored.saved(opened | missing)

    async def _open(self, user_id: str, setting: Setting, sealed: Sealed) -> Secret | None:
        try:
            plain = await self._secrets.open(place_of(user_id, setting), sealed)
        except VaultError:
            log.warning(
                "preferences.key_does_not_open",
                user_id=user_id,
                setting=setting,
                next="the user is asked to enter it again",
            )
            return None
        return Secret(plain.decode())

    async def _stored(self, user_id: str) -> _Stored:
        async with self._database.reading() as connection:
            return await self._read(connection, user_id)

    async def _read(self, connection: AsyncConnection, user_id: str) -> _Stored:
        row = await find_row(connection, user_id)
        if row is None:
            return _Stored(None, (), (), {})
        noted = await attention_of(connection, user_id)
        derived = () if row.tunnel_id is None else await attention_for_tunnel(connection, row)
        found = {it: await self._secrets.look(connection, place_of(user_id, it)) for it in KEYS}
        return _Stored(
            row, noted, derived, {it: key for it, key in found.items() if key is not None}
        )


def _preferences(
    row: Row[Any], keys: Mapping[Setting, Secret | None], noted: tuple[Attention, ...]
) -> Preferences:
    return Preferences(
        provider=ProviderName(row.ai_provider),
        openrouter_key=keys.get(Setting.OPENROUTER_KEY),
        openrouter_model=row.openrouter_model,
        fallback_to_default=row.fallback_to_default,
        tunnel_id=row.tunnel_id,
        self_hosted_url=row.self_hosted_url,
        self_hosted_key=keys.get(Setting.SELF_HOSTED_KEY),
        self_hosted_model=row.self_hosted_model,
        always_use_my_model=row.always_use_my_model,
        attention={it.setting: it.code for it in noted},
        needs_reentry=frozenset(setting.value for setting, key in keys.items() if key is None),
    )


def _nobody_listens(_: str) -> None:
    """Until somebody does."""


def _log_lost(setting: str, error: Exception) -> None:
    log.warning("preferences.attention_lost", setting=setting, reason=type(error).__name__)
