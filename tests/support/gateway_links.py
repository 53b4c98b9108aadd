"""What the gateway's links are given in tests: whom to be, and what relays are to believe."""

import asyncio
import ssl
from dataclasses import dataclass, field

from byoai_shared.protocol.control import Trust
from support.links import GATEWAY, certificates


@dataclass
class Feed:
    """What the relays are to believe."""

    trust: Trust
    newer: asyncio.Event = field(default_factory=asyncio.Event)

    async def current(self) -> Trust:
        return self.trust

    async def changed(self, revision: int) -> Trust:
        while self.trust.revision <= revision:
            await self.newer.wait()
        return self.trust

    def change(self, trust: Trust) -> None:
        self.trust = trust
        woken, self.newer = self.newer, asyncio.Event()
        woken.set()


def gateway_context() -> ssl.SSLContext:
    return certificates().client(GATEWAY)
