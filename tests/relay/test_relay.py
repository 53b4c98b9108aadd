"""A relay with real sockets; its peers are partly ours and partly of another hand.

`Stranger` speaks the protocol over the independent `websockets` library.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from byoai_relay import relay as relay_module
from byoai_relay import trust as trust_module
from byoai_relay.config import Limits
from byoai_relay.directory import MAX_TUNNEL_STATUS_BYTES, MIN_STATUS_BYTES
from byoai_relay.port import BYTES_PER_WORK
from byoai_relay.relay import AUTH_TIMEOUT_S
from byoai_relay.relay_link import RelayLink
from byoai_relay.service import RelayService
from byoai_relay.trust import Taken
from byoai_shared.errors import ConfigError
from byoai_shared.identity import AgentIdentity, GatewayIdentity, Identity
from byoai_shared.keys import new_key
from byoai_shared.link import websocket
from byoai_shared.link.errors import LinkLost, LinkRefused, StreamReset, TokenNotRenewed
from byoai_shared.link.session import connect
from byoai_shared.private_files import write_new_file
from byoai_shared.protocol import events as ev
from byoai_shared.protocol.control import (
    Hello,
    PresenceState,
    Role,
    Status,
    encode_control,
    fit_status,
)
from byoai_shared.protocol.endpoint import Endpoint
from byoai_shared.protocol.errors import CloseCode, ResetCode
from byoai_shared.protocol.frames import MAX_PAYLOAD_BYTES, FrameType, encode
from byoai_shared.protocol.trust import (
    SWEEP_ROWS,
    Denial,
    Trust,
    TrustHeld,
    agent_subject,
    split_trust,
)
from byoai_shared.tls import Credentials, client_context
from byoai_shared.tokens import LEEWAY_S
from support.authority import Authority
from support.links import AGENT, GATEWAY, PATIENCE_S, TUNNEL_ID, certificates
from support.pipes import Pipe, Pipes
from support.relays import Rig, config_in, end, fetch, fetch_json, hello_of, relaying
from support.transcript import hello, say
from support.trusts import denials, whole

OTHER_TUNNEL = "bcdefghijklmnopqrstuvwxyza"


@pytest.fixture(autouse=True)
def soon_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.05)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with relaying(tmp_path) as made:
        yield made


class Stranger:
    """An end of a link, with our protocol on another library's WebSocket."""

    def __init__(self, connection: ClientConnection, endpoint: Endpoint) -> None:
        self.connection = connection
        self.endpoint = endpoint
        self.events: list[ev.Event] = []

    async def flush(self) -> None:
        """Say what waits to be said."""
        while self.endpoint.outbox:
            await self.connection.send(self.endpoint.outbox.take())

    async def until(self, what: Callable[[], bool]) -> None:
        """Listen until something is so."""
        async with asyncio.timeout(PATIENCE_S):
            await self.flush()
            while not what():
                message = await self.connection.recv()
                assert isinstance(message, bytes)
                self.events += self.endpoint.receive(message, 0.0)
                await self.flush()

    def saw(self, kind: type[ev.Event]) -> bool:
        """Whether an event of this kind came."""
        return any(isinstance(event, kind) for event in self.events)

    async def closed(self) -> tuple[int, str]:
        """Listen until the relay closes the link; its code and reason."""
        with contextlib.suppress(ConnectionClosed):
            await self.until(lambda: False)
        close = self.connection.protocol.close_rcvd
        assert close is not None
        return close.code, close.reason


@asynccontextmanager
async def stranger(
    rig: Rig, identity: Identity, credentials: Credentials | None = None, said: Hello | None = None
) -> AsyncGenerator[Stranger]:
    """Link to a relay through the other library."""
    url = rig.agents_url if isinstance(identity, AgentIdentity) else rig.gateways_url
    context = client_context(
        server_ca_pem=certificates().services.pem,
        credentials=credentials or certificates().of(identity),
    )
    async with dial(
        url + "/link",
        ssl=context,
        subprotocols=[Subprotocol("byoai.link.v1")],
        compression=None,
        close_timeout=1,
    ) as connection:
        yield Stranger(connection, Endpoint(said or hello_of(identity), now=0.0))


def is_whole_wanted(gateway: Stranger) -> bool:
    """Whether the relay asked this gateway for the whole of what it is to believe."""
    return any(isinstance(it, ev.TrustReported) and it.held.wanted for it in gateway.events)


# -- strangers that know the protocol


async def test_an_agent_and_a_gateway_by_another_hand(rig: Rig) -> None:
    credentials = certificates().of(AGENT)
    async with stranger(rig, GATEWAY) as gateway, stranger(rig, AGENT, credentials) as agent:
        gateway.endpoint.give_trust(rig.trust())
        await gateway.until(lambda: gateway.endpoint.peer is not None)
        await rig.until(lambda: rig.service.relay.is_ready)
        agent.endpoint.authenticate(rig.token(credentials))
        await agent.until(lambda: agent.saw(ev.TokenAccepted))
        await gateway.until(lambda: gateway.saw(ev.PresenceReported))
        stream_id = gateway.endpoint.open(TUNNEL_ID, 0.0)
        await gateway.flush()
        await agent.until(lambda: agent.saw(ev.StreamOpened))
        assert ev.StreamOpened(1, "gateway-1") in agent.events
        agent.endpoint.accept(1)
        agent.endpoint.send(1, bytes(100_000))
        agent.endpoint.finish(1)
        await agent.flush()
        await gateway.until(lambda: gateway.saw(ev.StreamFinished))
        assert sum(len(e.data) for e in gateway.events if isinstance(e, ev.DataReceived)) == 100_000
        gateway.endpoint.reset(stream_id, ResetCode.CANCELLED)
        await gateway.flush()
        await agent.until(lambda: agent.saw(ev.StreamAborted))


# -- who may say what


async def test_an_agent_cannot_say_it_is_a_gateway(rig: Rig) -> None:
    await rig.gateway()
    said = Hello(role=Role.GATEWAY, node=AGENT.agent_id, instance="evil")
    async with stranger(rig, AGENT, said=said) as agent:
        takeover = whole(10**6, issuer="evil", audience="evil")
        await agent.connection.send(agent.endpoint.outbox.take() + say(takeover))
        assert (await agent.closed())[0] == CloseCode.WRONG_ROLE
    assert rig.service.relay.trust.revision == 1


@pytest.mark.parametrize("node", ["agent-2", "gateway-1"])
async def test_an_agent_cannot_say_it_is_another(rig: Rig, node: str) -> None:
    async with stranger(rig, AGENT, said=hello(Role.AGENT, node)) as agent:
        await agent.flush()
        code, reason = await agent.closed()
    assert code == CloseCode.WRONG_ROLE
    assert reason == f"HELLO of agent {node}, certificate of agent agent-1"


async def test_a_service_that_is_no_gateway_has_no_business_here(rig: Rig) -> None:
    relay = certificates().relay
    async with stranger(rig, GATEWAY, relay) as peer:
        # Said before the refusal can arrive.
        with contextlib.suppress(ConnectionClosed):
            await peer.connection.send(peer.endpoint.outbox.take() + say(rig.trust()))
        assert (await peer.closed())[0] == CloseCode.WRONG_ROLE
    assert not rig.service.relay.trust.is_known


@pytest.mark.parametrize("listener", ["agents", "gateways"])
async def test_each_listener_knows_its_own_authority_only(rig: Rig, listener: str) -> None:
    wrong = GATEWAY if listener == "agents" else AGENT
    url = rig.agents_url if listener == "agents" else rig.gateways_url
    with pytest.raises(LinkRefused):
        await rig._connect(url, certificates().of(wrong), hello_of(wrong), None, None)
    forged = Authority("agents").credentials(AGENT)
    with pytest.raises(LinkRefused):
        await rig._connect(url, forged, hello_of(AGENT), None, None)
    assert rig.service.relay.links_accepted == 0


# -- tokens


async def test_before_a_gateway_has_spoken_agents_are_told_to_come_back(rig: Rig) -> None:
    with pytest.raises(LinkLost) as caught:
        await rig.agent()
    assert caught.value.code is CloseCode.NOT_READY
    await rig.gateway()
    await rig.agent()


@pytest.mark.parametrize(
    "fault", ["rubbish", "another certificate", "expired", "audience", "another tunnel", "empty"]
)
async def test_a_token_that_does_not_hold_is_refused(rig: Rig, fault: str) -> None:
    await rig.gateway()
    credentials = certificates().of(AGENT)
    tokens: dict[str, Callable[[], str]] = {
        "rubbish": lambda: "a.b.c",
        "empty": lambda: "",
        "another certificate": lambda: rig.token(certificates().of(AGENT)),
        "expired": lambda: rig.token(credentials, lifetime_s=-60),
        "audience": lambda: rig.token(credentials, audience="someone else"),
        "another tunnel": lambda: rig.token(credentials, tunnel_id=OTHER_TUNNEL),
    }
    async with stranger(rig, AGENT, credentials) as agent:
        token = tokens[fault]()
        agent.endpoint.authenticate(token)
        await agent.flush()
        code, reason = await agent.closed()
    assert code == CloseCode.TOKEN_REFUSED
    assert not token or token not in reason
    assert rig.service.relay.directory.choose(TUNNEL_ID) is None


async def test_an_agent_that_never_authenticates_is_let_go(rig: Rig) -> None:
    async with stranger(rig, AGENT) as agent:
        await agent.until(lambda: agent.endpoint.peer is not None)
        rig.monotonic.now += AUTH_TIMEOUT_S - 1
        await agent.connection.send(encode(FrameType.PING, 0, bytes(8)))
        await rig.until(lambda: rig.service.relay.links()[0].port._last_received > 1000.0)
        rig.service.relay.tick()
        assert rig.service.relay.link_count == 1
        rig.pass_time(1)
        assert (await agent.closed())[0] == CloseCode.HANDSHAKE_TIMEOUT


async def test_a_peer_that_never_says_hello_is_let_go(rig: Rig) -> None:
    async with stranger(rig, GATEWAY) as peer:
        await rig.until(lambda: rig.service.relay.link_count == 1)
        rig.pass_time(5)
        assert (await peer.closed())[0] == CloseCode.HANDSHAKE_TIMEOUT


async def test_a_silent_link_is_found_dead_after_25_s(rig: Rig) -> None:
    gateway, seen = await rig.gateway()
    agent = await rig.agent(Pipes())
    ours = Pipe()
    await gateway.open_stream(TUNNEL_ID, ours)
    (agent_link,) = [link for link in rig.service.relay.links() if link.port.tunnel_id]
    (gateway_link,) = [link for link in rig.service.relay.links() if not link.port.tunnel_id]
    agent_link.link._transport.underlying_transport.pause_reading()  # type: ignore[union-attr] # it stands
    for _ in range(5):
        rig.pass_time(5)
        gateway._endpoint.ping(0.0)
        gateway._flush()
        await rig.until(lambda: gateway_link.port._last_received == rig.monotonic.now)
    error = await ours.lost()
    assert isinstance(error, StreamReset)
    assert error.code is ResetCode.LINK_LOST
    await rig.until(lambda: seen[-1].state is PresenceState.GONE)
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.shield(agent.closed)


# -- rotation


async def test_an_expired_token_takes_no_new_streams_drains_and_closes(rig: Rig) -> None:
    gateway, seen = await rig.gateway()
    pipes = Pipes()
    agent = await rig.agent(pipes)
    ours = Pipe()
    await gateway.open_stream(TUNNEL_ID, ours)
    rig.unix.now += 901
    rig.service.relay.tick()
    goaway = await agent.goaway
    assert goaway.code == CloseCode.TOKEN_EXPIRED
    await rig.until(lambda: seen[-1].state is PresenceState.GONE)
    with pytest.raises(StreamReset):
        await gateway.open_stream(TUNNEL_ID, Pipe())
    pipes.made[0].transport.write(b"the rest")
    await ours.until(lambda: ours.received == b"the rest")
    for link in rig.service.relay.links():
        link.port._last_received += 60
    rig.pass_time(60)
    lost = await agent.closed
    assert lost.code is CloseCode.TOKEN_EXPIRED
    assert isinstance(await ours.lost(), StreamReset)


async def test_a_rotated_token_keeps_the_link_and_its_streams(rig: Rig) -> None:
    gateway, seen = await rig.gateway()
    credentials = certificates().of(AGENT)
    pipes = Pipes()
    agent = await rig.agent(pipes, credentials=credentials)
    ours = Pipe()
    await gateway.open_stream(TUNNEL_ID, ours)
    rig.unix.now += 600
    await agent.authenticate(rig.token(credentials))
    rig.unix.now += 600
    rig.service.relay.tick()
    pipes.made[0].transport.write(b"still here")
    await ours.until(lambda: ours.received == b"still here")
    await rig.until(lambda: len(seen) == 2)
    assert [presence.state for presence in seen] == [PresenceState.ONLINE, PresenceState.CHANGED]
    await gateway.open_stream(TUNNEL_ID, Pipe())


async def test_a_relay_whose_clock_goes_back_keeps_the_link_until_its_older_token_expires(
    rig: Rig,
) -> None:
    gateway, seen = await rig.gateway()
    credentials = certificates().of(AGENT)
    pipes = Pipes()
    agent = await rig.agent(pipes, credentials=credentials)
    ours = Pipe()
    await gateway.open_stream(TUNNEL_ID, ours)
    renewed = rig.token(credentials)
    rig.unix.now -= 3600
    with pytest.raises(TokenNotRenewed) as caught:
        await agent.authenticate(renewed)
    reason = (
        "the token is not valid yet; check the clocks; relay clock differs from the gateway's by "
        "about 3600 s"
    )
    assert caught.value.reason == reason
    assert caught.value.accepted_until == int(rig.unix.now) + 3600 + 900
    # The gateway is told, and the link works as before.
    await rig.until(lambda: len(seen) == 2)
    assert (seen[1].state, seen[1].token_refusal) == (PresenceState.CHANGED, reason)
    assert seen[1].accepted_until == caught.value.accepted_until
    pipes.made[0].transport.write(b"still here")
    await ours.until(lambda: ours.received == b"still here")
    await gateway.open_stream(TUNNEL_ID, Pipe())
    status = await fetch_json(rig.ops, "/status")
    assert cast("list[dict[str, object]]", status["agents"])[0]["tokenRefusal"] == reason
    assert (
        'tokens_refused_total{fault="not_yet_valid"} 1.0' in (await fetch(rig.ops, "/metrics"))[1]
    )
    # With the clock set right, the next token is taken and nothing is left of it.
    rig.unix.now += 3600
    await agent.authenticate(rig.token(credentials))
    await rig.until(lambda: len(seen) == 3)
    assert seen[2].token_refusal == ""
    # But an older token ends as ever, by the relay's own clock.
    rig.unix.now += 901
    rig.service.relay.tick()
    assert (await agent.goaway).code == CloseCode.TOKEN_EXPIRED


async def test_a_key_that_the_relay_has_not_heard_of_yet_does_not_cost_a_running_link(
    rig: Rig,
) -> None:
    await rig.gateway()
    credentials = certificates().of(AGENT)
    agent = await rig.agent(credentials=credentials)
    known, rig.signing_key = rig.signing_key, new_key()
    with pytest.raises(LinkLost) as lost:  # signed by another's key under a known name
        await agent.authenticate(rig.token(credentials))
    assert lost.value.code is CloseCode.TOKEN_REFUSED
    rig.signing_key = known
    again = await rig.agent(credentials=credentials, epoch=1)
    token = rig.token(credentials, key_id="k2")
    with pytest.raises(TokenNotRenewed, match="a key that is not trusted"):
        await again.authenticate(token)
    assert again.is_usable


async def test_a_renewal_while_denials_are_crowded_does_not_cost_a_running_link(
    rig: Rig,
) -> None:
    gateway, _ = await rig.gateway()
    credentials = certificates().of(AGENT)
    agent = await rig.agent(credentials=credentials)
    rig.revision += 1
    crowded = whole(rig.revision, (rig.jwk,), issued_after=int(rig.unix.now))
    gateway.send_trust(crowded)
    await rig.until(lambda: rig.service.relay.trust.revision == rig.revision)
    with pytest.raises(TokenNotRenewed, match="before so many revocations"):
        await agent.authenticate(rig.token(credentials))
    assert agent.is_usable
    # Nothing is left of it once the token is newer than the rule.
    rig.unix.now += LEEWAY_S + 1
    await agent.authenticate(rig.token(credentials))


async def test_a_first_token_that_the_relays_clock_refuses_names_the_difference(rig: Rig) -> None:
    await rig.gateway()
    credentials = certificates().of(AGENT)
    token = rig.token(credentials)
    rig.unix.now -= 3600
    async with stranger(rig, AGENT, credentials) as agent:
        agent.endpoint.authenticate(token)
        await agent.flush()
        code, reason = await agent.closed()
    assert code == CloseCode.TOKEN_REFUSED
    assert reason.endswith("relay clock differs from the gateway's by about 3600 s")


async def test_a_token_that_was_dropped_is_not_good_for_a_link_either(rig: Rig) -> None:
    await rig.gateway()
    credentials = certificates().of(AGENT)
    agent = await rig.agent(credentials=credentials)
    renewed = rig.token(credentials)
    rig.unix.now -= 3600
    rig.service.relay.trust._key_ids = frozenset()
    with pytest.raises(LinkLost):
        await agent.authenticate(renewed)


# -- links that replace links


async def test_a_newer_link_of_the_same_run_takes_over_and_the_old_one_drains(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    credentials = certificates().of(AGENT)
    old_pipes, new_pipes = Pipes(), Pipes()
    old = await rig.agent(old_pipes, epoch=1, credentials=credentials)
    ours = Pipe()
    await gateway.open_stream(TUNNEL_ID, ours)
    new = await rig.agent(new_pipes, epoch=2)
    assert (await old.goaway).code == CloseCode.REPLACED
    await gateway.open_stream(TUNNEL_ID, Pipe())
    assert (len(old_pipes.made), len(new_pipes.made)) == (1, 1)
    # A token that is refreshed on the old link, while its stream runs, costs it nothing.
    await old.authenticate(rig.token(credentials))
    rig.service.relay.tick()
    old_pipes.made[0].transport.write(b"the rest")
    old_pipes.made[0].transport.close()
    await ours.until(lambda: ours.has_eof)
    assert ours.received == b"the rest"
    await rig.until(lambda: old.stream_count == 0)
    await rig.until(lambda: rig.service.relay.switch.stream_count(TUNNEL_ID) == 1)
    await rig.tick_until(old.closed.done)
    lost = await old.closed
    assert lost.code is CloseCode.REPLACED
    assert new.is_usable
    assert rig.service.relay.directory.choose(TUNNEL_ID) is not None


async def test_a_newer_run_of_an_agent_ends_the_links_of_the_one_before(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    old = await rig.agent(Pipes(), instance="run-1", epoch=7)
    ours = Pipe()
    await gateway.open_stream(TUNNEL_ID, ours)
    # The old run is gone and answers nothing, not even a CLOSE: nobody waits for it.
    await rig.agent(Pipes(), instance="run-2", epoch=1)
    error = await ours.lost()
    assert isinstance(error, StreamReset)
    assert (await old.closed).code is CloseCode.REPLACED
    await gateway.open_stream(TUNNEL_ID, Pipe())


async def test_a_straggler_does_not_take_over(rig: Rig) -> None:
    await rig.gateway()
    current = await rig.agent(epoch=2)
    with pytest.raises(LinkLost) as caught:
        await rig.agent(epoch=2)
    assert caught.value.code is CloseCode.REPLACED
    assert current.is_usable


async def test_a_link_that_said_goaway_is_not_listed_again_by_a_new_token(rig: Rig) -> None:
    gateway, seen = await rig.gateway()
    credentials = certificates().of(AGENT)
    pipes = Pipes()
    agent = await rig.agent(pipes, credentials=credentials)
    ours = Pipe()
    await gateway.open_stream(TUNNEL_ID, ours)
    draining = asyncio.ensure_future(agent.drain(PATIENCE_S))
    await rig.until(lambda: seen[-1].state is PresenceState.GONE)
    await agent.authenticate(rig.token(credentials))
    with pytest.raises(StreamReset, match="tunnel offline"):
        await gateway.open_stream(TUNNEL_ID, Pipe())
    pipes.made[0].transport.write(b"the rest")
    pipes.made[0].transport.close()
    await ours.until(lambda: ours.received == b"the rest")
    await draining


# -- revocation


@pytest.mark.parametrize("by", ["tunnel", "agent", "key"])
async def test_revocation_ends_streams_and_link_at_once(rig: Rig, by: str) -> None:
    gateway, _ = await rig.gateway()
    credentials = certificates().of(AGENT)
    agent = await rig.agent(Pipes(), credentials=credentials)
    bystander = AgentIdentity(OTHER_TUNNEL, "agent-9")
    if by != "key":
        await rig.agent(Pipes(), identity=bystander)
    ours = Pipe()
    await gateway.open_stream(TUNNEL_ID, ours)
    trust = {
        "tunnel": lambda: rig.trust(TUNNEL_ID),
        "agent": lambda: rig.trust(agent_subject(TUNNEL_ID, AGENT.agent_id)),
        "key": lambda: whole(99),
    }[by]()
    gateway.send_trust(trust)
    error = await ours.lost()
    assert isinstance(error, StreamReset)
    assert error.code is (ResetCode.LINK_LOST if by == "key" else ResetCode.REVOKED)
    lost = await agent.closed
    assert lost.code is (CloseCode.TOKEN_REFUSED if by == "key" else CloseCode.REVOKED)
    if by == "key":
        return
    with pytest.raises(LinkLost) as caught:
        await rig.agent(credentials=credentials)
    assert caught.value.code is CloseCode.REVOKED
    await gateway.open_stream(OTHER_TUNNEL, Pipe())


async def test_an_older_snapshot_does_not_replace_a_newer_one(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    old = rig.trust()
    gateway.send_trust(rig.trust(TUNNEL_ID))
    await rig.until(lambda: rig.service.relay.trust.revision == 3)
    gateway.send_trust(old)
    with pytest.raises(LinkLost) as caught:
        await rig.agent()
    assert caught.value.code is CloseCode.REVOKED


async def test_trust_that_cannot_be_read_costs_the_gateway_its_link_and_changes_nothing(
    rig: Rig,
) -> None:
    gateway, _ = await rig.gateway()
    await rig.agent()
    bad = whole(50, ({"kid": "k", "kty": "RSA"},))
    gateway.send_trust(bad)
    assert (await gateway.closed).code is CloseCode.PROTOCOL_ERROR
    assert rig.service.relay.trust.revision == 1
    assert rig.service.relay.directory.choose(TUNNEL_ID) is not None


async def test_a_long_trust_leaves_part_by_part(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    gateway.send_trust(rig.trust(*(f"tunnel{n:020}" for n in range(5000))))
    gateway.send_trust(rig.trust(*(f"tunnel{n:020}" for n in range(5001))))
    most = 0

    def is_all_taken() -> bool:
        nonlocal most
        most = max(most, gateway.outbox.queued_bytes)
        return rig.service.relay.trust.revision == rig.revision

    await rig.until(is_all_taken)
    assert rig.service.relay.trust.denial_count == 5001
    # Streams, and other control frames, wait for one part at most.
    assert most <= 2 * MAX_PAYLOAD_BYTES


async def test_a_relay_that_cannot_use_a_long_change_is_sent_the_whole_once_or_twice(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for it at each part of the change, and the gateway answers each time."""
    whole_trust = rig.trust(*(f"tunnel{n:020}" for n in range(5000)))
    change = msgspec.structs.replace(whole_trust, base=1)
    parts = len(list(split_trust(change)))
    store, taken, last = rig.service.relay.trust, 0, whole_trust.revision
    take = store.take

    def counted(trust: Trust, *, gateway: str, now_unix: float) -> Taken:
        nonlocal taken
        taken += 1
        return take(trust, gateway=gateway, now_unix=now_unix)

    monkeypatch.setattr(store, "take", counted)

    def answer(held: TrustHeld) -> None:
        nonlocal last
        if held.wanted:
            session.send_trust(whole_trust)
            base, last = whole_trust.revision, last + 1
            session.send_trust(
                msgspec.structs.replace(whole_trust, revision=last, base=base, denials=())
            )

    session = await connect(
        rig.gateways_url,
        ssl_context=certificates().client(GATEWAY),
        hello=hello_of(GATEWAY),
        on_trust_held=answer,
    )
    rig.stack.push_async_callback(end, session)
    session.send_trust(change)
    await rig.until(lambda: whole_trust.revision < last == store.revision)
    assert store.denial_count == 5000
    assert taken < 3 * parts


async def test_a_link_that_was_replaced_takes_no_part_of_a_trust_with_it(rig: Rig) -> None:
    async with stranger(rig, GATEWAY) as old, stranger(rig, GATEWAY) as new:
        await old.until(lambda: old.saw(ev.TrustReported))
        parts = list(split_trust(rig.trust(*(f"tunnel{n:020}" for n in range(900)))))
        new.endpoint.give_trust(parts[0])
        await new.until(lambda: new.saw(ev.TrustReported))
        await old.connection.close()
        await rig.until(lambda: rig.service.relay.link_count == 1)
        for part in parts[1:]:
            new.endpoint.give_trust(part)
        await new.flush()
        await rig.until(lambda: rig.service.relay.trust.revision == rig.revision)


async def test_when_the_gateway_that_was_asked_for_the_whole_goes_another_one_is_asked(
    rig: Rig,
) -> None:
    other_gateway = GatewayIdentity("gateway-2")
    async with stranger(rig, GATEWAY) as first, stranger(rig, other_gateway) as other:
        first.endpoint.give_trust(rig.trust("revoked-1"))
        await other.until(lambda: other.saw(ev.TrustReported))
        await first.until(lambda: first.saw(ev.TrustReported))
        lost = msgspec.structs.replace(rig.trust("revoked-1", "revoked-2"), base=1, denials=())
        first.endpoint.give_trust(lost)
        await first.until(lambda: is_whole_wanted(first))
        assert not is_whole_wanted(other)
        await first.connection.close()
        await other.until(lambda: is_whole_wanted(other))
        other.endpoint.give_trust(
            msgspec.structs.replace(lost, base=0, denials=denials("revoked-1", "revoked-2"))
        )
        await other.flush()
        await rig.until(lambda: rig.service.relay.trust.held.digest == lost.digest)
        assert rig.service.relay.trust.denial_count == 2


async def test_a_digest_that_proves_wrong_after_its_gateway_went_is_told_to_another_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_module, "SWEEP_ROWS", 0)
    ended = [Denial(f"tunnel{n:020}", 1, 1000) for n in range(SWEEP_ROWS)]
    async with (
        stranger(rig, GATEWAY) as first,
        stranger(rig, GatewayIdentity("gateway-2")) as other,
    ):
        for part in split_trust(rig.trust(*ended)):
            first.endpoint.give_trust(part)
        await first.flush()
        await other.until(lambda: other.saw(ev.TrustReported))
        told = whole(2, (rig.jwk,), denials("revoked-1", "revoked-2"), expired_before=1001)
        first.endpoint.give_trust(msgspec.structs.replace(told, base=1, denials=()))
        await first.flush()
        await rig.until(lambda: rig.service.relay.trust.revision == told.revision)
        await first.connection.close()
        await rig.until(lambda: rig.service.relay.link_count == 1)
        monkeypatch.undo()
        await other.until(lambda: is_whole_wanted(other))


async def test_the_relay_settles_in_the_turns_that_follow(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    ended = [Denial(f"tunnel{n:020}", 1, 1000) for n in range(3 * SWEEP_ROWS)]
    gateway.send_trust(rig.trust(*ended))
    store = rig.service.relay.trust
    await rig.until(lambda: store.denial_count == len(ended))
    change = msgspec.structs.replace(whole(3, (rig.jwk,), expired_before=1001), base=2)
    gateway.send_trust(change)
    seen: set[int] = set()

    def is_done() -> bool:
        seen.add(store.denial_count)
        return not store.denial_count

    await rig.until(is_done)
    assert seen == {0, SWEEP_ROWS, 2 * SWEEP_ROWS, 3 * SWEEP_ROWS}
    assert store.held.digest == change.digest


async def test_a_gateway_that_comes_later_hears_of_the_agents_that_are_here(rig: Rig) -> None:
    await rig.gateway()
    agent = await rig.agent()
    agent.send_status(Status(models=("llama",)))
    _, seen = await rig.gateway(trusting=False)
    await rig.until(lambda: bool(seen) and seen[-1].status.models == ("llama",))
    assert seen[0].state is PresenceState.ONLINE


# -- malformed input over the wire


@pytest.mark.parametrize(
    "message",
    [b"", bytes(4), encode(0x42, 1), encode(FrameType.DATA, 0, b"x"), bytes(131072)],
    ids=["empty", "truncated", "unknown", "stream 0", "zeros"],
)
async def test_a_malformed_message_ends_that_link_only(rig: Rig, message: bytes) -> None:
    gateway, _ = await rig.gateway()
    async with stranger(rig, AGENT) as agent:
        await agent.flush()
        await agent.connection.send(message)
        assert (await agent.closed())[0] == CloseCode.PROTOCOL_ERROR
    assert gateway.is_usable


async def test_a_thousand_streams_opened_and_reset_cost_their_tunnel_and_not_the_link(
    rig: Rig,
) -> None:
    pipes = Pipes()
    await rig.gateway()
    agent = await rig.agent(pipes)
    async with stranger(rig, GATEWAY) as gateway:
        await gateway.until(lambda: gateway.endpoint.peer is not None)
        for _ in range(100):
            rig.monotonic.now += 0.01
            for _ in range(10):
                stream_id = gateway.endpoint.open(TUNNEL_ID, 0.0)
                gateway.endpoint.reset(stream_id, ResetCode.CANCELLED)
            await gateway.flush()
            await asyncio.sleep(0)
        await rig.until(lambda: agent.stream_count == 0)
        await gateway.until(lambda: gateway.endpoint.stream_count == 0)
        refused = gateway.endpoint.open(TUNNEL_ID, 0.0)
        await gateway.until(
            lambda: ev.StreamAborted(refused, ResetCode.THROTTLED) in gateway.events
        )
        rig.monotonic.now += 11.0
        accepted = gateway.endpoint.open(TUNNEL_ID, 0.0)
        await gateway.until(lambda: ev.StreamAccepted(accepted) in gateway.events)
    assert agent.is_usable


async def test_an_agents_newest_presence_replaces_the_one_that_waits(rig: Rig) -> None:
    _, seen = await rig.gateway()
    (stalled,) = rig.service.relay.links()
    link = stalled.link
    link._is_writable = False
    agent = await rig.agent()
    link_of_agent = next(it for it in rig.service.relay.links() if it.port.tunnel_id)
    for queued in range(1, 41):
        agent.send_status(Status(models=("m" * 200,) * 20, queued=queued))
    await rig.until(lambda: link_of_agent.status.queued == 40)
    assert stalled.port.outbox.urgent_bytes < 5_000
    link._is_writable = True
    link.flush_soon()
    await rig.until(lambda: bool(seen))
    # The agent came and changed while its first report waited: the gateway hears both in one.
    assert [(it.state, it.status.queued) for it in seen] == [(PresenceState.ONLINE, 40)]
    agent.send_status(Status(queued=41))
    await rig.until(lambda: len(seen) == 2)
    assert (seen[1].state, seen[1].status) == (PresenceState.CHANGED, Status(queued=41))


def has_taken(link: RelayLink, queued: int) -> bool:
    return link.status.queued == queued


def has_reported(link: RelayLink) -> bool:
    return bool(link.status.models)


@pytest.fixture
async def tight(tmp_path: Path) -> AsyncIterator[Rig]:
    """A relay whose tunnels may use up no more than 6,400 units of work per second."""
    limits = Limits(
        frames_per_s=100, address_connections_burst=1000, address_connections_per_s=1000
    )
    async with relaying(tmp_path, limits) as made:
        yield made


async def test_statuses_and_what_they_make_the_relay_send_are_charged_to_the_tunnel(
    tight: Rig,
) -> None:
    await tight.gateway()
    agent = await tight.agent()
    link = next(it for it in tight.service.relay.links() if it.port.tunnel_id)
    large = Status(models=("m" * 200,) * 78)
    units = 2 * len(encode_control(large)) // BYTES_PER_WORK
    for sent in range(1, 13_000 // units + 2):
        assert link.slowed_until is None
        agent.send_status(msgspec.structs.replace(large, queued=sent))
        await tight.until(partial(has_taken, link, sent))
    await tight.until(lambda: link.slowed_until is not None)
    assert agent.is_usable


async def test_work_is_charged_also_when_the_link_ends_at_once(tight: Rig) -> None:
    rig = tight
    await rig.gateway()
    relay = rig.service.relay
    for number in range(40):
        agent = await rig.agent(epoch=number)
        agent.send_status(Status(models=("m" * 200,) * 20))
        link = next(it for it in relay.links() if it.port.tunnel_id)
        await rig.until(partial(has_reported, link))
        await end(agent)
        await rig.until(lambda: relay.link_count == 1)
        account = relay.switch.accounts.known(TUNNEL_ID)
        if account is not None and account.charge_work(0, rig.monotonic()) > 0:
            return
    pytest.fail("40 links cost their tunnel nothing")


async def test_what_the_agents_of_a_tunnel_report_is_bounded(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    _, seen = await rig.gateway()
    large = fit_status(Status(models=tuple(f"{n:03}" + "m" * 197 for n in range(78))))
    for number in range(12):
        agent = await rig.agent(identity=AgentIdentity(TUNNEL_ID, f"agent-{number}"))
        agent.send_status(large)
        agent.send_status(large)
    newest: dict[str, Status] = {}

    def all_came() -> bool:
        newest.update((it.agent_id, it.status) for it in seen)
        return len(newest) == 12 and all(status.models for status in newest.values())

    await rig.until(all_came)
    assert newest["agent-0"] == large
    sizes = [len(encode_control(status)) for status in newest.values()]
    assert sum(sizes) <= MAX_TUNNEL_STATUS_BYTES + 4 * MIN_STATUS_BYTES
    assert large.models[: len(newest["agent-11"].models)] == newest["agent-11"].models
    assert "agent.status_cut" in caplog.text


async def test_a_gateway_that_takes_no_word_is_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "MAX_URGENT_BYTES", 20_000)
    gateway, _ = await rig.gateway()
    (stalled,) = rig.service.relay.links()
    identities = [AgentIdentity(TUNNEL_ID, f"agent-{number}") for number in range(6)]
    agents = [await rig.agent(identity=identity) for identity in identities]
    agent = agents[0]
    stalled.link._is_writable = False
    for each in agents:
        each.send_status(Status(models=("m" * 200,) * 20))
    await rig.until(lambda: stalled.port.outbox.urgent_bytes > 20_000)
    rig.service.relay.tick()
    assert (await gateway.closed).code is CloseCode.OVERLOADED
    await rig.until(lambda: rig.service.relay.switch.buffered_bytes == 0)
    assert agent.is_usable


# -- what ops see


async def test_health_readiness_and_status(rig: Rig) -> None:
    assert await fetch(rig.ops, "/healthz") == (200, "ok\n")
    code, why = await fetch(rig.ops, "/readyz")
    assert code == 503
    assert "no gateway has told us yet" in why
    gateway, _ = await rig.gateway()
    await rig.agent(Pipes())
    await gateway.open_stream(TUNNEL_ID, Pipe())
    assert await fetch(rig.ops, "/readyz") == (200, "ready\n")
    status = await fetch_json(rig.ops, "/status")
    assert status["name"] == "relay-1"
    assert status["gateways"] == ["gateway-1"]
    assert status["links"] == 2
    (agent,) = cast("list[dict[str, object]]", status["agents"])
    assert (agent["tunnelId"], agent["agentId"], agent["streams"]) == (TUNNEL_ID, "agent-1", 1)
    await gateway.close()
    await rig.until(lambda: rig.service.relay.link_count == 1)
    code, why = await fetch(rig.ops, "/readyz")
    assert (code, why) == (503, "not ready: no gateway is connected\n")


async def test_metrics_count_what_happened(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    agent = await rig.agent(Pipes())
    ours = Pipe()
    await gateway.open_stream(TUNNEL_ID, ours)
    ours.transport.abort()
    with pytest.raises(StreamReset):
        await gateway.open_stream("nobody", Pipe())
    await rig.until(lambda: agent.stream_count == 0)
    _, text = await fetch(rig.ops, "/metrics")
    lines = text.splitlines()
    for line in (
        "byoai_relay_links 2.0",
        "byoai_relay_agents 1.0",
        "byoai_relay_ready 1.0",
        "byoai_relay_trust_revision 1.0",
        "byoai_relay_links_accepted_total 2.0",
        "byoai_relay_streams_opened_total 1.0",
        "byoai_relay_streams_refused_total 1.0",
        'byoai_relay_resets_total{code="cancelled"} 1.0',
        "byoai_relay_early_resets_total 1.0",
        "byoai_relay_streams_throttled_total 0.0",
        "byoai_relay_links_slowed_total 0.0",
        "byoai_relay_buffered_bytes 0.0",
    ):
        assert line in lines
    assert TUNNEL_ID not in text


# -- the end of a relay


async def test_a_stopped_relay_drains_then_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relaying(tmp_path) as rig:
        relay = rig.service.relay
        gateway, _ = await rig.gateway()
        pipes = Pipes()
        agent = await rig.agent(pipes)
        idle = await rig.agent(identity=AgentIdentity(OTHER_TUNNEL, "agent-2"))
        ours = Pipe()
        await gateway.open_stream(TUNNEL_ID, ours)
        draining = asyncio.ensure_future(relay.drain())
        for session in (gateway, agent, idle):
            assert (await session.goaway).reason == "this relay is draining"
        assert (await fetch(rig.ops, "/readyz"))[1] == "not ready: draining\n"
        late = await asyncio.gather(rig.agent(), return_exceptions=True)
        assert isinstance(late[0], LinkLost | LinkRefused)
        assert late[0].code is CloseCode.GOING_AWAY
        await rig.tick_until(idle.closed.done)
        assert (await idle.closed).code is CloseCode.GOING_AWAY
        assert not draining.done()
        pipes.made[0].transport.write(bytes(1_000_000))
        pipes.made[0].transport.close()
        await ours.until(lambda: ours.has_eof)
        assert len(ours.received) == 1_000_000
        await rig.until(lambda: relay.switch.stream_count(TUNNEL_ID) == 0)
        await rig.tick_until(draining.done)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(agent.closed)
            await asyncio.shield(gateway.closed)


async def test_a_relay_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    service = RelayService(config_in(tmp_path))
    stop, insist = asyncio.Event(), asyncio.Event()
    running = asyncio.ensure_future(service.run(stop, insist))
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        await running
    assert service.relay.is_draining


async def test_a_second_signal_cuts_the_drain_short(tmp_path: Path) -> None:
    service = RelayService(config_in(tmp_path))
    stop, insist = asyncio.Event(), asyncio.Event()
    running = asyncio.ensure_future(service.run(stop, insist))
    stop.set()
    insist.set()
    async with asyncio.timeout(PATIENCE_S):
        await running


async def test_connections_that_come_too_fast_are_turned_away(tmp_path: Path) -> None:
    limits = Limits(address_connections_burst=2.0, address_connections_per_s=0.001)
    async with relaying(tmp_path, limits) as rig:
        await rig.gateway()
        await rig.agent()
        await rig.agent(identity=AgentIdentity(OTHER_TUNNEL, "agent-2"))
        with pytest.raises(LinkRefused):
            await rig.agent(identity=AgentIdentity(OTHER_TUNNEL, "agent-3"))
        assert rig.service.relay.link_count == 3


@pytest.mark.parametrize("flooded", ["agents", "gateways"])
async def test_a_flood_at_one_listener_leaves_the_other_its_limits(
    tmp_path: Path, flooded: str
) -> None:
    limits = Limits(connections_burst=3.0, connections_per_s=0.001, address_connections_burst=3.0)
    async with relaying(tmp_path, limits) as rig:
        url = rig.agents_url if flooded == "agents" else rig.gateways_url
        host, port = url.removeprefix("wss://").split(":")
        for _ in range(20):
            with contextlib.suppress(ConnectionError):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
        free, full = (rig.gateway, rig.agent) if flooded == "agents" else (rig.agent, rig.gateway)
        with pytest.raises(LinkRefused):
            await full()
        with contextlib.suppress(LinkLost):  # NOT_READY, to an agent: it was let in
            await free()
        assert rig.service.relay.links_accepted == 1


async def test_files_that_are_missing_or_not_a_relays_are_named(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config.identity.key.unlink()
    with pytest.raises(ConfigError, match=r"reading .*relay-key\.pem failed"):
        RelayService(config)
    gateway = certificates().of(GATEWAY)
    write_new_file(config.identity.key, gateway.key_pem)
    config.identity.certificate.write_bytes(gateway.certificate_pem)
    with pytest.raises(ConfigError, match="names gateway gateway-1, not a relay"):
        RelayService(config)
