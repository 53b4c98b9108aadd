"""What relays are to believe, as the database has it, for the links that send it to them.

The state is kept in memory and read again, as far as it changed, when its revision moved. In one
process a change is published by its author; changes of other processes (another gateway, the
command line) are found by reading the revision every second.

A database that was restored from a backup is older than what relays hold, and relays do not go
back. They report what they hold; a revision that the database has not reached yet makes the
gateway raise the database's own above it, so that the restored state is believed.
"""

import asyncio
import sys
from typing import Final

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.clock import Clock
from byoai_gateway.config import TokensSection
from byoai_gateway.database import Database, DatabaseUnavailable
from byoai_gateway.denials import cutoffs, tidy_denials
from byoai_gateway.revision import raise_revision, trust_revision
from byoai_gateway.schema import denials, signing_keys
from byoai_shared.logs import get_logger
from byoai_shared.protocol.trust import (
    MAX_DENIALS,
    MAX_OVERTAKEN_MS,
    Denial,
    DenialSet,
    Trust,
    TrustHeld,
    trust_digest,
)

_RAISED_AGAIN_S: Final = 1.0

log = get_logger("gateway")


class TrustSource:
    """Gives the trust in force, whole or since a revision, and wakes those that wait for more."""

    def __init__(
        self,
        database: Database,
        rules: TokensSection,
        clock: Clock,
        max_denials: int = MAX_DENIALS,
    ) -> None:
        self._database = database
        self._rules = rules
        self._clock = clock
        self._max_denials = max_denials
        self._revision = 0
        # Whether the rows that were read before may be missing from the database, or differ.
        self._must_read_all = True
        self._digest = ""
        self._keys: tuple[dict[str, str], ...] = ()
        self._cutoffs = (0, 0)
        self._denials = _all_denials()
        # By subject, in the order of their revisions: what a relay lacks stands at the end.
        self._changes: dict[str, tuple[int, Denial]] = {}
        self._floor = 0
        self._raised_at = 0.0
        self._refreshing = asyncio.Lock()
        self._newer = asyncio.Event()

    @property
    def held(self) -> TrustHeld:
        """The trust in force, in a few bytes, as a relay would report it."""
        return TrustHeld(revision=self._revision, digest=self._digest)

    def update(self, held: TrustHeld) -> Trust | None:
        """Return what a relay lacks that reported `held`; None if that is nothing."""
        if self._revision <= held.revision:
            return None
        return self.since(held.revision)

    def since(self, base: int) -> Trust:
        """Return the trust in force, with the denials that changed after `base`; 0 for all."""
        changed: list[Denial] = []
        for revision, denial in reversed(self._changes.values()):
            if revision <= base:
                break
            changed.append(denial)
        expired_before, issued_after = self._cutoffs
        return Trust(
            revision=self._revision,
            base=base,
            digest=self._digest,
            issuer=self._rules.issuer,
            audience=self._rules.audience,
            keys=self._keys,
            denials=tuple(reversed(changed)) if base else tuple(self._denials),
            expired_before=expired_before,
            issued_after=issued_after,
        )

    async def changed(self, revision: int) -> None:
        """Wait for a trust newer than `revision`."""
        while self._revision <= revision:
            await self._newer.wait()

    async def overtake(self, held: TrustHeld, *, is_first: bool) -> None:
        """Make sure that the revision in force is, or soon will be, above what a relay holds.

        `is_first` says that it is the relay's first report on a link: then the same revision with
        another digest is a difference to settle, and not one between two gateways' settings.

        Raises:
            DatabaseUnavailable: the database does not answer; the next `refresh` makes up for it.
            SQLAlchemyError: the database refused; likewise.
        """
        if held.revision > self._clock() * 1000 + MAX_OVERTAKEN_MS:
            log.warning(
                "trust.revision_refused",
                revision=held.revision,
                reason="a relay reports a revision that is about a day or more ahead",
                next="it is looked at again; check both clocks; if they are right, revoke the "
                "certificate of that relay or of the gateway that told it so",
            )
            return
        # Before anything that may fail, so that `refresh` makes up for it later.
        self._floor = max(self._floor, held.revision)
        await self.refresh()
        is_same = held.revision == self._revision
        if is_first and is_same and held.digest != self._digest:
            self._floor = max(self._floor, held.revision + 1)
            await self.refresh()

    async def refresh(self) -> bool:
        """Read what changed in the database, if its revision moved; return whether it did."""
        async with self._refreshing:
            async with self._database.reading() as connection:
                stored = await trust_revision(connection)
                is_behind = stored < max(self._revision, self._floor)
                if stored == self._revision and not is_behind:
                    return False
                if not is_behind:
                    await self._read(connection)
            if is_behind and not await self._raise():
                return False
            # An event each: those who wait for this one wake, later comers wait for the next.
            woken, self._newer = self._newer, asyncio.Event()
            woken.set()
            return True

    async def publish(self) -> None:
        """Refresh after a change was committed.

        A failure is logged and not raised: what was done is done, and its caller must not be
        answered otherwise. The periodic look publishes it within a second of the database's return.
        """
        try:
            await self.refresh()
        except (DatabaseUnavailable, SQLAlchemyError) as error:
            log.warning(
                "trust.publish_delayed",
                reason=f"the database did not answer ({type(error).__name__})",
                next="none; relays are sent the change once the database answers",
            )

    async def tidy(self) -> None:
        """Forget the denials that ended, and those that are too many."""
        async with self._database.writing() as connection:
            await tidy_denials(
                connection,
                self._max_denials,
                self._clock(),
                known=len(self._denials),
                known_revision=self._revision,
            )

    async def _raise(self) -> bool:
        """Raise the database's revision and read everything again; at most once a second.

        More often would let a stranger with a stolen certificate keep the writers busy.
        """
        now = self._clock()
        if abs(now - self._raised_at) < _RAISED_AGAIN_S:
            return False
        self._raised_at = now
        above = max(self._revision, self._floor)
        # Until all was read: a task that is cancelled here leaves that to the next `refresh`.
        self._must_read_all = True
        async with self._database.writing() as connection:
            await raise_revision(connection, above, now)
        async with self._database.reading() as connection:
            await self._read(connection)
        log.warning(
            "trust.raised",
            revision=self._revision,
            reason="relays hold a trust that is not in this database",
            next="if the database was restored from a backup, tunnels that were revoked since "
            "then are active again: see docs/operations.md; if it was not, revoke the stolen "
            "gateway certificate",
        )
        return True

    async def _read(self, connection: AsyncConnection) -> None:
        """Read the state, with the denials that changed; keep all of it, or nothing of it."""
        since = 0 if self._must_read_all else self._revision
        revision = await trust_revision(connection)
        keys = await connection.scalars(
            select(signing_keys.c.public_jwk).order_by(
                signing_keys.c.active_from, signing_keys.c.kid
            )
        )
        limits = await cutoffs(connection)
        rows = await connection.execute(
            select(denials).where(denials.c.revision > since).order_by(denials.c.revision)
        )
        changed = {
            row.subject: (row.revision, Denial(row.subject, row.denied_at, row.denied_until))
            for row in rows
        }
        # No await from here on: a task that is cancelled, or a database that fails, must not
        # leave a part of the state behind.
        if self._must_read_all:
            self._denials, self._changes = _all_denials(), {}
            self._must_read_all = False
        self._keys = tuple(keys)
        self._apply(changed, limits)
        self._digest = trust_digest(
            self._rules.issuer, self._rules.audience, self._keys, self._denials
        )
        self._revision = revision

    def _apply(self, changed: dict[str, tuple[int, Denial]], limits: tuple[int, int]) -> None:
        before, self._cutoffs = self._cutoffs, limits
        expired_before, issued_after = limits
        self._denials.apply(
            (denial for _, denial in changed.values()),
            expired_before=expired_before,
            issued_after=issued_after,
        )
        for subject in changed:
            self._changes.pop(subject, None)
        self._changes |= changed
        if before != limits:
            self._changes = {
                subject: it
                for subject, it in self._changes.items()
                if it[1].until >= expired_before and it[1].denied_at > issued_after
            }


def _all_denials() -> DenialSet:
    """Make a set that drops nothing by itself: a relay takes a whole only with its digest."""
    return DenialSet(sys.maxsize)
