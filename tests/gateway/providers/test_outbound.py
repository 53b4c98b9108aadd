"""Connections to real servers on the loopback, plain and with TLS."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from byoai_gateway.providers.address_guard import AddressGuard
from byoai_gateway.providers.origin import Origin
from byoai_gateway.providers.outbound import (
    AddressInfo,
    Outbound,
    Unreachable,
    UnreachableReason,
    system_context,
)
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.head import RequestHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from support.internet import https, trusted_authority

GET = RequestHead("GET", "/")
LOOPBACK = AddressGuard(("127.0.0.0/8",))
HOST = "llm.example.com"


class Server:
    """Notes what it is asked, and answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[RequestHead] = []
        self.connections = 0
        self.answer: Callable[[ServerRequest], None] = lambda request: request.respond(
            200, body=b"{}"
        )
        self.port = 0

    async def handle(self, request: ServerRequest) -> None:
        self.asked.append(request.head)
        self.answer(request)

    def connection(self) -> ServerConnection:
        self.connections += 1
        return ServerConnection(self.handle)


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncGenerator[Server]:
    server = Server()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server.connection, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


class Names:
    """A name server that answers differently each time, and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        del host
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in found
        ]


@asynccontextmanager
async def reaching(
    names: Names | None = None, context: ssl.SSLContext | None = None, connect_s: float = 5.0
) -> AsyncGenerator[Outbound]:
    resolve = names.resolve if names is not None else None
    outbound = Outbound(connect_s, context, resolve=resolve)
    try:
        yield outbound
    finally:
        outbound.close()


async def fetch(outbound: Outbound, origin: Origin, guard: AddressGuard | None = None) -> bytes:
    found = await outbound.fetch(origin, GET, guard=guard, limit_bytes=100, timeout_s=5)
    return found.body


def plain(server: Server, host: str = "127.0.0.1") -> Origin:
    return Origin("http", host, server.port)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ssl.SSLContext:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return system_context()


async def test_a_small_answer_is_fetched_and_its_connection_used_again() -> None:
    async with serving() as server, reaching() as outbound:
        assert await fetch(outbound, plain(server)) == b"{}"
        assert await fetch(outbound, plain(server)) == b"{}"
    assert server.connections == 1
    assert server.asked[0].header(b"host") == b"127.0.0.1:%d" % server.port


async def test_a_guarded_request_never_gets_an_unguarded_connection() -> None:
    async with serving() as server, reaching() as outbound:
        await fetch(outbound, plain(server))
        with pytest.raises(Unreachable) as caught:
            await fetch(outbound, plain(server), AddressGuard())
        await fetch(outbound, plain(server), LOOPBACK)
    assert caught.value.reason is UnreachableReason.ADDRESS_REFUSED
    assert server.connections == 2


async def test_a_name_that_leads_inside_is_refused_at_the_dial() -> None:
    names = Names(["10.0.0.1", "::1", "64:ff9b::7f00:1"])
    async with serving() as server, reaching(names) as outbound:
        with pytest.raises(Unreachable, match="private or reserved"):
            await fetch(outbound, plain(server, HOST), LOOPBACK)
    assert server.connections == 0


async def test_only_the_allowed_addresses_of_a_name_are_connected_to() -> None:
    # ::1 would come first; were it tried, nothing would listen there.
    async with serving() as server, reaching(Names(["::1", "127.0.0.1"])) as outbound:
        assert await fetch(outbound, plain(server, HOST), LOOPBACK) == b"{}"


async def test_a_name_is_looked_up_once_per_dial_and_judged_each_time() -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    guard = AddressGuard(("127.0.0.1/32",))
    async with serving() as server, reaching(names) as outbound:
        origin = plain(server, HOST)
        connection = await outbound.acquire(origin, guard)
        assert names.asked == 1
        connection.abort()
        outbound.release(origin, guard, connection)
        with pytest.raises(Unreachable) as caught:
            await outbound.acquire(origin, guard)
    assert names.asked == 2
    assert caught.value.reason is UnreachableReason.ADDRESS_REFUSED


async def test_a_redirect_is_an_answer_and_not_followed() -> None:
    async with serving() as inner, serving() as server, reaching() as outbound:
        target = b"http://127.0.0.1:%d/" % inner.port
        server.answer = lambda request: request.respond(302, ((b"location", target),))
        found = await outbound.fetch(
            plain(server), GET, guard=LOOPBACK, limit_bytes=100, timeout_s=5
        )
    assert found.status == 302
    assert inner.connections == 0


async def test_the_environment_sets_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as proxy, serving() as server, reaching() as outbound:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        await fetch(outbound, plain(server))
    assert proxy.connections == 0
    assert len(server.asked) == 1


async def test_tls_is_checked_against_the_name_and_speaks_http_1(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    names = Names(["127.0.0.1"])
    context = https(authority, HOST, alpn=("h2", "http/1.1"))
    async with serving(context) as server, reaching(names, trusting) as outbound:
        origin = Origin("https", HOST, server.port)
        connection = await outbound.acquire(origin, LOOPBACK)
        assert connection.transport is not None
        session = connection.transport.get_extra_info("ssl_object")
        assert session.selected_alpn_protocol() == "http/1.1"
        outbound.release(origin, LOOPBACK, connection)
        assert await fetch(outbound, origin, LOOPBACK) == b"{}"
        assert server.connections == 1
        with pytest.raises(Unreachable) as caught:
            await fetch(outbound, Origin("https", "other.example.com", server.port), LOOPBACK)
    assert caught.value.reason is UnreachableReason.TLS_FAILED


async def test_an_address_may_have_a_certificate_of_its_own(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    async with (
        serving(https(authority, "127.0.0.1", alpn=("h2", "http/1.1"))) as server,
        reaching(context=trusting) as outbound,
    ):
        assert await fetch(outbound, Origin("https", "127.0.0.1", server.port), LOOPBACK) == b"{}"


async def test_a_stranger_is_not_trusted(authority: trustme.CA) -> None:
    async with (
        serving(https(authority, "127.0.0.1", alpn=("h2", "http/1.1"))) as server,
        reaching() as outbound,
    ):
        with pytest.raises(Unreachable, match=r"TLS with 127\.0\.0\.1 failed") as caught:
            await fetch(outbound, Origin("https", "127.0.0.1", server.port))
    assert caught.value.reason is UnreachableReason.TLS_FAILED


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("size", [1_000, 300_000, 3_000_000])
async def test_an_answer_before_the_body_was_read_is_returned(
    authority: trustme.CA, trusting: ssl.SSLContext, size: int, is_tls: bool
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
        if is_tls:
            writer.close()
        else:
            writer.transport.abort()

    context = https(authority, "127.0.0.1") if is_tls else None
    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listening,
        reaching(context=trusting) as outbound,
    ):
        port = listening.sockets[0].getsockname()[1]
        origin = Origin("https" if is_tls else "http", "127.0.0.1", port)
        for _ in range(5):
            head = RequestHead("POST", "/v1/chat/completions")
            found = await outbound.fetch(origin, head, b"x" * size, limit_bytes=100, timeout_s=50.0)
            assert (found.status, found.body) == (413, b"large")


async def test_a_server_without_tls_is_said_to_have_none(trusting: ssl.SSLContext) -> None:
    async with serving() as server, reaching(context=trusting) as outbound:
        with pytest.raises(Unreachable) as caught:
            await fetch(outbound, Origin("https", "127.0.0.1", server.port))
    assert caught.value.reason in {
        UnreachableReason.TLS_FAILED,
        UnreachableReason.CONNECTION_REFUSED,
    }


def test_keys_of_sessions_are_never_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", "/nowhere/keys")
    assert system_context().keylog_filename is None


async def test_a_closed_port_is_unreachable() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # held, not listened at
        async with reaching() as outbound:
            with pytest.raises(Unreachable) as caught:
                await fetch(outbound, Origin("http", "127.0.0.1", held.getsockname()[1]))
    assert caught.value.reason is UnreachableReason.CONNECTION_REFUSED


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label too long")])
async def test_an_unknown_name_is_said_to_be_one(error: Exception) -> None:
    async def resolve(host: str, port: int) -> Sequence[AddressInfo]:
        raise error

    outbound = Outbound(5.0, resolve=resolve)
    with pytest.raises(Unreachable, match=HOST) as caught:
        await fetch(outbound, Origin("http", HOST, 80))
    assert caught.value.reason is UnreachableReason.NAME_UNKNOWN


async def test_a_name_without_an_address_is_unknown() -> None:
    async with reaching(Names([])) as outbound:
        for guard in (None, AddressGuard()):
            with pytest.raises(Unreachable) as caught:
                await fetch(outbound, Origin("http", HOST, 80), guard)
            assert caught.value.reason is UnreachableReason.NAME_UNKNOWN


async def test_one_limit_covers_the_name_and_the_handshake(trusting: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()

    async def never(host: str, port: int) -> Sequence[AddressInfo]:
        del host, port
        found: Sequence[AddressInfo] = await loop.create_future()
        return found

    silent = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    slow_name = Outbound(0.01, trusting, resolve=never)
    slow_tls = Outbound(0.05, trusting)
    for outbound in (slow_name, slow_tls):
        with pytest.raises(Unreachable) as caught:
            await outbound.acquire(Origin("https", "127.0.0.1", port), None)
        assert caught.value.reason is UnreachableReason.TIMED_OUT
    silent.close()


async def test_an_answer_beyond_the_limits_is_none() -> None:
    async with serving() as server, reaching() as outbound:
        server.answer = lambda request: request.respond(200, body=b"x" * 101)
        with pytest.raises(Unreachable, match="exceeds the limit of 100 bytes"):
            await fetch(outbound, plain(server))
        server.answer = lambda request: request.disconnect()
        with pytest.raises(Unreachable) as caught:
            await fetch(outbound, plain(server))
    assert caught.value.reason is UnreachableReason.BROKEN_OFF


async def test_an_answer_that_does_not_come_is_given_up() -> None:
    released = asyncio.Event()

    class Hanging(Server):
        async def handle(self, request: ServerRequest) -> None:
            await released.wait()
            request.respond(200)

    hanging = Hanging()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(hanging.connection, "127.0.0.1", 0)
    hanging.port = listener.sockets[0].getsockname()[1]
    async with reaching() as outbound:
        with pytest.raises(Unreachable, match=r"within 0\.05 s") as caught:
            await outbound.fetch(plain(hanging), GET, limit_bytes=100, timeout_s=0.05)
        released.set()
    listener.close()
    assert caught.value.reason is UnreachableReason.TIMED_OUT


async def test_a_server_that_let_an_idle_connection_go_is_asked_again() -> None:
    async with serving() as server, reaching() as outbound:
        await fetch(outbound, plain(server))

        def once(request: ServerRequest) -> None:
            server.answer = lambda again: again.respond(200, body=b"again")
            request.disconnect()

        server.answer = once
        assert await fetch(outbound, plain(server)) == b"again"
    assert server.connections == 2


async def test_a_body_may_end_with_its_connection() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server, reaching() as outbound:
        port = server.sockets[0].getsockname()[1]
        assert await fetch(outbound, Origin("http", "127.0.0.1", port)) == b"until the end"


async def test_a_cancelled_dial_leaves_nothing_behind(trusting: ssl.SSLContext) -> None:
    ended = asyncio.Event()
    began = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        began.set()
        await reader.read()
        ended.set()
        writer.close()

    async with (
        await asyncio.start_server(hold, "127.0.0.1", 0) as server,
        reaching(context=trusting) as outbound,
    ):
        origin = Origin("https", "127.0.0.1", server.sockets[0].getsockname()[1])
        dial: asyncio.Task[ClientConnection] = asyncio.ensure_future(outbound.acquire(origin, None))
        async with asyncio.timeout(50):
            await began.wait()
            dial.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dial
            await ended.wait()


class Loads:
    """How often the system's authorities are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        load = ssl.SSLContext.load_default_certs

        def counted(context: ssl.SSLContext, purpose: ssl.Purpose) -> None:
            self.count += 1
            load(context, purpose)

        monkeypatch.setattr(ssl.SSLContext, "load_default_certs", counted)


def test_the_systems_authorities_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted_authority(tmp_path, monkeypatch)
    loads = Loads(monkeypatch)
    assert len({id(system_context()) for _ in range(5)}) == 1
    assert loads.count == 1


def test_authorities_that_changed_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted_authority(tmp_path, monkeypatch)
    loads, before = Loads(monkeypatch), system_context()
    file = tmp_path / "ca.pem"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert system_context() is not before
    (tmp_path / "other").mkdir()
    trusted_authority(tmp_path / "other", monkeypatch)
    system_context()
    assert loads.count == 3
