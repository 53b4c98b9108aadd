import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest

from byoai_agent import links
from byoai_agent.credentials import Credentials, Listeners
from byoai_agent.links import AgentOutdated, Links
from byoai_agent.reporter import Reporter
from byoai_agent.state import KeyPair, Membership
from byoai_agent.streams import LinkStreams
from byoai_gateway.agent_instances import Instance, overlapping
from byoai_shared.identity import AgentIdentity, new_tunnel_id
from byoai_shared.link.errors import LinkLost, LinkRefused, TokenNotRenewed
from byoai_shared.link.session import LinkSession
from byoai_shared.protocol.control import Goaway, Hello, Status
from byoai_shared.protocol.errors import CloseCode
from byoai_shared.secret import Secret
from support.authority import Authority
from support.loop_clock import pass_time

A, B, C = "wss://a.test:1", "wss://b.test:1", "wss://c.test:1"
AGENTS, SERVICES = Authority("agents"), Authority("services")
TUNNEL_ID = new_tunnel_id()


class FakeSession:
    """What a link's session does, as the test wants it."""

    def __init__(self, relay: str, hello: Hello, certificate: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.relay = relay
        self.hello = hello
        self.certificate = certificate
        self.closed: asyncio.Future[LinkLost] = loop.create_future()
        self.goaway: asyncio.Future[Goaway] = loop.create_future()
        self.aged: asyncio.Future[None] = loop.create_future()
        self.tokens: list[str] = []
        self.statuses: list[Status] = []
        self.is_drained = asyncio.Event()
        self.is_aborted = False
        self.refuses: CloseCode | None = None
        self.renews = True

    @property
    def is_usable(self) -> bool:
        return not self.closed.done() and not self.goaway.done()

    async def authenticate(self, token: str) -> int:
        if self.refuses is not None:
            raise LinkLost(self.relay, self.refuses, "")
        if not self.renews:
            raise TokenNotRenewed(self.relay, "relay clock differs by about 3600 s", 0)
        self.tokens.append(token)
        return 0

    def send_status(self, status: Status) -> None:
        self.statuses.append(status)

    async def drain(self, _timeout_s: float) -> None:
        self.is_drained.set()
        self.lose(None)

    def abort(self) -> None:
        self.is_aborted = True
        self.lose(None)

    def lose(self, code: CloseCode | None) -> None:
        if not self.closed.done():
            self.closed.set_result(LinkLost(self.relay, code, ""))

    def send_away(self, retry_after_ms: int = 0) -> None:
        self.goaway.set_result(Goaway(code=4000, reason="", retry_after_ms=retry_after_ms))


class FakeStreams:
    def __init__(self) -> None:
        self.is_drained = False

    def accept(self, _stream: object) -> asyncio.Protocol:
        raise AssertionError("no stream comes in these tests")

    def drain(self) -> None:
        self.is_drained = True


class QuickBackoff:
    """No waiting, and a note of what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def next_delay_s(self, _cap_s: float | None = None) -> float:
        self.told.append("failed")
        return 0.0

    def opened(self, _now: float) -> None:
        self.told.append("opened")

    def lost(self, _now: float) -> None:
        self.told.append("lost")


def an_hour(_cap_s: float | None = None) -> float:
    return 3600.0


def seven(_cap_s: float | None = None) -> float:
    return 7.0


class FakeCredentials:
    """What links need of credentials."""

    def __init__(self, *relays: str) -> None:
        self.membership = Membership(
            tunnel_id=TUNNEL_ID,
            agent_id="agent-1",
            gateway_url="https://gateway.test",
            relays=relays,
            services_ca_pem=SERVICES.pem.decode(),
        )
        self.listeners = Listeners()
        self.token = Secret("token-1")
        self.wanted = 0
        self.on_want: Callable[[], object] = lambda: None
        self.wanted_after_s: list[float] = []
        self.instance = new_tunnel_id()
        self.link = self.new_link()

    def new_link(self) -> KeyPair:
        made = AGENTS.credentials(AgentIdentity(TUNNEL_ID, "agent-1"))
        return KeyPair(made.key_pem, made.certificate_pem)

    def want_token(self, after_s: float = 0.0) -> None:
        self.wanted += 1
        self.wanted_after_s.append(after_s)
        self.on_want()

    def name_agent(self, agent_id: str) -> None:
        self.membership = msgspec.structs.replace(self.membership, agent_id=agent_id)

    def name_relays(self, *relays: str) -> None:
        self.membership = msgspec.structs.replace(self.membership, relays=relays)


class Sentences(Reporter):
    """Keeps what a person would read."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []
        self.rests_s: list[float] = []
        self.has_rest = asyncio.Event()

    def _say(self, event: str, mood: str, sentence: str, **facts: object) -> None:
        self.said.append((event, sentence))
        rest_s = facts.get("retry_in_s")
        if isinstance(rest_s, float):
            self.rests_s.append(rest_s)
            self.has_rest.set()

    def events(self) -> list[str]:
        return [event for event, _ in self.said]


@dataclass
class House:
    """Links over fake relays."""

    credentials: FakeCredentials
    links: Links = field(init=False)
    reporter: Sentences = field(default_factory=Sentences)
    tried: list[str] = field(default_factory=list[str])
    dialled: list[FakeSession] = field(default_factory=list[FakeSession])
    refusals: dict[str, list[LinkRefused]] = field(default_factory=dict[str, list[LinkRefused]])
    on_dial: Callable[[FakeSession], None] = lambda _session: None
    streams: list[FakeStreams] = field(default_factory=list[FakeStreams])
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.links = Links(
            cast("Credentials", self.credentials),
            self.reporter,
            new_streams=self._new_streams,
            status=lambda: Status(models=("m",)),
            max_streams=64,
            dial=cast("Any", self._dial),
            rng=random.Random(7),
        )
        for slot in self.links.slots:
            cast("Any", slot).backoff = QuickBackoff()

    def _new_streams(self) -> LinkStreams:
        self.streams.append(FakeStreams())
        return cast("LinkStreams", self.streams[-1])

    async def _dial(self, relay: str, *, hello: Hello, **_: object) -> LinkSession:
        waiting = self.refusals.get(relay, [])
        session = FakeSession(relay, hello, self.credentials.link.certificate_pem)
        self.tried.append(relay)
        self.on_dial(session)
        async with self.changed:
            if not waiting:
                self.dialled.append(session)
            self.changed.notify_all()
        if waiting:
            raise waiting.pop(0)
        await asyncio.sleep(0)
        return cast("LinkSession", session)

    async def until(self, count: int) -> list[FakeSession]:
        """Wait until so many links were made, all told, and are in use."""
        async with asyncio.timeout(50), self.changed:
            await self.changed.wait_for(lambda: len(self.dialled) >= count)
        for _ in range(10):
            await asyncio.sleep(0)
        return self.dialled


@asynccontextmanager
async def running(house: House) -> AsyncGenerator[House]:
    task = asyncio.create_task(house.links.run())
    try:
        yield house
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        house.links.abort()


def house_of(*relays: str) -> House:
    return House(FakeCredentials(*relays))


async def test_two_links_go_to_two_relays() -> None:
    async with running(house_of(A, B, C)) as house:
        sessions = await house.until(2)
        assert len({one.relay for one in sessions}) == 2
        assert [one.tokens for one in sessions] == [["token-1"]] * 2
        assert sessions[0].statuses == [Status(models=("m",))]
        assert sessions[0].hello.node == "agent-1"
        assert sessions[0].hello.instance == sessions[1].hello.instance
        assert sessions[0].hello.epoch < sessions[1].hello.epoch


async def test_agents_spread_over_relays() -> None:
    chosen: set[str] = set()
    firsts: Counter[str] = Counter()
    for number in range(30):
        house = house_of(A, B, C)
        house.credentials.name_agent(f"agent-{number}")
        async with running(house):
            sessions = await house.until(2)
            chosen |= {one.relay for one in sessions}
            firsts[sessions[0].relay] += 1
    assert chosen == {A, B, C}
    assert min(firsts[relay] for relay in (A, B, C)) >= 3


async def test_two_hosts_with_the_same_state_choose_the_same_relays() -> None:
    """Where they meet, each is replaced by the other and asks the gateway who that is."""
    many = [f"wss://{number}.test:1" for number in range(12)]
    async with (
        running(house_of(*many)) as one,
        running(house_of(*reversed(many))) as other,
    ):
        chosen = [{it.relay for it in await house.until(2)} for house in (one, other)]
    assert chosen[0] == chosen[1]


async def test_two_hosts_with_the_same_state_still_meet_after_a_network_failed() -> None:
    """It takes both links of one of them at once."""
    many = [f"wss://{number}.test:1" for number in range(12)]
    async with running(house_of(*many)) as house:
        sessions = list(await house.until(2))
        for slot in house.links.slots:
            assert slot.link is not None
            slot.link.opened_at -= links._AVOID_S
        for session in sessions:
            session.lose(None)
        again = await house.until(4)
        assert {it.relay for it in again[2:]} == {it.relay for it in sessions}


class Clones:
    """Two hosts with one state, between relays and a gateway that find out."""

    def __init__(self) -> None:
        self._calls: list[tuple[int, str]] = []
        self._at_relays: dict[str, FakeSession] = {}

    def host(self, *relays: str) -> House:
        """One more host; it calls the gateway now, and whenever it wants a token."""
        house = house_of(*relays)
        credentials, loop = house.credentials, asyncio.get_running_loop()

        def call() -> None:
            self._calls.append((int(loop.time()), credentials.instance))

        def call_later() -> None:
            loop.call_later(credentials.wanted_after_s[-1], call)

        call()
        credentials.on_want = call_later
        house.on_dial = self._replace
        return house

    def told(self) -> set[str]:
        """The runs that some answer of the gateway told of the other one."""
        known: dict[str, Instance] = {}
        told: set[str] = set()
        for at, run in self._calls:
            first = known[run].first_seen_at if run in known else at
            known[run] = Instance(run, "host", first, at)
            if overlapping(list(known.values()), at, links.DRAIN_S):
                told.add(run)
        return told

    def _replace(self, session: FakeSession) -> None:
        former = self._at_relays.get(session.relay)
        self._at_relays[session.relay] = session
        if former is not None and former.hello.instance != session.hello.instance:
            former.lose(CloseCode.REPLACED)


async def test_two_hosts_with_the_same_state_are_told_of_each_other_within_a_minute() -> None:
    """Until then each asks for its next token only after minutes."""
    many = [f"wss://{number}.test:1" for number in range(12)]
    clones = Clones()
    first = clones.host(*many)
    async with running(first):
        await first.until(2)
        await pass_time(300)
        second = clones.host(*many)
        async with running(second):
            for _ in range(60):
                await pass_time(1)
    assert clones.told() == {first.credentials.instance, second.credentials.instance}


async def test_a_relay_that_takes_a_link_and_does_not_keep_it_is_not_the_next_choice() -> None:
    many = (A, B, C)
    async with running(house_of(*many)) as house:
        first, second = await house.until(2)
        first.lose(CloseCode.TOKEN_EXPIRED)
        third = (await house.until(3))[2]
        assert {first.relay, second.relay, third.relay} == {A, B, C}


async def test_one_relay_gets_one_link() -> None:
    async with running(house_of(A)) as house:
        await house.until(1)
        assert [slot.relay for slot in house.links.slots] == [A, ""]
        assert house.reporter.events() == ["link.connected", "agent.ready"]


async def test_a_relay_that_appears_is_used() -> None:
    async with running(house_of(A)) as house:
        await house.until(1)
        house.credentials.name_relays(A, B)
        house.links.relays_changed()
        assert {one.relay for one in await house.until(2)} == {A, B}


async def test_a_lost_link_is_made_again() -> None:
    async with running(house_of(A)) as house:
        (first,) = await house.until(1)
        first.lose(None)
        _, second = await house.until(2)
        assert second.hello.epoch > first.hello.epoch
        backoff = cast("QuickBackoff", house.links.slots[0].backoff)
        assert backoff.told == ["opened", "lost", "failed", "opened"]
        assert "link.lost" in house.reporter.events()


async def test_an_unreachable_relay_is_tried_again_and_others_are_tried_first() -> None:
    house = house_of(A, B, C)
    for relay in (A, B, C):
        house.refusals[relay] = [LinkRefused(relay, "connection refused")]
    async with running(house):
        sessions = await house.until(2)
        assert len({one.relay for one in sessions}) == 2
    sentences = [text for event, text in house.reporter.said if event == "link.unreachable"]
    assert sentences
    assert all(text.endswith("connection refused; trying again in a second") for text in sentences)


async def test_losing_the_last_link_wakes_those_that_rest() -> None:
    house = house_of(A, B)
    backoff = cast("Any", house.links.slots[1].backoff)
    backoff.next_delay_s = an_hour  # the second slot's relay has been away for long
    cast("Any", house.links.slots[0].backoff).next_delay_s = an_hour
    house.refusals[B] = [LinkRefused(B, "away")]
    house.credentials.name_relays(A)
    async with running(house):
        (first,) = await house.until(1)
        house.credentials.name_relays(A, B)
        house.links.relays_changed()
        async with asyncio.timeout(50), house.changed:
            await house.changed.wait_for(lambda: len(house.tried) == 2)
        await house.until(1)
        first.lose(None)
        assert (await house.until(2))[1].relay == B


async def test_a_link_that_comes_about_wakes_those_that_rest() -> None:
    """The network may be back: nobody waits for the end of a long pause."""
    house = house_of(A)
    house.refusals[B] = [LinkRefused(B, "away")]
    for slot in house.links.slots:
        cast("Any", slot.backoff).next_delay_s = an_hour
    house.credentials.name_relays(B)
    async with running(house):
        async with asyncio.timeout(50), house.changed:
            await house.changed.wait_for(lambda: house.tried == [B])
        house.credentials.name_relays(A, B)
        house.links.relays_changed()
        assert {one.relay for one in await house.until(2)} == {A, B}


@pytest.mark.parametrize(
    ("cause", "code", "cap_s"),
    [
        (ConnectionRefusedError(), None, 5.0),
        (socket.gaierror(), None, 5.0),
        (TimeoutError(), None, 5.0),
        (ConnectionResetError(), None, 30.0),
        (None, CloseCode.NOT_READY, 10.0),
        (None, CloseCode.OVERLOADED, 30.0),
        (None, None, 30.0),
    ],
)
def test_the_cheaper_a_try_is_for_the_relay_the_sooner_it_is_made(
    cause: OSError | None, code: CloseCode | None, cap_s: float
) -> None:
    error = LinkRefused(A, "", code)
    error.__cause__ = cause
    assert links._cap_s(error, code) == cap_s


async def resting(house: House, error: LinkRefused) -> float:
    """How long a slot rests after its first dial failed."""
    house.refusals[A] = [error]
    cast("Any", house.links.slots[0].backoff).next_delay_s = seven
    async with running(house), asyncio.timeout(50):
        await house.reporter.has_rest.wait()
    return house.reporter.rests_s[0]


async def test_a_relay_that_sheds_load_is_left_alone_for_as_long_as_it_asks() -> None:
    error = LinkRefused(A, "overloaded", retry_after_s=40.0)
    assert 40.0 <= await resting(house_of(A), error) <= 50.0
    assert await resting(house_of(A), LinkRefused(A, "away")) == 7.0


async def test_a_relay_cannot_keep_an_agent_away_for_ever() -> None:
    error = LinkRefused(A, "overloaded", retry_after_s=1e9)
    assert await resting(house_of(A), error) <= 1.25 * links.MAX_RETRY_AFTER_S


async def test_a_second_host_with_the_same_state_is_asked_for_and_not_fought() -> None:
    """Each of the two cuts the other's links: seldom, or no answer would ever be whole."""
    house = house_of(A, B)
    async with running(house):
        for one in await house.until(2):
            one.lose(CloseCode.REPLACED)
        async with asyncio.timeout(50):
            await house.reporter.has_rest.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(house.reporter.rests_s) == 2
        assert all(15.0 <= it <= 30.0 for it in house.reporter.rests_s)
        house.credentials.listeners.token()  # what the gateway answered wakes nobody
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(house.tried) == 2
    assert house.credentials.wanted_after_s == [4.0, 4.0]


async def test_goaway_connects_elsewhere_first_and_then_drains() -> None:
    async with running(house_of(A, B, C)) as house:
        first, second = await house.until(2)
        was_drained_when_dialled: list[bool] = []
        house.on_dial = lambda _s: was_drained_when_dialled.append(first.is_drained.is_set())
        first.send_away()
        third = (await house.until(3))[2]
        assert third.relay not in {first.relay, second.relay}
        assert was_drained_when_dialled == [False]
        async with asyncio.timeout(50):
            await first.is_drained.wait()
        assert house.streams[0].is_drained
        assert not second.is_drained.is_set()


async def test_a_link_that_aged_is_replaced_at_the_same_relay_before_it_drains() -> None:
    async with running(house_of(A, B, C)) as house:
        first, _ = await house.until(2)
        was_drained_when_dialled: list[bool] = []
        house.on_dial = lambda _s: was_drained_when_dialled.append(first.is_drained.is_set())
        first.aged.set_result(None)
        third = (await house.until(3))[2]
        assert third.relay == first.relay
        assert was_drained_when_dialled == [False]
        async with asyncio.timeout(50):
            await first.is_drained.wait()


async def test_goaway_of_the_only_relay_keeps_the_old_link_until_there_is_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "_LOOK_AGAIN_S", 0.0)
    house = house_of(A)
    async with running(house):
        (first,) = await house.until(1)
        house.refusals[A] = [LinkRefused(A, "draining", CloseCode.GOING_AWAY)] * 3
        first.send_away()
        await house.until(2)
        assert house.refusals[A] == []
        async with asyncio.timeout(50):
            await first.is_drained.wait()


async def test_a_draining_relay_that_ends_at_last_is_dialled_at_once() -> None:
    """Refusals during the drain, for minutes perhaps, say nothing about when it is back."""
    house = house_of(A)
    backoff = cast("Any", house.links.slots[0].backoff)
    async with running(house):
        (first,) = await house.until(1)
        backoff.next_delay_s = an_hour
        house.refusals[A] = [LinkRefused(A, "draining", CloseCode.GOING_AWAY)]
        first.send_away()
        async with asyncio.timeout(50), house.changed:
            await house.changed.wait_for(lambda: len(house.tried) == 2)
        first.lose(None)
        await house.until(2)
    assert backoff.told == ["opened", "lost", "opened"]


async def test_a_new_token_is_presented_on_standing_links() -> None:
    async with running(house_of(A, B)) as house:
        sessions = await house.until(2)
        house.credentials.token = Secret("token-2")
        house.credentials.listeners.token()
        await house.until(2)
        assert [one.tokens for one in sessions] == [["token-1", "token-2"]] * 2


async def test_a_relay_that_refuses_a_newer_token_keeps_the_link_and_is_named() -> None:
    async with running(house_of(A)) as house:
        (session,) = await house.until(1)
        session.renews = False
        house.credentials.listeners.token()
        async with asyncio.timeout(50):
            while "token.not_renewed" not in house.reporter.events():  # noqa: ASYNC110 - it is told, nothing waits
                await asyncio.sleep(0)
        assert not session.closed.done()
        sentence = dict(house.reporter.said)["token.not_renewed"]
        assert f"{A} refused the renewed token: relay clock differs by about 3600 s" in sentence


async def test_a_new_certificate_gets_new_links_before_the_old_ones_drain() -> None:
    async with running(house_of(A, B)) as house:
        old = list(await house.until(2))
        house.credentials.link = house.credentials.new_link()
        house.credentials.token = Secret("token-2")
        house.credentials.listeners.certificate()
        new = (await house.until(4))[2:]
        assert {one.relay for one in new} == {A, B}
        assert [one.tokens for one in new] == [["token-2"]] * 2
        assert all(one.certificate != old[0].certificate for one in new)
        for one in old:
            async with asyncio.timeout(50):
                await one.is_drained.wait()
            assert one.tokens == ["token-1"]


async def test_a_certificate_renewed_during_a_dial_is_not_forgotten() -> None:
    house = house_of(A)

    def on_dial(_session: FakeSession) -> None:
        if len(house.tried) == 1:
            house.credentials.link = house.credentials.new_link()
            house.credentials.listeners.certificate()

    house.on_dial = on_dial
    async with running(house):
        first, second = await house.until(2)
        assert second.certificate == house.credentials.link.certificate_pem
        async with asyncio.timeout(50):
            await first.is_drained.wait()
        assert len(house.tried) == 2


@pytest.mark.parametrize("has_new_certificate", [False, True])
async def test_a_token_renewed_during_a_dial_is_presented_with_its_certificate(
    *, has_new_certificate: bool
) -> None:
    house = house_of(A)
    credentials = house.credentials

    def on_dial(_session: FakeSession) -> None:
        credentials.token = Secret("token-2")
        if has_new_certificate:
            credentials.link = credentials.new_link()
        else:
            credentials.listeners.token()

    house.on_dial = on_dial
    async with running(house):
        (session,) = await house.until(1)
        assert session.tokens == ["token-1", *([] if has_new_certificate else ["token-2"])]


@pytest.mark.parametrize(
    "code", [CloseCode.TOKEN_EXPIRED, CloseCode.TOKEN_REFUSED, CloseCode.REVOKED]
)
async def test_a_relay_that_does_not_believe_us_makes_us_ask_the_gateway(
    code: CloseCode,
) -> None:
    async with running(house_of(A)) as house:
        (first,) = await house.until(1)
        first.lose(code)
        await house.until(2)
        assert house.credentials.wanted == 1


def disbelieving(code: CloseCode | None) -> House:
    """A relay that refuses every link, and a gateway that gives a new token each time."""
    house = house_of(A)
    credentials = house.credentials
    cast("Any", house.links.slots[0].backoff).next_delay_s = an_hour
    if code is None:
        house.refusals[A] = [LinkRefused(A, "closed", is_over_certificate=True) for _ in range(9)]
    house.on_dial = lambda session: setattr(session, "refuses", code)
    credentials.on_want = lambda: asyncio.get_running_loop().call_later(
        0.0, credentials.listeners.token
    )
    return house


async def until_settled(house: House, dials: int) -> None:
    async with asyncio.timeout(50), house.changed:
        await house.changed.wait_for(lambda: len(house.tried) >= dials)
    for _ in range(50):
        await asyncio.sleep(0)


DISBELIEF = [CloseCode.TOKEN_EXPIRED, CloseCode.TOKEN_REFUSED, CloseCode.REVOKED, None]


@pytest.mark.parametrize("code", DISBELIEF)
async def test_a_new_token_does_not_hurry_a_slot_that_a_relay_disbelieves(
    monkeypatch: pytest.MonkeyPatch, code: CloseCode | None
) -> None:
    """Each dial asks for a token: a token that brought the next dial would make a loop."""
    monkeypatch.setattr(links, "_HURRY_S", 0.0)
    house = disbelieving(code)
    async with running(house):
        await until_settled(house, 1)
        assert (len(house.tried), house.credentials.wanted) == (1, 1)


async def test_a_new_token_does_not_hurry_a_slot_whose_standing_link_was_disbelieved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "_HURRY_S", 0.0)
    house = disbelieving(CloseCode.REVOKED)
    house.on_dial = lambda _session: None
    async with running(house):
        (first,) = await house.until(1)
        first.lose(CloseCode.REVOKED)
        await until_settled(house, 1)
        assert (len(house.tried), house.credentials.wanted) == (1, 1)


@pytest.mark.parametrize("code", DISBELIEF)
async def test_a_renewed_certificate_hurries_a_disbelieved_slot_once(
    monkeypatch: pytest.MonkeyPatch, code: CloseCode | None
) -> None:
    monkeypatch.setattr(links, "_HURRY_S", 0.0)
    house = disbelieving(code)
    async with running(house):
        await until_settled(house, 1)
        house.credentials.listeners.certificate()
        await until_settled(house, 2)
        assert (len(house.tried), house.credentials.wanted) == (2, 2)


async def test_a_refused_certificate_is_told_with_what_to_do() -> None:
    house = house_of(A)
    house.refusals[A] = [LinkRefused(A, "the connection was closed", is_over_certificate=True)]
    async with running(house):
        await house.until(1)
    said = dict(house.reporter.said)
    assert "byoai-agent join CODE --replace" in said["link.certificate_refused"]
    assert house.credentials.wanted == 1


async def test_an_outdated_agent_ends_when_no_relay_takes_it() -> None:
    house = house_of(A)
    house.refusals[A] = [LinkRefused(A, "no common version", CloseCode.UNSUPPORTED_VERSION)]
    with pytest.raises(ExceptionGroup) as ended:
        async with asyncio.timeout(50):
            await house.links.run()
    (error,) = ended.value.exceptions
    assert isinstance(error, AgentOutdated)
    assert error.is_fatal
    assert "pip install --upgrade byoai-agent" in str(error)


async def test_one_odd_relay_does_not_end_an_agent_that_has_another() -> None:
    async with running(house_of(A)) as house:
        await house.until(1)
        house.refusals[B] = [LinkRefused(B, "odd", CloseCode.UNSUPPORTED_VERSION)]
        house.credentials.name_relays(A, B)
        house.links.relays_changed()
        assert [one.relay for one in await house.until(2)] == [A, B]


async def test_status_goes_out_when_it_changes() -> None:
    async with running(house_of(A, B)) as house:
        sessions = await house.until(2)
        house.links.status_changed()
        await house.until(2)
        assert [len(one.statuses) for one in sessions] == [2, 2]


async def test_a_token_refused_at_once_does_not_leave_the_link_open() -> None:
    house = house_of(A)
    dialled: list[FakeSession] = []

    def on_dial(session: FakeSession) -> None:
        dialled.append(session)
        session.refuses = CloseCode.TOKEN_REFUSED if len(dialled) == 1 else None

    house.on_dial = on_dial
    async with running(house):
        first, _ = await house.until(2)
        assert first.is_aborted
        assert house.credentials.wanted == 1


async def test_stopping_drains_every_link() -> None:
    house = house_of(A, B)
    async with running(house):
        sessions = await house.until(2)
    await house.links.drain(1.0)
    assert all(one.is_drained.is_set() or one.is_aborted for one in sessions)
    assert all(one.is_drained for one in house.streams)
