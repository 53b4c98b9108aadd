"""What relays are to believe, as the database has it, for the links that send it to them.

The state is kept in memory and read again, as far as it changed, when its revision moved. In one
process a change is published by its author; changes of other processes (another gateway, the
command line) are found by reading the revision every second.

A database that was restored from a backup is older than what relays hold, and relays do not go
back. They report what they hold; a revision that the database has not reached yet makes the
gateway raise the database's own above it, so that the restored state is believed.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Row, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.clock import Clock
from byoai_gateway.config import TokensSection
from byoai_gateway.database import Database, DatabaseUnavailable
from byoai_gateway.denials import (
    cutoffs,
    delete_over,
    end_denials,
    is_excess,
    replace_oldest,
)
from byoai_gateway.known_denials import PAGE_ROWS, Change, KnownDenials, Rules
from byoai_gateway.revision import raise_revision, trust_revision
from byoai_gateway.schema import denials, signing_keys
from byoai_shared.logs import get_logger
from byoai_shared.protocol.trust import (
    MAX_DENIALS,
    MAX_OVERTAKEN_MS,
    Denial,
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
        tokens: TokensSection,
        clock: Clock,
        max_denials: int = MAX_DENIALS,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._clock = clock
        self._max_denials = max_denials
        self._revision = 0
        # Whether the rows that were read before may be missing from the database, or differ.
        self._must_read_all = True
        self._digest = ""
        self._keys: tuple[dict[str, str], ...] = ()
        self._rules = Rules()
        self._known = KnownDenials()
        # Whether `_known` is of the revision in force, and not on its way to the next.
        self._is_consistent = True
        self._floor = 0
        self._raised_at = 0.0
        self._refreshing = asyncio.Lock()
        # While `_known` changes or is read. Never while the database is waited for: what is known
        # is sent to relays also when that is away.
        self._using_known = asyncio.Lock()
        self._newer = asyncio.Event()

    @property
    def held(self) -> TrustHeld:
        """The trust in force, in a few bytes, as a relay would report it."""
        return TrustHeld(revision=self._revision, digest=self._digest)

    async def update(self, held: TrustHeld) -> Trust | None:
        """Return what a relay lacks that reported `held`; None if that is nothing."""
        async with self._using_known:
            if self._revision <= held.revision or not self._is_consistent:
                return None
            return await self._since(held.revision)

    async def since(self, base: int) -> Trust:
        """Return the trust in force, with the denials that changed after `base`; 0 for all."""
        async with self._using_known:
            return await self._since(base)

    async def _since(self, base: int) -> Trust:
        return Trust(
            revision=self._revision,
            base=base,
            digest=self._digest,
            issuer=self._tokens.issuer,
            audience=self._tokens.audience,
            keys=self._keys,
            denials=await self._known.since(base),
            expired_before=self._rules.expired_before,
            issued_after=self._rules.issued_after,
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
                await self._read()
            elif not await self._raise():
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
        """Let denials that ended, and those that are too many, be over from now on."""
        await end_denials(self._database, self._clock())
        await self._replace_oldest(self._max_denials)

    async def delete_over(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Delete denials that are over; `is_over` is asked now and then, to stop."""
        await delete_over(self._database, is_over)

    async def _replace_oldest(self, most: int) -> None:
        """Replace the oldest denials by a rule if there are more than `most`."""
        since = 0 if self._must_read_all else self._revision
        known = 0 if self._must_read_all else len(self._known)
        async with self._database.reading() as connection:
            if not await is_excess(connection, most, known=known, known_revision=since):
                return
        await replace_oldest(self._database, self._max_denials, self._clock())

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
        await self._read()
        log.warning(
            "trust.raised",
            revision=self._revision,
            reason="relays hold a trust that is not in this database",
            next="if the database was restored from a backup, tunnels that were revoked since "
            "then are active again: see docs/operations.md; if it was not, revoke the stolen "
            "gateway certificate",
        )
        return True

    async def _read(self) -> None:
        """Read the state, with the denials that changed; keep all of it, or nothing of it."""
        # Before they are read: else memory would be for as many as others can make. A database
        # that takes no writes holds no more of them than it did.
        with suppress(DatabaseUnavailable, SQLAlchemyError):
            await self._replace_oldest(self._max_denials + self._max_denials // 4)
        is_all = self._must_read_all
        async with self._database.reading() as connection:
            revision = await trust_revision(connection)
            keys = await connection.scalars(
                select(signing_keys.c.public_jwk).order_by(
                    signing_keys.c.active_from, signing_keys.c.kid
                )
            )
            rules = Rules(*await cutoffs(connection))
            pages = await self._changes(connection, rules, 0 if is_all else self._revision)
        async with self._using_known:
            known = KnownDenials() if is_all else self._known
            # A task that is cancelled from here on leaves a part of the change behind, for the
            # next `refresh` to complete. Nothing is sent until then.
            self._is_consistent = is_all and self._is_consistent
            await known.apply(pages, rules)
            self._known, self._rules, self._keys = known, rules, tuple(keys)
            self._digest = trust_digest(
                self._tokens.issuer, self._tokens.audience, self._keys, known.set
            )
            self._revision = revision
            self._must_read_all, self._is_consistent = False, True

    async def _changes(
        self, connection: AsyncConnection, rules: Rules, since: int
    ) -> deque[list[Change]]:
        """Read the denials that changed after a revision, a page in each turn of the event loop."""
        query = select(denials).where(denials.c.revision > since).order_by(denials.c.revision)
        if not since or rules.issued_after > self._rules.issued_after:
            # Those that a rule covers are sent to end their links; not to those who ask for all,
            # and not with a new rule, which is there because they are too many to be read.
            query = query.where(denials.c.denied_at > rules.issued_after)
        rows = await connection.stream(query.execution_options(yield_per=PAGE_ROWS))
        return deque([[_change(row) for row in page] async for page in rows.partitions()])


def _change(row: Row[Any]) -> Change:
    return Change(row.revision, Denial(row.subject, row.denied_at, row.denied_until))
