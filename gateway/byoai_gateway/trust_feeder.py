"""Gives one relay, over one link, what it lacks of the trust.

The relay reports first what it holds, for it may have kept that through many links. It reports
again when another gateway changed it, when it asks for the whole, and when it refused what was
sent. What is refused, or cannot be overtaken yet, is tried again after `AGAIN_S`.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from sqlalchemy.exc import SQLAlchemyError

from byoai_gateway.database import DatabaseUnavailable
from byoai_shared.errors import ByoaiError
from byoai_shared.logs import get_logger
from byoai_shared.protocol.trust import Trust, TrustHeld

REPORT_S: Final = 10.0
AGAIN_S: Final = 5.0
_NOTHING: Final = TrustHeld()

log = get_logger("gateway")


class TrustFeed(Protocol):
    """Where the trust for the relays comes from."""

    @property
    def held(self) -> TrustHeld:
        """The trust in force, as a relay would report it."""
        ...

    async def update(self, held: TrustHeld) -> Trust | None:
        """Return what a relay lacks that reported `held`; None if that is nothing."""
        ...

    async def changed(self, revision: int) -> None:
        """Wait for a trust newer than `revision`."""
        ...

    async def overtake(self, held: TrustHeld, *, is_first: bool) -> None:
        """Make sure that the revision in force is, or soon will be, above what a relay holds."""
        ...


class RelayOutdated(ByoaiError):
    """The relay is of a version that does not report its trust."""


class TrustFeeder:
    """The trust of one link: `report` what the relay says, and run `feed`."""

    def __init__(self, trust: TrustFeed, relay: str) -> None:
        self._trust = trust
        self._relay = relay
        self._reports: list[TrustHeld] = []
        self._moved = asyncio.Event()
        self._unsettled: TrustHeld | None = None
        self._retry: asyncio.TimerHandle | None = None

    def report(self, held: TrustHeld) -> None:
        """Take note of what the relay holds; the newest report and a request for all count."""
        wanted = held.wanted or any(it.wanted for it in self._reports)
        self._reports = [TrustHeld(revision=held.revision, digest=held.digest, wanted=wanted)]
        self._moved.set()

    async def feed(self, send: Callable[[Trust], None]) -> None:
        """Send what the relay lacks, now and at every change, until cancelled.

        Raises:
            RelayOutdated: the relay does not report what it holds.
        """
        try:
            async with asyncio.timeout(REPORT_S):
                await self._moved.wait()
        except TimeoutError:
            raise RelayOutdated(
                f"the relay did not report the trust it holds within {REPORT_S:.0f} s; "
                "upgrade it to the gateway's version"
            ) from None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch())
                await self._feed(send)
        finally:
            if self._retry is not None:
                self._retry.cancel()

    async def _feed(self, send: Callable[[Trust], None]) -> None:
        known: TrustHeld | None = None
        while True:
            await self._moved.wait()
            self._moved.clear()
            reports, self._reports = self._reports, []
            if self._unsettled is not None:
                known = await self._settle(self._unsettled, None)
                self._unsettled = None
            for held in reports:
                self._retry_if_refused(held, known)
                known = await self._settle(held, known)
            update = await self._trust.update(known or _NOTHING)
            if update is not None:
                send(update)
                known = TrustHeld(revision=update.revision, digest=update.digest)

    def _retry_if_refused(self, held: TrustHeld, known: TrustHeld | None) -> None:
        """Try again later if the relay says after our TRUST that it holds something older."""
        if known is not None and held.revision < known.revision and not held.wanted:
            self._settle_later(held)

    def _settle_later(self, held: TrustHeld) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(AGAIN_S, self._settle_now, held)

    def _settle_now(self, held: TrustHeld) -> None:
        self._retry = None
        self._unsettled = held
        self._moved.set()

    async def _settle(self, held: TrustHeld, known: TrustHeld | None) -> TrustHeld:
        """Return what the relay is known to hold, after one of its reports."""
        # The trust source tries again every second, and then the failure is logged.
        with suppress(DatabaseUnavailable, SQLAlchemyError):
            await self._trust.overtake(held, is_first=known is None)
        ours = self._trust.held
        if held.revision > ours.revision:
            self._settle_later(held)
        if held.wanted:
            return _NOTHING
        if held.digest == ours.digest:
            return ours if ours.revision >= held.revision else held
        if known is None:
            return held
        if held.revision == ours.revision:
            log.warning(
                "trust.conflict",
                relay=self._relay,
                revision=held.revision,
                reason="another gateway told the relay something else of the same revision",
                next="give all gateways of one database the same tokens.issuer and tokens.audience",
            )
        return known

    async def _watch(self) -> None:
        """Wake the feeder at every change."""
        while True:
            await self._trust.changed(self._trust.held.revision)
            self._moved.set()
