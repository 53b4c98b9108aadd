"""What the gateway's links are given in tests: whom to be, and what relays are to believe."""

import asyncio
import ssl
from dataclasses import dataclass, field

from byoai_shared.protocol.trust import Trust, TrustHeld
from support.links import GATEWAY, certificates


@dataclass
class Feed:
    """What the relays are to believe."""

    trust: Trust
    newer: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def held(self) -> TrustHeld:
        return TrustHeld(revision=self.trust.revision, digest=self.trust.digest)

    def update(self, held: TrustHeld) -> Trust | None:
        return self.trust if self.trust.revision > held.revision else None

    async def changed(self, revision: int) -> None:
        while self.trust.revision <= revision:
            await self.newer.wait()

    async def overtake(self, held: TrustHeld, *, is_first: bool) -> None:
        pass

    def change(self, trust: Trust) -> None:
        self.trust = trust
        woken, self.newer = self.newer, asyncio.Event()
        woken.set()


def gateway_context() -> ssl.SSLContext:
    return certificates().client(GATEWAY)
