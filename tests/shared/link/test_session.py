"""A link's gateway or agent end, against a real relay and against peers that are none."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from byoai_shared.link import session as session_module
from byoai_shared.link.errors import LinkLost, LinkRefused, StreamReset
from byoai_shared.link.session import LinkSession, connect
from byoai_shared.protocol.control import Presence, PresenceState, Role, Status, UpstreamHealth
from byoai_shared.protocol.errors import CloseCode, ResetCode
from byoai_shared.protocol.frames import FrameType, decode
from byoai_shared.tls import client_context, server_context
from support.links import AGENT, GATEWAY, PATIENCE_S, RELAY, TUNNEL_ID, certificates, listening
from support.loop_clock import pass_time
from support.pipes import Pipe, Pipes
from support.relays import Rig, end, hello_of, relaying
from support.transcript import hello, say


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with relaying(tmp_path) as made:
        yield made


async def dial(url: str) -> LinkSession:
    return await connect(url, ssl_context=certificates().client(AGENT), hello=hello_of(AGENT))


# -- a link that works


async def test_a_link_is_introduced_and_measured(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    assert gateway.peer is not None
    assert (gateway.peer.role, gateway.peer.node) == (Role.RELAY, "relay-1")
    assert gateway.is_usable
    await rig.until(lambda: gateway.round_trip_s is not None)


async def test_a_token_is_accepted_until_its_end_and_again_after_a_rotation(rig: Rig) -> None:
    await rig.gateway()
    credentials = certificates().of(AGENT)
    agent = await rig.agent(credentials=credentials)
    until = await agent.authenticate(rig.token(credentials, lifetime_s=1234))
    assert until == int(rig.unix.now) + 1234


async def test_an_answer_that_nobody_waits_for_is_not_taken_for_the_next_one(rig: Rig) -> None:
    await rig.gateway()
    credentials = certificates().of(AGENT)
    context = client_context(server_ca_pem=certificates().services.pem, credentials=credentials)
    agent = await connect(rig.agents_url, ssl_context=context, hello=hello_of(AGENT))
    forgotten = asyncio.ensure_future(agent.authenticate(rig.token(credentials, lifetime_s=60)))
    await asyncio.sleep(0)
    forgotten.cancel()
    until = await agent.authenticate(rig.token(credentials, lifetime_s=900))
    assert until == int(rig.unix.now) + 900
    await end(agent)


async def test_a_token_that_is_refused_ends_the_link_with_its_code(rig: Rig) -> None:
    await rig.gateway()
    agent = await connect(
        rig.agents_url, ssl_context=certificates().client(AGENT), hello=hello_of(AGENT)
    )
    with pytest.raises(LinkLost) as caught:
        await agent.authenticate("no.such.token")
    assert caught.value.code is CloseCode.TOKEN_REFUSED
    assert not agent.is_usable
    assert "no.such.token" not in str(caught.value)


async def test_a_gateway_hears_of_an_agent_its_status_and_its_end(rig: Rig) -> None:
    gateway, seen = await rig.gateway()
    agent = await rig.agent()
    await rig.until(lambda: len(seen) == 1)
    agent.send_status(Status(models=("llama",), health=UpstreamHealth.HEALTHY))
    await rig.until(lambda: len(seen) == 2)
    await end(agent)
    await rig.until(lambda: len(seen) == 3)
    assert [presence.state for presence in seen] == [
        PresenceState.ONLINE,
        PresenceState.CHANGED,
        PresenceState.GONE,
    ]
    assert seen[1].status.models == ("llama",)
    assert {presence.tunnel_id for presence in seen} == {TUNNEL_ID}
    assert gateway.is_usable


async def test_a_failing_listener_for_presence_does_not_cost_the_link(rig: Rig) -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

    def fail(_presence: Presence) -> None:
        raise ZeroDivisionError

    context = certificates().client(GATEWAY)
    gateway = await connect(
        rig.gateways_url, ssl_context=context, hello=hello_of(GATEWAY), on_presence=fail
    )
    gateway.send_trust(rig.trust())
    await rig.until(lambda: rig.service.relay.trust.is_known)
    await rig.agent()
    await rig.until(lambda: bool(errors))
    assert gateway.is_usable
    await end(gateway)


# -- opening streams


async def test_a_tunnel_that_is_not_here_is_refused_in_words(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    with pytest.raises(StreamReset, match="stream reset: tunnel offline"):
        await gateway.open_stream(TUNNEL_ID, Pipe())


async def test_an_agent_without_an_acceptor_refuses(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    await rig.agent(accept=None)
    with pytest.raises(StreamReset) as caught:
        await gateway.open_stream(TUNNEL_ID, Pipe())
    assert caught.value.code is ResetCode.REFUSED


OPEN_S = 15.0
"""Below the links' own patience with each other."""


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_an_open_that_is_given_up_resets_its_stream(rig: Rig, how: str) -> None:
    gateway, _ = await rig.gateway()
    pipes = Pipes()
    agent = await rig.agent(pipes)
    (relay_link,) = [link for link in rig.service.relay.links() if link.port.tunnel_id]
    # Nothing reaches the agent for now.
    relay_link.link._is_writable = False
    opening = asyncio.ensure_future(gateway.open_stream(TUNNEL_ID, Pipe(), timeout_s=OPEN_S))
    await rig.until(lambda: rig.service.relay.switch.stream_count(TUNNEL_ID) == 1)
    if how == "cancel":
        opening.cancel()
    else:
        await pass_time(1.1 * OPEN_S)
    await asyncio.wait({opening}, timeout=PATIENCE_S)
    assert opening.cancelled() if how == "cancel" else opening.exception() is not None
    await rig.until(lambda: len(relay_link.port.outbox._urgent[2]) == 1)  # the RESET, after OPEN
    relay_link.link.resume_writing()
    await rig.until(lambda: gateway.stream_count == 0)
    assert agent.is_usable
    assert pipes.made == []
    assert rig.service.relay.switch.stream_count(TUNNEL_ID) == 0


async def test_no_stream_is_opened_on_a_link_that_is_gone_or_going(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    (relay_link,) = rig.service.relay.links()
    relay_link.port.go_away(CloseCode.GOING_AWAY, "maintenance", retry_after_s=2)
    relay_link.link.flush_soon()
    goaway = await gateway.goaway
    assert (goaway.reason, goaway.retry_after_ms) == ("maintenance", 2000)
    with pytest.raises(LinkLost, match="takes no new streams"):
        await gateway.open_stream(TUNNEL_ID, Pipe())


async def test_those_who_wait_for_a_stream_hear_of_the_links_end(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    await rig.agent(Pipes())
    (relay_link,) = [link for link in rig.service.relay.links() if link.port.tunnel_id]
    relay_link.link._is_writable = False
    opening = asyncio.ensure_future(gateway.open_stream(TUNNEL_ID, Pipe()))
    await rig.until(lambda: rig.service.relay.switch.stream_count(TUNNEL_ID) == 1)
    gateway.abort()
    with pytest.raises(LinkLost):
        await opening


# -- ends


async def test_drain_lets_streams_finish_and_their_last_bytes_leave(rig: Rig) -> None:
    gateway, seen = await rig.gateway()
    pipes = Pipes()
    agent = await rig.agent(pipes)
    ours = Pipe()
    await gateway.open_stream(TUNNEL_ID, ours)
    draining = asyncio.ensure_future(agent.drain(PATIENCE_S))
    await rig.until(lambda: bool(seen) and seen[-1].state is PresenceState.GONE)
    with pytest.raises(StreamReset):
        await gateway.open_stream(TUNNEL_ID, Pipe())
    assert not draining.done()
    answer = bytes(range(256)) * 8000
    pipes.made[0].transport.write(answer)
    pipes.made[0].transport.close()
    await draining
    await ours.until(lambda: ours.has_eof)
    assert ours.received == answer
    assert agent.closed.done()


async def test_drain_ends_at_its_limit(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    pipes = Pipes()
    agent = await rig.agent(pipes)
    await gateway.open_stream(TUNNEL_ID, Pipe())
    await agent.drain(0.01)
    assert isinstance(await pipes.made[0].lost(), LinkLost)


async def test_close_is_heard_with_its_reason_and_may_be_repeated(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    await gateway.close()
    await gateway.close()
    await gateway.drain(1.0)
    gateway.abort()
    assert gateway.closed.done()
    await rig.until(lambda: rig.service.relay.link_count == 0)


async def test_a_closed_link_says_who_closed_it_and_why(rig: Rig) -> None:
    gateway, _ = await rig.gateway()
    (relay_link,) = rig.service.relay.links()
    relay_link.link.close(CloseCode.REVOKED, "the tunnel was revoked")
    lost = await gateway.closed
    assert lost.code is CloseCode.REVOKED
    assert str(lost).endswith("lost: revoked (the tunnel was revoked)")


class Time:
    """Stands for the `time` module in the session."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


async def test_a_link_without_a_byte_for_25_s_is_cut(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Time()
    monkeypatch.setattr(session_module, "time", clock)
    gateway, _ = await rig.gateway()
    await rig.until(lambda: gateway.round_trip_s is not None)
    clock.now = 24.9
    gateway._tick()
    assert not gateway.closed.done()
    clock.now = 25.0
    gateway._tick()
    async with asyncio.timeout(PATIENCE_S):
        lost = await asyncio.shield(gateway.closed)
    assert lost.code is CloseCode.IDLE


async def test_pings_leave_as_time_passes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time()
    monkeypatch.setattr(session_module, "time", clock)
    gateway, _ = await rig.gateway()
    await rig.until(lambda: gateway.round_trip_s is not None)
    for _ in range(10):
        clock.now += 10.0
        before = gateway._endpoint._last_received
        gateway._tick()
        await rig.until(lambda before=before: gateway._endpoint._last_received > before)  # type: ignore[misc] # a default in a lambda
    assert gateway.is_usable


# -- peers that are no relay


async def test_a_gateway_that_listens_is_no_relay() -> None:
    made = certificates()
    context = server_context(made.of(GATEWAY), client_ca_pem=made.agents.pem)
    async with listening(context=context) as there:
        with pytest.raises(LinkRefused, match="names gateway gateway-1, not a relay"):
            await dial(there.url)
        await (await there.driver()).end()


async def test_a_relay_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "HELLO_TIMEOUT_S", 0.05)
    async with listening() as there:
        with pytest.raises(LinkRefused, match="no HELLO in time"):
            await dial(there.url)
        await (await there.driver()).end()


async def test_a_relay_of_another_role_is_turned_down_with_its_code() -> None:
    async with listening() as there:
        dialling = asyncio.ensure_future(dial(there.url))
        driver = await there.driver()
        await driver.until(lambda: bool(driver.messages))
        ((kind, _, _),) = decode(driver.messages[0])
        assert kind == FrameType.HELLO
        driver.outbox.put_urgent(FrameType.HELLO, 0, say(hello(Role.GATEWAY))[8:])
        driver.link.flush_soon()
        with pytest.raises(LinkRefused) as caught:
            await dialling
        assert caught.value.code is CloseCode.WRONG_ROLE
        assert (await driver.end())[0] == CloseCode.WRONG_ROLE


async def test_dialling_may_be_cancelled() -> None:
    async with listening() as there:
        dialling = asyncio.ensure_future(dial(there.url))
        driver = await there.driver()
        dialling.cancel()
        await driver.end()
        assert (await asyncio.wait({dialling}))[0] == {dialling}
        assert dialling.cancelled()


async def test_the_relays_name_is_in_its_certificate() -> None:
    assert str(RELAY) == "relay relay-1"
