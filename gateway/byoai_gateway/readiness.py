"""Whether this gateway can serve, which is more than being alive; and if not, why.

A store that is away makes it degraded, not unready: all gateways lose the database at once, and a
load balancer that took them all out would stop the requests that need nothing of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import ceil
from typing import Final, Protocol

from byoai_gateway.config import DatabaseSection
from byoai_gateway.database import Database, DatabaseUnavailable

_PING_S: Final = 2.0

Condition = Callable[[], Awaitable[str]]
"""Says why the gateway cannot serve; empty when it is met. It takes a few seconds at most."""


class Links(Protocol):
    """The links to the relays."""

    @property
    def addresses(self) -> Sequence[str]:
        """The relays there should be links to."""
        ...

    @property
    def connected(self) -> Sequence[str]:
        """Those whose links may be used."""
        ...


class Readiness:
    """Asked by load balancers and operators.

    `conditions` are asked each time: each says why the gateway cannot serve, or nothing.
    `degradations` say of each store that is away what is done without it. `warnings` are about
    what it serves badly. Both leave it ready.
    """

    def __init__(
        self,
        database: Database,
        links: Links,
        conditions: Sequence[Condition] = (),
        warnings: Callable[[], Sequence[str]] = tuple,
        *,
        rules: DatabaseSection | None = None,
        degradations: Sequence[Callable[[], str]] = (),
    ) -> None:
        self._database = database
        self._rules = rules or DatabaseSection()
        self._degradations = (*degradations, self._without_database, self._without_writes)
        self._links = links
        self._conditions = (*conditions, self._why_no_database)
        self.warnings = warnings
        self.is_stopping = False
        self._turn = asyncio.Lock()
        self._begun = 0
        self._answered = 0
        self._reasons: tuple[str, ...] = ()

    async def why_not(self) -> str:
        """Say why it cannot serve, all reasons in one line; empty when it can."""
        if self.is_stopping:
            return "it is stopping"
        reasons = (self._why_no_relay(), *await self.unmet())
        return "; ".join(filter(None, reasons))

    async def unmet(self) -> tuple[str, ...]:
        """Return the reasons besides the relays, to which links take a moment after the start.

        Strangers may ask: however many do at once, the stores are asked by one of them at a time,
        and its answer serves all who were waiting when it began.
        """
        arrived = self._begun
        async with self._turn:
            if self._answered <= arrived:
                self._begun += 1
                number = self._begun
                reasons = await asyncio.gather(*(condition() for condition in self._conditions))
                self._reasons, self._answered = tuple(filter(None, reasons)), number
            return self._reasons

    def _why_no_relay(self) -> str:
        if not self._links.addresses or self._links.connected:
            return ""
        return (
            f"none of the {len(self._links.addresses)} relays is connected; "
            "the log says why (relay.unreachable)"
        )

    async def degraded(self) -> str:
        """Say which stores are away and what is done without them; empty when none is."""
        return "; ".join(filter(None, (it() for it in self._degradations)))

    async def _why_no_database(self) -> str:
        try:
            async with asyncio.timeout(_PING_S):
                await self._database.ping()
        except (DatabaseUnavailable, TimeoutError):
            if self._database.availability.silent_s > self._rules.stale_s:
                return f"the database has not answered for {self._rules.stale_s:g} s"
        return ""

    def _without_database(self) -> str:
        silent_s = self._database.availability.silent_s
        if not silent_s:
            return ""
        tunnels_s = self._rules.tunnels_stale_s
        tunnels = (
            f"tunnels for another {ceil(tunnels_s - silent_s)} s (database.revocations_stale_s)"
            if silent_s < tunnels_s
            else "and tunnels are refused (database.revocations_stale_s)"
        )
        return (
            f"the database has not answered for {ceil(silent_s)} s: settings that were read before "
            f"are used for another {max(0, ceil(self._rules.stale_s - silent_s))} s "
            f"(database.stale_s), {tunnels}; changes are refused"
        )

    def _without_writes(self) -> str:
        reason = self._database.availability.write_fault
        if reason is None:
            return ""
        return (
            f"the database takes no writes ({reason}): requests are served, changes are refused; "
            "agents get no tokens, so tunnels go offline within tunnels.token_lifetime_s"
        )
