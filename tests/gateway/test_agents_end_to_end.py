"""A tunnel with two agents: the real client, the gateway, a relay, and the agents' ends of it."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from byoai_gateway.absence import Absence
from byoai_gateway.memory import Memory
from byoai_gateway.provider_config import RouterSection
from byoai_gateway.relay_links import GatewayName, RelayLinks
from byoai_gateway.routes import RegistryRoutes
from byoai_gateway.tunnel_client import TunnelClient
from byoai_shared.agent_errors import HEADER, AgentErrorCode
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.head import ResponseHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.identity import AgentIdentity, tunnel_hostname
from byoai_shared.keys import key_to_pem, new_key, self_signed_certificate
from byoai_shared.link.stream import StreamTransport
from byoai_shared.tls import Credentials, server_context
from byoai_shared.tls_transport import TlsTransport
from support.control import FakeClock, bearer, gateway_config
from support.garbage import cyclic_garbage
from support.gateway import CHAT, Gateway, open_gateway
from support.gateway_links import Feed, Services, gateway_context
from support.links import GATEWAY, TUNNEL_ID, certificates
from support.provider_script import chat_answer, chat_events, role, token
from support.relays import Clock, Rig, relaying
from support.tunnels import report
from support.waiting import until

FAILURES = 5
OPEN_S = 30.0
AT_ONCE = 8
REFUSAL = {"error": {"message": "down", "type": "server_error", "param": None, "code": "x"}}
JSON = (b"content-type", b"application/json")
SSE = (b"content-type", b"text/event-stream")


@dataclass
class AgentEnd:
    """An agent's end of its streams, with a model server behind it that may be down."""

    agent_id: str
    credentials: Credentials
    is_sick: bool = False
    stream: tuple[bytes, ...] = ()
    """The events to answer with, instead of a whole answer."""
    is_endless: bool = False
    """Whether nothing follows those events, not even their end."""
    asked: int = 0
    running: int = 0
    most_running: int = 0

    def accept(self, _: StreamTransport) -> asyncio.Protocol:
        services = certificates().services.pem
        context = server_context(self.credentials, client_ca_pem=services, alpn=("http/1.1",))
        return TlsTransport(ServerConnection(self._answer), context, server_side=True)

    async def _answer(self, request: ServerRequest) -> None:
        self.asked += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await request.read(100_000)
        await asyncio.sleep(0)
        self.running -= 1
        if self.is_sick:
            code = AgentErrorCode.UPSTREAM_UNREACHABLE.value.encode()
            request.respond(502, (JSON, (HEADER, code)), json.dumps(REFUSAL).encode())
        elif self.stream:
            await self._stream(request)
        else:
            request.respond(200, (JSON,), json.dumps(chat_answer()).encode())

    async def _stream(self, request: ServerRequest) -> None:
        body = request.start_response(ResponseHead(200, (SSE,)))
        for it in self.stream:
            body.write(it)
        if self.is_endless:
            await asyncio.Event().wait()
        body.finish()


class Pins:
    """The certificates of both agents."""

    def __init__(self, agents: tuple[AgentEnd, ...]) -> None:
        self._pems = tuple(it.credentials.certificate_pem for it in agents)

    async def pins(self, tunnel_id: str) -> tuple[bytes, ...]:
        assert tunnel_id == TUNNEL_ID
        return self._pems

    def forget_pins(self, tunnel_id: str) -> None:
        raise AssertionError(tunnel_id)

    async def why_none(self, tunnel_id: str) -> Absence:
        raise AssertionError(tunnel_id)


def an_agent(agent_id: str) -> AgentEnd:
    key = new_key()
    certificate = self_signed_certificate(key, tunnel_hostname(TUNNEL_ID), timedelta(days=1))
    return AgentEnd(agent_id, Credentials(certificate, key_to_pem(key)))


@dataclass
class House:
    """Everything from the client's side to both agents."""

    gateway: Gateway
    rig: Rig
    client: TunnelClient
    first: AgentEnd
    second: AgentEnd
    breaker_clock: Clock

    async def ask(self, count: int) -> list[str]:
        """Let the official client ask so often; returns what failed."""
        failed: list[str] = []
        left = iter(range(count))

        async def ask_on(client: openai.AsyncOpenAI) -> None:
            for _ in left:
                try:
                    await client.chat.completions.create(model="m", messages=[])
                except openai.OpenAIError as error:
                    failed.append(str(error))

        async with self.gateway.client(max_retries=0) as client:
            await asyncio.gather(*(ask_on(client) for _ in range(AT_ONCE)))
        return failed

    def lead_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the gateway's tunnels be those of the relay, and its breakers' clock the test's."""
        breakers = self.gateway.data_path.serving.router.ledger._breakers
        monkeypatch.setattr(breakers, "_clock", self.breaker_clock)
        tunnels, client = self.gateway.data_path.ways.tunnels, self.client

        def take_fresh(_: str, agent_id: str = "") -> ClientConnection | None:
            return client.take_fresh(TUNNEL_ID, agent_id)

        async def acquire(_: str, agent_id: str = "") -> ClientConnection:
            return await client.acquire(TUNNEL_ID, agent_id)

        def release(_: str, connection: ClientConnection, agent_id: str = "") -> None:
            client.release(TUNNEL_ID, connection, agent_id)

        def in_use(_: str, agent_id: str) -> int:
            return client.in_use(TUNNEL_ID, agent_id)

        for replacement in (take_fresh, acquire, release, in_use):
            monkeypatch.setattr(tunnels, replacement.__name__, replacement)


@pytest.fixture
async def house(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[House]:
    own = certificates().of(GATEWAY)
    first, second = an_agent("agent-1"), an_agent("agent-2")
    router = RouterSection(breaker_failures=FAILURES, breaker_open_s=OPEN_S)
    config = msgspec.structs.replace(gateway_config(tmp_path), relays=(), router=router)
    async with relaying(tmp_path) as rig, open_gateway(config, clock) as gateway:
        name = GatewayName(GATEWAY.name, gateway_context)
        links = RelayLinks([rig.gateways_url], name, Feed(rig.trust()), Services())
        keeper = asyncio.ensure_future(links.keep())
        client = TunnelClient(links, Pins((first, second)), lambda: own, connect_s=50.0)
        await rig.until(lambda: rig.service.relay.trust.is_known)
        body = {"modelInfo": {"name": "m", "capabilities": ["text-generation"]}}
        registered = await gateway.ask(body, path="/api/tunnel/register")
        tunnel_id: str = registered.json["tunnelId"]
        await gateway.prefer(aiProvider="self-hosted")
        for it in (first, second):
            await rig.agent(it.accept, identity=AgentIdentity(TUNNEL_ID, it.agent_id))
            report(gateway, tunnel_id, "m", agent=it.agent_id)
        await rig.until(lambda: len(list(links.presence.agents_of(TUNNEL_ID))) == 2)
        made = House(gateway, rig, client, first, second, Clock())
        made.lead_there(monkeypatch)
        yield made
        client.close()
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper


async def test_a_sick_agent_makes_no_request_fail_and_comes_back(house: House) -> None:
    house.first.is_sick = True
    assert await house.ask(200) == []
    assert FAILURES <= house.first.asked < FAILURES + AT_ONCE, "then its breaker is open"
    assert house.second.asked == 200

    house.breaker_clock.now += OPEN_S
    before = house.first.asked
    assert await house.ask(100) == []
    assert house.first.asked == before + 1, "one request probes it, and is answered by the other"

    house.breaker_clock.now += OPEN_S
    house.first.is_sick = False
    before, seconds = house.first.asked, house.second.asked
    assert await house.ask(100) == []
    assert house.first.asked > before + 1, "the probe brought it back"
    assert house.first.asked - before + house.second.asked - seconds == 100


async def test_requests_are_spread_over_both_agents(house: House) -> None:
    assert await house.ask(100) == []
    assert house.first.asked + house.second.asked == 100
    assert house.second.asked > 0
    assert max(house.first.most_running, house.second.most_running) <= AT_ONCE // 2
    for it in (house.first, house.second):
        assert house.client.in_use(TUNNEL_ID, it.agent_id) == 0, "each was given back"


async def test_when_all_agents_are_sick_the_breaker_answers(house: House) -> None:
    house.first.is_sick = house.second.is_sick = True
    failed = await house.ask(4 * FAILURES)
    assert len(failed) == 4 * FAILURES
    asked = house.first.asked + house.second.asked
    failed = await house.ask(5)
    assert all("is not asked for now" in it for it in failed), failed
    assert house.first.asked + house.second.asked == asked
    house.second.is_sick = False
    house.breaker_clock.now += OPEN_S
    assert await house.ask(1) == [], "a probe that failed goes on to the other agent"
    assert await house.ask(20) == []


async def test_an_agent_that_is_gone_is_left_for_the_other(house: House) -> None:
    relay = house.rig.service.relay
    entry = relay.directory.current(TUNNEL_ID, house.first.agent_id)
    assert entry is not None
    relay.directory.delist(entry.port)  # and the gateway has not heard of it yet
    assert await house.ask(20) == []
    assert (house.first.asked, house.second.asked) == (0, 20)


async def test_what_ended_is_not_left_in_reference_cycles(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_look_up(house.gateway, monkeypatch)
    await ask_hang_up_and_fail(house)  # what is made once
    with cyclic_garbage() as left:
        for _ in range(5):
            await ask_hang_up_and_fail(house)
        await house.rig.until(lambda: not house.gateway.control.limits._under_way)
    assert not left


def always_look_up(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each request ask the database for what others are served from memory for a moment."""
    routes = gateway.data_path.ways.routes
    assert isinstance(routes, RegistryRoutes)
    memories: tuple[Memory[Any, Any], ...] = (
        routes._routes,
        routes._pins,
        gateway.control.preferences._known,
    )
    for it in memories:
        monkeypatch.setattr(it, "_fresh_s", -1.0)


async def ask_hang_up_and_fail(house: House) -> None:
    """Ask for a whole answer and a stream, leave another stream early, and let an agent fail."""
    agents = (house.first, house.second)
    assert (await house.gateway.chat(stream=False, model="m")).status == 200
    for it in agents:
        it.stream = chat_events("a")
    assert (await house.gateway.chat(model="m")).text == "a"
    for it in agents:
        it.stream, it.is_endless = (role(), token("a")), True
    await leave_early(house.gateway)
    for it in agents:
        it.stream, it.is_endless = (), False
    house.first.is_sick = True
    assert (await house.gateway.chat(stream=False, model="m")).status == 200
    house.first.is_sick = False


async def leave_early(gateway: Gateway) -> None:
    """Ask for a stream, and hang up when it has begun."""
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"model": "m", "stream": true, "messages": []}'
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(body)}\r\n"
        f"authorization: {bearer('alice', gateway.clock)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await reader.readuntil(b"data: ")
    writer.transport.abort()
    await until(lambda: not gateway.control.limits._under_way)
