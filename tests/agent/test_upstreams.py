import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import trustme
from aiohttp import web

from byoai_agent.agent import describe_upstreams
from byoai_agent.config import AgentConfig, Discovery, NamedUpstream
from byoai_agent.models import Catalogue, Upstream, parse_target
from byoai_agent.upstreams import (
    WAITING_S,
    UpstreamPool,
    UpstreamUnreachable,
    UpstreamWatch,
    target_of,
    upstream_tls,
)
from byoai_shared.errors import ConfigError
from byoai_shared.protocol.control import UpstreamHealth
from byoai_shared.secret import Secret
from support.internet import https, speaking_plainly
from support.loop_clock import NEVER_S, pass_time, settle, while_time_passes


class ModelServer:
    """Lists models, however a test wants it."""

    def __init__(self) -> None:
        self.listing: Any = {"object": "list", "data": [{"id": "m"}]}
        self.key: str | None = None
        self.error: tuple[int, Any] | None = None
        self.is_ollama = False
        self.is_stuck = False
        self.asked: list[str] = []
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._freed = asyncio.Event()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        self._freed.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.is_stuck:
            await self._freed.wait()
        if self.error is not None:
            return web.json_response(self.error[1], status=self.error[0])
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "no"}, status=401)
        if request.path == "/v1/models":
            return web.Response(text=json.dumps(self.listing), content_type="application/json")
        if request.path == "/api/version" and self.is_ollama:
            return web.json_response({"version": "0.30.1"})
        return web.Response(status=404)


@pytest_asyncio.fixture
async def servers() -> AsyncGenerator[list[ModelServer]]:
    both = [ModelServer(), ModelServer()]
    for one in both:
        await one.start()
    yield both
    for one in both:
        await one.stop()


class Watching:
    """A watch and what it told."""

    def __init__(self, config: AgentConfig, *named: NamedUpstream) -> None:
        self.catalogue = Catalogue()
        self.changes = 0
        self.pool = UpstreamPool(connect_s=NEVER_S)
        self.watch = UpstreamWatch(
            config, self.catalogue, self.pool, named=named, on_change=self._changed
        )

    def _changed(self) -> None:
        self.changes += 1


@asynccontextmanager
async def watching(
    servers: list[ModelServer], *named: NamedUpstream, probe_timeout_s: float = NEVER_S
) -> AsyncGenerator[Watching]:
    ports = tuple(one.port for one in servers)
    discovery = Discovery(ports=ports, probe_timeout_s=probe_timeout_s)
    house = Watching(AgentConfig(discovery=discovery), *named)
    try:
        yield house
    finally:
        house.pool.close()


async def test_servers_are_found_by_their_ports(servers: list[ModelServer]) -> None:
    servers[1].listing = {"data": [{"id": "n"}]}
    async with watching(servers) as house:
        await house.watch.look()
        assert [one.target.port for one in house.catalogue.upstreams] == [
            one.port for one in servers
        ]
        assert house.catalogue.announced() == ("m", "n")
        assert house.catalogue.health() is UpstreamHealth.HEALTHY
        assert house.changes == 1
        await house.watch.look()
        assert house.changes == 1


async def test_looking_is_cheap_and_local(servers: list[ModelServer]) -> None:
    async with watching(servers) as house:
        for _ in range(3):
            await house.watch.look()
    assert servers[0].asked == ["/v1/models", "/api/version", "/v1/models", "/v1/models"]


@pytest.mark.parametrize("listing", [{"hello": 1}, [], "text"])
async def test_what_does_not_list_models_is_no_model_server(
    servers: list[ModelServer], listing: Any
) -> None:
    servers[0].listing = listing
    async with watching(servers) as house:
        await house.watch.look()
        assert len(house.catalogue.upstreams) == 1


async def test_nothing_is_found_and_then_something(servers: list[ModelServer]) -> None:
    for one in servers:
        await one.stop()
    async with watching(servers) as house:
        await house.watch.look()
        assert house.catalogue.upstreams == []
        assert house.catalogue.health() is UpstreamHealth.DOWN
        await servers[0].start()
        await house.watch.look()
        assert house.catalogue.announced() == ("m",)


async def test_a_found_server_that_stays_away_is_forgotten(servers: list[ModelServer]) -> None:
    async with watching(servers) as house:
        await house.watch.look()
        await servers[0].stop()
        await house.watch.look()
        assert house.catalogue.health() is UpstreamHealth.DEGRADED
        assert len(house.catalogue.upstreams) == 2
        await house.watch.look()
        await house.watch.look()
        assert [one.target.port for one in house.catalogue.upstreams] == [servers[1].port]


async def test_a_named_server_is_kept_while_it_is_down(servers: list[ModelServer]) -> None:
    url = f"http://127.0.0.1:{servers[0].port}/v1"
    async with watching(servers, NamedUpstream(url=url)) as house:
        await house.watch.look()
        assert house.catalogue.announced() == ("m",)
        await servers[0].stop()
        for _ in range(5):
            await house.watch.look()
        (one,) = house.catalogue.upstreams
        assert one.is_up is False
        assert one.fault == "nobody listens there"
        await servers[0].start()
        await house.watch.look()
        assert (one.is_up, one.fault, one.failures) == (True, "", 0)
    assert servers[1].asked == []


async def test_a_named_server_gets_its_key(servers: list[ModelServer]) -> None:
    servers[0].key = "local-key"
    url = f"http://127.0.0.1:{servers[0].port}"
    async with watching(servers, NamedUpstream(url=url, key=Secret("local-key"))) as house:
        await house.watch.look()
        assert house.catalogue.health() is UpstreamHealth.HEALTHY


async def test_a_found_server_that_wants_a_key_is_noted(servers: list[ModelServer]) -> None:
    servers[0].key = "local-key"
    async with watching(servers) as house:
        await house.watch.look()
        assert len(house.catalogue.upstreams) == 1
        assert house.watch.locked == {servers[0].port}


async def test_a_busy_server_is_not_taken_for_dead_at_once(servers: list[ModelServer]) -> None:
    async with watching(servers[:1]) as house:
        await house.watch.look()
        servers[0].is_stuck = True
        await while_time_passes(house.watch.look(), NEVER_S)
        assert house.catalogue.health() is UpstreamHealth.HEALTHY
        for _ in range(2):
            await while_time_passes(house.watch.look(), NEVER_S)
        assert house.catalogue.upstreams == []


async def test_ollama_is_recognised(servers: list[ModelServer]) -> None:
    servers[0].is_ollama = True
    servers[0].listing = {"object": "list", "data": None}
    async with watching(servers) as house:
        await house.watch.look()
        assert [one.is_ollama for one in house.catalogue.upstreams] == [True, False]


async def test_looking_again_is_shared(servers: list[ModelServer]) -> None:
    async with watching(servers[:1]) as house:
        await asyncio.gather(*(house.watch.fresh() for _ in range(10)))
        assert servers[0].asked.count("/v1/models") == 1


async def test_models_that_come_and_go_are_told(servers: list[ModelServer]) -> None:
    async with watching(servers[:1]) as house:
        await house.watch.look()
        servers[0].listing = {"data": [{"id": "m"}, {"id": "pulled"}]}
        await house.watch.look()
        assert house.changes == 2
        assert house.catalogue.announced() == ("m", "pulled")


async def test_an_address_that_cannot_be_reached_says_why() -> None:
    pool = UpstreamPool(connect_s=NEVER_S)
    listening = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    listening.close()
    await listening.wait_closed()
    with pytest.raises(UpstreamUnreachable, match="nobody listens there"):
        await pool.acquire(parse_target(f"http://127.0.0.1:{port}"))
    with pytest.raises(UpstreamUnreachable):
        await pool.acquire(parse_target("http://no-such-host.invalid:1"))
    pool.close()


@asynccontextmanager
async def answering(
    answer: bytes, host: str = "127.0.0.1", context: ssl.SSLContext | None = None
) -> AsyncGenerator[tuple[int, list[bytes]]]:
    """A server that gives one answer to everything; its port, and the heads that it read."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, host, 0, ssl=context) as listening:
        yield listening.sockets[0].getsockname()[1], heads


def json_answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


MODELS = json_answer("200 OK", b'{"data": [{"id": "m"}]}')


async def test_a_server_that_loads_its_model_is_waited_for_and_asked_often() -> None:
    """llama.cpp answers like this until its model is in memory."""
    body = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
    async with answering(json_answer("503 X", body)) as (port, heads):
        watching = Watching(AgentConfig(discovery=Discovery(ports=(port,))))
        await watching.watch.look()
        (one,) = watching.catalogue.upstreams
        assert (one.is_up, one.is_waiting) == (False, True)
        assert describe_upstreams(watching.catalogue) == (
            [],
            [],
            [f"http://localhost:{port}: it is loading its model"],
        )
        for _ in range(5):
            await watching.watch.look()
        assert watching.catalogue.upstreams == [one]
        asked = len(heads)
        running = asyncio.ensure_future(watching.watch.run())
        while len(heads) == asked:
            await settle()
        await pass_time(WAITING_S)
        while len(heads) < asked + 2:
            await settle()
        running.cancel()
        watching.pool.close()


async def test_a_server_that_is_busy_stays_up(servers: list[ModelServer]) -> None:
    async with watching(servers[:1]) as house:
        await house.watch.look()
        servers[0].error = (
            503,
            {"detail": {"msg": "Server is busy; please try again later."}},
        )
        for _ in range(5):
            await house.watch.look()
        (one,) = house.catalogue.upstreams
        assert (one.is_up, one.is_waiting, one.fault) == (True, True, "it is busy")
        assert house.catalogue.announced() == ("m",)
        servers[0].error = None
        await house.watch.look()
        assert (one.is_up, one.is_waiting, one.fault) == (True, False, "")


async def test_a_server_with_a_private_ca_is_trusted_by_its_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    async with answering(MODELS, context=https(authority, "127.0.0.1")) as (port, _):
        url = f"https://127.0.0.1:{port}"
        unknown = Watching(AgentConfig(), NamedUpstream(url=url))
        await unknown.watch.look()
        assert "BYOAI_AGENT_UPSTREAM_CA_FILE" in unknown.catalogue.upstreams[0].fault
        known = Watching(AgentConfig(), NamedUpstream(url=url, ca_file=file))
        await known.watch.look()
        assert known.catalogue.announced() == ("m",)
        assert known.catalogue.health() is UpstreamHealth.HEALTHY
        unknown.pool.close()
        known.pool.close()


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "cannot be read: No such file"), (b"\x30\x82", "in PEM")]
)
def test_a_ca_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence) as refused:
        target_of(NamedUpstream(url="https://gpu.lan", ca_file=file))
    assert str(file) in str(refused.value)


async def test_a_certificate_for_another_name_is_said_to_be_one(tmp_path: Path) -> None:
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    async with answering(MODELS, context=https(authority, "gpu.lan")) as (port, _):
        named = NamedUpstream(url=f"https://127.0.0.1:{port}", ca_file=file)
        house = Watching(AgentConfig(), named)
        await house.watch.look()
        assert "certificate is for another name" in house.catalogue.upstreams[0].fault
        house.pool.close()


async def test_plain_http_where_tls_is_spoken_and_the_other_way_round() -> None:
    authority = trustme.CA()
    async with answering(MODELS, context=https(authority, "127.0.0.1")) as (port, _):
        house = Watching(AgentConfig(), NamedUpstream(url=f"http://127.0.0.1:{port}"))
        await house.watch.look()
        assert "write https://" in house.catalogue.upstreams[0].fault
        house.pool.close()
    async with speaking_plainly() as port:
        house = Watching(AgentConfig(), NamedUpstream(url=f"https://127.0.0.1:{port}"))
        await house.watch.look()
        assert "write http://" in house.catalogue.upstreams[0].fault
        house.pool.close()


@pytest.mark.parametrize("listening_on", ["127.0.0.1", "::1"])
async def test_localhost_means_both_families(listening_on: str) -> None:
    async with answering(MODELS, listening_on) as (port, heads):
        house = Watching(AgentConfig(), NamedUpstream(url=f"http://localhost:{port}"))
        await house.watch.look()
        assert house.catalogue.announced() == ("m",)
        assert b"host: localhost:%d\r\n" % port in heads[0].lower()
        house.pool.close()


async def test_a_server_on_one_family_only_is_found_by_its_port() -> None:
    async with answering(MODELS, "::1") as (port, _):
        house = Watching(AgentConfig(discovery=Discovery(ports=(port,))))
        await house.watch.look()
        assert house.catalogue.announced() == ("m",)
        house.pool.close()


def test_tls_to_a_server_elsewhere_verifies_and_leaves_no_key_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", "/tmp/keys")
    context = upstream_tls()
    assert context.check_hostname
    assert context.keylog_filename is None


def test_an_upstream_starts_unknown() -> None:
    catalogue = Catalogue([Upstream(parse_target("http://x"))])
    assert catalogue.health() is UpstreamHealth.UNKNOWN
    assert msgspec.json.encode(catalogue.listing()) == b"[]"
