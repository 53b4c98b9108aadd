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

    async def update(self, held: TrustHeld) -> Trust | None:
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


@dataclass
class Services:
    """What is known of services' certificates: nothing, unless a test says so."""

    statement: str = ""
    denied: set[bytes] = field(default_factory=set[bytes])
    due: dict[bytes, str] = field(default_factory=dict[bytes, str])
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def denies(self, certificate: bytes) -> bool:
        return certificate in self.denied

    def renewed(self, certificate: bytes) -> str:
        return self.due.get(certificate, "")

    async def changed(self) -> None:
        await self.news.wait()

    def change(self) -> None:
        woken, self.news = self.news, asyncio.Event()
        woken.set()


def gateway_context() -> ssl.SSLContext:
    return certificates().client(GATEWAY)
