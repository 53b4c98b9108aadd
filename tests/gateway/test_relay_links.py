"""The gateway's links against a real relay in the same process."""

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from byoai_gateway.relay_links import GatewayName, RelayLinks
from byoai_gateway.trust_feeder import TrustFeeder
from byoai_relay import relay as relay_module
from byoai_relay.relay import Relay
from byoai_relay.relay_link import RelayLink
from byoai_shared.backoff import Backoff
from byoai_shared.errors import ByoaiError
from byoai_shared.link import session as link_session
from byoai_shared.link import websocket
from byoai_shared.link.errors import TokenNotRenewed
from byoai_shared.link.session import LinkSession
from byoai_shared.protocol.control import Hello, Presence, PresenceState, Status
from byoai_shared.protocol.control import Services as Given
from byoai_shared.protocol.trust import TrustHeld
from support.gateway_links import Feed, Services, gateway_context
from support.links import AGENT, GATEWAY, TUNNEL_ID, certificates
from support.logged import Logged
from support.pipes import Pipe
from support.relays import Clock, Rig, der_of, hello_of, relaying

NOBODY = "wss://127.0.0.1:1"
REAL_DELAY = Backoff.next_delay_s


def soon(_: Backoff) -> float:
    return 0.01


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(Backoff, "next_delay_s", soon)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with relaying(tmp_path) as made:
        yield made


@asynccontextmanager
async def kept(
    feed: Feed,
    *addresses: str,
    name: GatewayName | None = None,
    unix_now: Callable[[], float] = time.time,
    services: Services | None = None,
) -> AsyncGenerator[RelayLinks]:
    own = name or GatewayName(GATEWAY.name, gateway_context)
    links = RelayLinks(addresses, own, feed, services or Services(), unix_now)
    keeper = asyncio.ensure_future(links.keep())
    try:
        yield links
    finally:
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper


async def test_a_relay_is_told_what_to_believe_at_once_and_at_every_change(rig: Rig) -> None:
    feed = Feed(rig.trust())
    async with kept(feed, rig.gateways_url) as links:
        await rig.until(lambda: rig.service.relay.trust.revision == 1)
        assert links.connected == [rig.gateways_url]
        feed.change(rig.trust())
        await rig.until(lambda: rig.service.relay.trust.revision == 2)


async def test_a_certificate_that_cannot_be_loaded_for_a_while_is_tried_again(rig: Rig) -> None:
    failures = [ByoaiError("the certificate cannot be loaded (Too many open files)")] * 2

    def context() -> ssl.SSLContext:
        if failures:
            raise failures.pop()
        return gateway_context()

    feed = Feed(rig.trust())
    async with kept(feed, rig.gateways_url, name=GatewayName(GATEWAY.name, context)) as links:
        await rig.until(lambda: links.connected == [rig.gateways_url])
        assert links.dials == {"refused": 2, "connected": 1}


async def test_it_learns_who_is_online_and_by_which_relay(rig: Rig) -> None:
    seen: list[Presence] = []
    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        links.on_presence = seen.append
        await rig.until(lambda: rig.service.relay.trust.is_known)
        agent = await rig.agent()
        await rig.until(lambda: bool(links.sessions_for(TUNNEL_ID)))
        assert links.presence.tunnel_count == 1
        assert (seen[0].state, seen[0].agent_id) == (PresenceState.ONLINE, AGENT.agent_id)
        agent.abort()
        await rig.until(lambda: links.presence.tunnel_count == 0)
        assert links.sessions_for(TUNNEL_ID) == []


@pytest.mark.parametrize(("off_s", "way"), [(-3600, "behind"), (3600, "ahead")])
async def test_a_relay_whose_clock_is_wrong_is_found_at_link_set_up(
    rig: Rig, off_s: int, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig.unix.now = 10_000.0 + off_s
    async with kept(Feed(rig.trust()), rig.gateways_url, unix_now=lambda: 10_000.0) as links:
        await rig.until(lambda: bool(links.connected))
        assert links.clocks.differences_s == {rig.gateways_url: off_s}
        (warning,) = links.clocks.warnings()
        assert f"relay clock differs from the gateway's by about 3600 s (it is {way})" in warning
        assert "relay.clock_differs" in caplog.text


async def test_a_clock_within_what_tokens_bear_is_no_warning(rig: Rig) -> None:
    rig.unix.now = 10_010.0
    async with kept(Feed(rig.trust()), rig.gateways_url, unix_now=lambda: 10_000.0) as links:
        await rig.until(lambda: bool(links.connected))
        assert links.clocks.warnings() == ()


async def test_a_warning_of_a_clock_is_taken_back_while_the_link_lasts(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "CLOCK_REPORT_S", 1.0)
    caplog.set_level("INFO")
    ours = Clock(10_000.0)
    rig.unix.now = 13_600.0
    reported: list[TrustHeld] = []
    report = TrustFeeder.report

    def noted(feeder: TrustFeeder, held: TrustHeld) -> None:
        reported.append(held)
        report(feeder, held)

    monkeypatch.setattr(TrustFeeder, "report", noted)
    async with kept(Feed(rig.trust()), rig.gateways_url, unix_now=ours) as links:
        await rig.until(lambda: bool(links.clocks.warnings()))
        await rig.until(lambda: rig.service.relay.trust.revision == 1)
        rig.unix.now = 10_000.0  # the relay's clock is set
        rig.monotonic.now += 1.0
        rig.service.relay.tick()
        await rig.until(lambda: not links.clocks.warnings())
        assert links.clocks.differences_s == {rig.gateways_url: 0}
        assert caplog.text.count("relay.clock_agrees") == 1
        for off_s in (-1000.0, -1100.0):  # and is wrong again
            rig.unix.now = 10_000.0 + off_s
            rig.monotonic.now += 1.0
            rig.service.relay.tick()
            expected = {rig.gateways_url: int(off_s)}
            await rig.until(partial(equals, links.clocks.differences_s, expected))
        assert caplog.text.count("relay.clock_differs") == 2
        ours.now = 8_900.0  # ours was the wrong one
        rig.monotonic.now += 1.0
        rig.service.relay.tick()
        await rig.until(lambda: not links.clocks.warnings())
        assert links.dials == {"connected": 1}
        assert not [held for held in reported if held.unix_time], "they are not about the trust"
        assert reported


def equals(one: object, other: object) -> bool:
    return one == other


async def test_a_token_that_a_relay_refused_on_a_running_link_is_counted_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = certificates().of(AGENT)
    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        await rig.until(lambda: rig.service.relay.trust.is_known)
        agent = await rig.agent(credentials=credentials)
        renewed = rig.token(credentials)
        rig.unix.now -= 3600
        with pytest.raises(TokenNotRenewed):
            await agent.authenticate(renewed)
        await rig.until(lambda: bool(links.tokens_refused))
        agent.send_status(Status(queued=7))

        def has_status() -> bool:
            (place,) = links.presence.agents_of(TUNNEL_ID)
            return place[1].status.queued == 7

        await rig.until(has_status)
        assert links.tokens_refused == {rig.gateways_url: 1}
        assert caplog.text.count("relay.refused_token") == 1


async def test_who_a_relay_is_stays_known_when_its_link_has_ended(rig: Rig) -> None:
    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        await rig.until(lambda: rig.service.relay.trust.is_known)
        await rig.agent()
        await rig.until(lambda: bool(links.sessions_for(TUNNEL_ID)))
        (session,) = links.sessions_for(TUNNEL_ID)
        presented = session.peer_certificate
        session.abort()
        await rig.until(session.closed.done)
        assert session.peer_certificate == presented != b""


async def test_one_relay_that_is_away_keeps_nobody_from_the_other(rig: Rig) -> None:
    async with kept(Feed(rig.trust()), NOBODY, rig.gateways_url) as links:
        await rig.until(lambda: bool(links.connected))
        assert links.connected == [rig.gateways_url]
        assert links.dials["connected"] == 1
        await rig.until(lambda: links.dials["refused"] >= 2)


async def test_a_relay_that_is_back_is_not_kept_waiting_for_long(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the gateway speaks, the relay turns every agent away: all wait for this link."""
    delays_s: list[float] = []

    def noted(backoff: Backoff) -> float:
        delays_s.append(REAL_DELAY(backoff))
        return 0.001

    monkeypatch.setattr(Backoff, "next_delay_s", noted)
    async with kept(Feed(rig.trust()), NOBODY) as links:
        await rig.until(lambda: links.dials["refused"] >= 20)
    assert max(delays_s) <= 5.0


async def test_a_lost_link_forgets_who_was_online_and_comes_back(rig: Rig) -> None:
    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        await rig.until(lambda: rig.service.relay.trust.is_known)
        await rig.agent()
        await rig.until(lambda: links.presence.tunnel_count == 1)
        (gateway,) = rig.service.relay.directory.gateways()
        for link in rig.service.relay.links():
            if link.port is gateway:
                link.link.abort()
        await rig.until(lambda: links.dials["connected"] == 2)
        await rig.until(lambda: links.presence.tunnel_count == 1)


async def test_a_certificate_that_the_relay_does_not_take_is_counted_as_that(rig: Rig) -> None:
    name = GatewayName(GATEWAY.name, lambda: certificates().client(AGENT))
    async with kept(Feed(rig.trust()), rig.gateways_url, name=name) as links:
        await rig.until(lambda: links.dials["certificate_refused"] > 0)
        assert links.connected == []


async def test_when_it_ends_its_links_are_closed(rig: Rig) -> None:
    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        await rig.until(lambda: rig.service.relay.link_count == 1)
    await rig.until(lambda: rig.service.relay.link_count == 0)
    assert links.connected == []


# -- certificates


async def test_a_link_that_aged_is_replaced_and_its_streams_go_on(rig: Rig) -> None:
    served: list[Pipe] = []

    def accept(_: object) -> Pipe:
        served.append(Pipe())
        return served[-1]

    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        await rig.until(lambda: rig.service.relay.trust.is_known)
        await rig.agent(accept)
        await rig.until(lambda: bool(links.sessions_for(TUNNEL_ID)))
        (former,) = links.sessions_for(TUNNEL_ID)
        mine = Pipe()
        stream = await former.open_stream(TUNNEL_ID, mine)
        former.aged.set_result(None)
        await rig.until(lambda: links.sessions_for(TUNNEL_ID) not in ([former], []))
        (following,) = links.sessions_for(TUNNEL_ID)
        assert following.is_usable
        await rig.until(lambda: not former.is_usable)  # no new stream comes to it
        assert not former.closed.done()
        served[0].transport.write(b"still here")
        await rig.until(lambda: mine.received == b"still here")
        stream.abort()
        await rig.until(former.closed.done)
        assert links.presence.tunnel_count == 1, "the new link knows who is online"
        assert links.sessions_for(TUNNEL_ID) == [following]


@dataclass
class HeldIntroduction:
    """Holds back what the relay says to gateways that link to it from now on."""

    relay: Relay
    monkeypatch: pytest.MonkeyPatch
    begun: list[tuple[RelayLink, Hello]] = field(default_factory=list[tuple[RelayLink, Hello]])

    def __post_init__(self) -> None:
        self.introduce = self.relay._introduce
        self.monkeypatch.setattr(self.relay, "_introduce", self.hold)
        self.connect = link_session.connect
        self.monkeypatch.setattr(link_session, "connect", self.connected)
        self.dialed = asyncio.Event()

    def hold(self, relay_link: RelayLink, hello: Hello) -> None:
        self.begun.append((relay_link, hello))

    async def connected(self, *args: Any, **options: Any) -> LinkSession:
        session = await self.connect(*args, **options)
        self.dialed.set()
        return session

    def release(self) -> None:
        for relay_link, hello in self.begun:
            self.introduce(relay_link, hello)
            relay_link.link.flush_soon()


async def session_of_an_agent(rig: Rig, links: RelayLinks) -> LinkSession:
    """The one link over which an agent that has just come is reached."""
    await rig.until(lambda: rig.service.relay.trust.is_known)
    await rig.agent()
    await rig.until(lambda: bool(links.sessions_for(TUNNEL_ID)))
    (session,) = links.sessions_for(TUNNEL_ID)
    return session


async def test_a_tunnel_stays_reachable_while_a_link_is_replaced(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        former = await session_of_an_agent(rig, links)
        held = HeldIntroduction(rig.service.relay, monkeypatch)
        former.aged.set_result(None)
        await rig.until(lambda: held.dialed.is_set() and bool(held.begun))
        for _ in range(10):
            await asyncio.sleep(0)
            assert links.sessions_for(TUNNEL_ID) == [former]
        held.release()

        def is_replaced() -> bool:
            (session,) = links.sessions_for(TUNNEL_ID)
            return session is not former

        await rig.until(is_replaced)


async def test_an_agent_that_only_the_replaced_link_knew_is_dropped(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        former = await session_of_an_agent(rig, links)
        monkeypatch.setattr(rig.service.relay.directory, "agents", lambda: ())
        former.aged.set_result(None)
        await rig.until(lambda: links.presence.tunnel_count == 0)
        assert links.connected == [rig.gateways_url]


async def test_a_new_link_that_is_lost_early_leaves_the_old_one_in_use(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        former = await session_of_an_agent(rig, links)
        held = HeldIntroduction(rig.service.relay, monkeypatch)
        former.aged.set_result(None)
        await rig.until(lambda: held.dialed.is_set() and bool(held.begun))
        held.begun[0][0].link.abort()
        await rig.until(lambda: links.dials["refused"] == 1)
        assert links.sessions_for(TUNNEL_ID) == [former]


async def test_a_relay_ends_the_list_of_its_agents_with_the_trust_it_holds(rig: Rig) -> None:
    said: list[str] = []
    async with kept(Feed(rig.trust()), rig.gateways_url):
        await rig.until(lambda: rig.service.relay.trust.is_known)
        await rig.agent()
        session = await link_session.connect(
            rig.gateways_url,
            ssl_context=gateway_context(),
            hello=hello_of(GATEWAY),
            on_presence=lambda _: said.append("agent"),
            on_trust_held=lambda _: said.append("end"),
        )
        await rig.until(lambda: "end" in said)
        assert said == ["agent", "end"]
        session.abort()


async def test_what_a_replaced_link_says_late_is_not_believed(rig: Rig) -> None:
    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        former = await session_of_an_agent(rig, links)
        former.aged.set_result(None)
        await rig.until(lambda: links.sessions_for(TUNNEL_ID) not in ([former], []))
        gone = Presence(
            tunnel_id=TUNNEL_ID,
            agent_id=AGENT.agent_id,
            instance="run-1",
            epoch=0,
            state=PresenceState.GONE,
        )
        links._announced(rig.gateways_url, 1, gone)
        assert links.presence.tunnel_count == 1
        links._announced(rig.gateways_url, 2, gone)
        assert links.presence.tunnel_count == 0


async def test_a_link_is_kept_while_the_one_that_replaces_it_cannot_be_made(rig: Rig) -> None:
    context = gateway_context()
    contexts = [context, certificates().client(AGENT), context]
    name = GatewayName(GATEWAY.name, lambda: contexts.pop(0))
    async with kept(Feed(rig.trust()), rig.gateways_url, name=name) as links:
        await rig.until(lambda: bool(links.connected))
        former = links._sessions[rig.gateways_url]
        former.aged.set_result(None)
        await rig.until(lambda: links.dials["certificate_refused"] == 1)
        assert links.connected == [rig.gateways_url]
        await rig.until(lambda: links.dials["connected"] == 2)
        assert links._sessions[rig.gateways_url] is not former


async def test_a_relay_whose_certificate_is_revoked_is_left_and_not_linked_to(
    rig: Rig, logged: Logged
) -> None:
    services = Services()
    async with kept(Feed(rig.trust()), rig.gateways_url, services=services) as links:
        await rig.until(lambda: bool(links.connected))
        services.denied.add(der_of(certificates().relay))
        services.change()
        await rig.until(lambda: links.dials["refused"] >= 2)
        assert links.connected == []
        assert len(logged.lines("relay.revoked")) == 1
        assert "issue-relay-certificate" in logged.lines("relay.unreachable")[0]["reason"]
        services.denied.clear()
        await rig.until(lambda: bool(links.connected))


async def test_a_relay_is_given_revocations_and_a_new_certificate_once(rig: Rig) -> None:
    given: list[Given] = []
    rig.service.relay.on_services = given.append
    services = Services(statement="first")
    services.due[der_of(certificates().relay)] = "pem"
    async with kept(Feed(rig.trust()), rig.gateways_url, services=services):
        await rig.until(lambda: len(given) == 1)
        services.statement = "second"
        services.change()
        await rig.until(lambda: len(given) == 2)
    assert given == [Given(revoked="first", certificate="pem"), Given(revoked="second")]


async def test_a_relay_of_an_earlier_version_is_given_nothing_that_it_does_not_know(
    rig: Rig,
) -> None:
    relay = rig.service.relay
    relay.hello = msgspec.structs.replace(relay.hello, takes_services=False)
    async with kept(
        Feed(rig.trust()), rig.gateways_url, services=Services(statement="first")
    ) as links:
        await rig.until(lambda: relay.trust.is_known)
        feed_seen = links.dials["connected"]
        assert feed_seen == 1
        assert links.connected == [rig.gateways_url]


def much_later(_: Backoff) -> float:
    return 3600.0


async def test_a_gateway_whose_relays_are_all_away_blames_no_agent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "next_delay_s", much_later)
    async with kept(Feed(rig.trust()), rig.gateways_url) as links:
        await rig.until(lambda: bool(links.connected))
        await rig.agent()
        await rig.until(lambda: bool(links.sessions_for(TUNNEL_ID)))
        assert (
            links.presence.absence(TUNNEL_ID).code == "agent_unreachable"
        )  # it was there just now
        for link in rig.service.relay.links():
            link.link.abort()
        await rig.until(lambda: links.presence.absence(TUNNEL_ID).code == "no_relay_connected")


async def test_a_gateway_that_never_had_a_relay_says_so(rig: Rig) -> None:
    async with kept(Feed(rig.trust()), NOBODY) as links:
        await rig.until(lambda: links.dials["refused"] >= 1)
        assert links.presence.absence(TUNNEL_ID).code == "no_relay_connected"
