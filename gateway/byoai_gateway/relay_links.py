"""The gateway's links: one to every relay, kept up for as long as the gateway runs.

Each link gives its relay what it lacks of the trust, at once and at every change, and brings back
who is online. A relay that cannot be reached is tried again with full jitter and stops nobody.

Long before the gateway's or the relay's certificate expires a new link takes the place of the old
one, which finishes its streams. The old link is used until the relay has announced its agents on
the new one; TRUST_HELD ends that list. A relay whose certificate was revoked is not linked to.
"""

import asyncio
import math
import secrets
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from byoai_gateway import __version__
from byoai_gateway.presence import PresenceMap
from byoai_gateway.relay_clocks import RelayClocks
from byoai_gateway.trust_feeder import RelayOutdated, TrustFeed, TrustFeeder
from byoai_shared.backoff import Backoff
from byoai_shared.errors import ByoaiError
from byoai_shared.link import session as link_session
from byoai_shared.link.errors import LinkLost, LinkRefused
from byoai_shared.link.session import LinkSession
from byoai_shared.logs import get_logger
from byoai_shared.protocol.control import Hello, Presence, Role, Services
from byoai_shared.protocol.trust import TrustHeld

LONGEST_DELAY_S: Final = 5.0
"""A relay turns all its agents away until a gateway has spoken to it; and gateways are few."""
DRAIN_S: Final = 600.0
"""How long the streams of a link that was replaced may go on."""
ANNOUNCED_S: Final = 5.0
"""How long a new link may take to bring a relay's agents before it replaces the old one anyway."""
SERVICES_LOOK_S: Final = 5.0
"""How often to look whether a relay's certificate is due."""
REVOKED: Final = (
    "this relay's certificate was revoked; make a new one for it with "
    "byoai-gateway issue-relay-certificate"
)
LOST_EARLY: Final = (
    "the new link was lost before the relay had announced its agents; the old one is still used"
)

LONGEST_RETRY_AFTER_S: Final = 30.0
"""A relay that sheds load is left alone for no longer, for the same reason."""

log = get_logger("gateway")


class ServiceFeed(Protocol):
    """What there is to know of services' certificates."""

    @property
    def statement(self) -> str:
        """The revocations, signed; empty if there are none."""
        ...

    def denies(self, certificate: bytes) -> bool:
        """Whether a certificate (DER) was revoked."""
        ...

    def renewed(self, certificate: bytes) -> str:
        """Return a new certificate for a relay's key (PEM); empty if it is too soon."""
        ...

    async def changed(self) -> None:
        """Wait for the next revocation."""
        ...


@dataclass(frozen=True, slots=True)
class GatewayName:
    """Who the gateway is on its links, and how it proves it."""

    name: str
    ssl_context: Callable[[], ssl.SSLContext]
    """Asked at each dial, so that a renewed certificate is used from the next one on."""
    expires_at: Callable[[], float] = lambda: math.inf
    """When the certificate of that context expires, Unix seconds."""


class FedLink(NamedTuple):
    """A link, and what gives its relay the trust that it lacks."""

    session: LinkSession
    feeder: TrustFeeder


class RelayLinks:
    """Links to all relays; run `keep` as a task for as long as they are wanted."""

    def __init__(
        self,
        addresses: Sequence[str],
        identity: GatewayName,
        trust: TrustFeed,
        services: ServiceFeed,
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self.presence = PresenceMap(addresses)
        self.addresses = tuple(addresses)
        self.dials: Counter[str] = Counter()
        """How dials ended: `connected`, `refused`, or `certificate_refused`."""
        self.tokens_refused: Counter[str] = Counter()
        """Renewed tokens that a relay refused on a link that goes on, by relay."""
        self.clocks = RelayClocks(unix_now)
        self._unix_now = unix_now
        self._identity = identity
        self._trust = trust
        self._services = services
        self.on_presence: Callable[[Presence], None] = lambda _presence: None
        """Told of each announcement after it was noted; must not block."""
        self._instance = secrets.token_hex(8)
        self._epoch = 0
        self._sessions: dict[str, LinkSession] = {}
        self._newest: dict[str, int] = {}
        """The epoch of the link that says who is online, by address."""
        self._early: dict[int, list[Presence]] = {}
        """What links said before they were taken into use, by epoch."""
        self._retiring: set[LinkSession] = set()
        self._group: asyncio.TaskGroup | None = None

    @property
    def connected(self) -> list[str]:
        """The relays whose links may be used."""
        return [address for address, session in self._sessions.items() if session.is_usable]

    def sessions_for(self, tunnel_id: str, agent_id: str = "") -> list[LinkSession]:
        """Return the links by which a tunnel, or one agent of it, can be reached, best first.

        Empty when it is offline.
        """
        found: list[LinkSession] = []
        for address in self.presence.relays_of(tunnel_id, agent_id):
            session = self._sessions.get(address)
            if session is not None and session.is_usable:
                found.append(session)
        return found

    async def keep(self) -> None:
        """Keep every link up until cancelled; then close them."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for address in self.addresses:
                    self._group.create_task(self._keep_one(address))
        finally:
            for session in (*self._sessions.values(), *self._retiring):
                session.abort()

    async def _keep_one(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(cap_s=LONGEST_DELAY_S)
        while True:
            linked = await self._dial_until_linked(address, backoff)
            backoff.opened(loop.time())
            lost = await self._use(address, linked)
            backoff.lost(loop.time())
            delay_s = backoff.next_delay_s()
            log.warning("relay.lost", relay=address, reason=str(lost), retry_in_s=round(delay_s, 1))
            await asyncio.sleep(delay_s)

    async def _dial_until_linked(self, address: str, backoff: Backoff) -> FedLink:
        while True:
            try:
                linked = await self._dial(address)
            except LinkRefused as refused:
                is_over_certificate = refused.is_over_certificate
                self.dials["certificate_refused" if is_over_certificate else "refused"] += 1
                delay_s = max(
                    backoff.next_delay_s(), min(refused.retry_after_s or 0.0, LONGEST_RETRY_AFTER_S)
                )
                log.warning(
                    "relay.unreachable",
                    setting="relays.gateway_address",
                    relay=address,
                    reason=str(refused),
                    retry_in_s=round(delay_s, 1),
                    next="see that this relay runs and that relays.gateway_address leads to it",
                )
                await asyncio.sleep(delay_s)
            else:
                self.dials["connected"] += 1
                return linked

    async def _dial(self, address: str) -> FedLink:
        context = self._ssl_context(address)
        feeder = TrustFeeder(self._trust, address)
        announced = asyncio.Event()
        self._epoch += 1
        epoch = self._epoch

        def take_report(held: TrustHeld) -> None:
            if not held.unix_time:
                feeder.report(held)
                announced.set()
            elif epoch == self._newest.get(address):
                self.clocks.compare(address, held.unix_time)

        hello = Hello(
            role=Role.GATEWAY,
            node=self._identity.name,
            instance=self._instance,
            epoch=epoch,
            max_streams=0,
            software=f"byoai-gateway/{__version__}",
            unix_time=int(self._unix_now()),
        )
        try:
            session = await link_session.connect(
                address,
                ssl_context=context,
                hello=hello,
                on_presence=lambda presence: self._announced(address, epoch, presence),
                on_trust_held=take_report,
                own_expires_at=self._identity.expires_at(),
            )
            self._require_unrevoked(session)
            await self._await_agents(address, session, announced)
        except BaseException:
            self._early.pop(epoch, None)
            raise
        self._take_over(address, epoch, session)
        return FedLink(session, feeder)

    def _ssl_context(self, address: str) -> ssl.SSLContext:
        """Load our certificate; a failure (too many open files) passes, so the dial is retried."""
        try:
            return self._identity.ssl_context()
        except ByoaiError as error:
            raise LinkRefused(address, str(error)) from error

    def _require_unrevoked(self, session: LinkSession) -> None:
        if self._services.denies(session.peer_certificate):
            session.abort()
            raise LinkRefused(session.address, REVOKED)

    async def _await_agents(
        self, address: str, session: LinkSession, announced: asyncio.Event
    ) -> None:
        """Wait for a relay's agents on a new link for as long as the old link is usable.

        Raises:
            LinkRefused: the new link was lost meanwhile.
        """
        former = self._sessions.get(address)
        if former is None or not former.is_usable:
            return
        waiting = asyncio.ensure_future(announced.wait())
        try:
            await asyncio.wait(
                (waiting, session.closed), timeout=ANNOUNCED_S, return_when=asyncio.FIRST_COMPLETED
            )
        except BaseException:
            session.abort()
            raise
        finally:
            waiting.cancel()
        if session.closed.done():
            raise LinkRefused(address, LOST_EARLY)

    def _take_over(self, address: str, epoch: int, session: LinkSession) -> None:
        """Use a link from now on, and believe it alone about who is online."""
        self._sessions[address] = session
        self._newest[address] = epoch
        self.presence.forget_relay(address)
        self.presence.connected(address)
        for presence in self._early.pop(epoch, ()):
            self._announced(address, epoch, presence)
        if session.peer is not None and session.peer.unix_time:
            self.clocks.compare(address, session.peer.unix_time)
        log.info("relay.connected", relay=address, node=session.peer.node if session.peer else "")

    async def _use(self, address: str, linked: FedLink) -> LinkLost:
        """Feed a link, and those that take its place, until the last one is gone."""
        try:
            while True:
                following = await self._serve(address, linked)
                if isinstance(following, LinkLost):
                    return following
                self._retire(linked.session)
                linked = following
        finally:
            self._sessions.pop(address, None)
            self.clocks.forget(address)
            self.presence.forget_relay(address)
            linked.session.abort()

    async def _serve(self, address: str, linked: FedLink) -> FedLink | LinkLost:
        """Feed a link until it is gone, or until another one can take its place."""
        session, feeder = linked
        async with asyncio.TaskGroup() as tasks:
            feeders = (
                tasks.create_task(self._feed_trust(session, feeder)),
                tasks.create_task(self._feed_services(session)),
            )
            following = tasks.create_task(self._follow(address, session))
            await asyncio.wait((session.closed, following), return_when=asyncio.FIRST_COMPLETED)
            for task in (*feeders, following):
                task.cancel()
        if following.cancelled():
            return session.closed.result()
        return following.result()

    async def _follow(self, address: str, session: LinkSession) -> FedLink:
        """Make the link that takes the place of one whose certificates have aged."""
        await asyncio.shield(session.aged)
        return await self._dial_until_linked(address, Backoff(cap_s=LONGEST_DELAY_S))

    def _retire(self, session: LinkSession) -> None:
        """Let no new stream come to a link that was replaced, and those on it finish."""
        if self._group is None:
            raise RuntimeError("links are not kept yet")
        session.retire("a newer link took over")
        self._retiring.add(session)
        self._group.create_task(self._finish(session))

    async def _finish(self, session: LinkSession) -> None:
        await session.drain(DRAIN_S)
        self._retiring.discard(session)

    async def _feed_trust(self, session: LinkSession, feeder: TrustFeeder) -> None:
        try:
            await feeder.feed(session.send_trust)
        except RelayOutdated as outdated:
            log.warning(
                "relay.outdated",
                relay=session.address,
                reason=str(outdated),
                next="the link is closed and tried again",
            )
            session.abort()

    async def _feed_services(self, session: LinkSession) -> None:
        """Tell a relay of revocations, and give it a new certificate once; or leave it."""
        told, has_renewed = "", False
        while not self._services.denies(session.peer_certificate):
            renewed = "" if has_renewed else self._services.renewed(session.peer_certificate)
            has_renewed = has_renewed or bool(renewed)
            statement = self._services.statement
            if renewed or statement != told:
                session.send_services(Services(revoked=statement, certificate=renewed))
                told = statement
            with suppress(TimeoutError):
                async with asyncio.timeout(SERVICES_LOOK_S):
                    await self._services.changed()
        log.warning(
            "relay.revoked",
            relay=session.address,
            next="nothing goes by it until it has a new certificate",
        )
        session.abort()

    def _is_new_refusal(self, address: str, presence: Presence) -> bool:
        known = self.presence.of(address, presence.tunnel_id, presence.agent_id)
        before = known.token_refusal if known is not None else ""
        return presence.token_refusal not in ("", before)

    def _announced(self, address: str, epoch: int, presence: Presence) -> None:
        newest = self._newest.get(address, 0)
        if epoch > newest:
            self._early.setdefault(epoch, []).append(presence)
        elif epoch == newest:  # what a link says that was replaced may be out of date
            self._note(address, presence)

    def _note(self, address: str, presence: Presence) -> None:
        if self._is_new_refusal(address, presence):
            self.tokens_refused[address] += 1
            log.warning(
                "relay.refused_token",
                relay=address,
                tunnel_id=presence.tunnel_id,
                node=presence.agent_id,
                reason=presence.token_refusal,
                next="its link ends when the older token expires; look at the relay's clock",
            )
        self.presence.update(address, presence)
        self.on_presence(presence)
