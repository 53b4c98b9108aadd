"""Whether this gateway can serve, which is more than being alive; and if not, why."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from byoai_gateway.database import Database, DatabaseUnavailable

_PING_S: Final = 2.0


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
    """Asked by load balancers and operators."""

    def __init__(self, database: Database, links: Links) -> None:
        self._database = database
        self._links = links
        self.is_stopping = False

    async def why_not(self) -> str:
        """Say why it cannot serve; empty when it can."""
        if self.is_stopping:
            return "it is stopping"
        if self._links.addresses and not self._links.connected:
            return (
                f"none of the {len(self._links.addresses)} relays is connected; "
                "the log says why (relay.unreachable)"
            )
        try:
            async with asyncio.timeout(_PING_S):
                await self._database.ping()
        except (DatabaseUnavailable, TimeoutError):
            return "the database does not answer"
        return ""
