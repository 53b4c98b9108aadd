"""Whether this gateway can serve, which is more than being alive; and if not, why."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

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
    `warnings` are about what it serves badly; they leave it ready.
    """

    def __init__(
        self,
        database: Database,
        links: Links,
        conditions: Sequence[Condition] = (),
        warnings: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._database = database
        self._links = links
        self._conditions = (*conditions, self._why_no_database)
        self.warnings = warnings
        self.is_stopping = False

    async def why_not(self) -> str:
        """Say why it cannot serve, all reasons in one line; empty when it can."""
        if self.is_stopping:
            return "it is stopping"
        reasons = (self._why_no_relay(), *await self.unmet())
        return "; ".join(filter(None, reasons))

    async def unmet(self) -> tuple[str, ...]:
        """Return the reasons besides the relays, to which links take a moment after the start."""
        reasons = await asyncio.gather(*(condition() for condition in self._conditions))
        return tuple(filter(None, reasons))

    def _why_no_relay(self) -> str:
        if not self._links.addresses or self._links.connected:
            return ""
        return (
            f"none of the {len(self._links.addresses)} relays is connected; "
            "the log says why (relay.unreachable)"
        )

    async def _why_no_database(self) -> str:
        try:
            async with asyncio.timeout(_PING_S):
                await self._database.ping()
        except (DatabaseUnavailable, TimeoutError):
            return "the database does not answer"
        return ""
