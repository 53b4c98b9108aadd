"""The TLS transport over a pipe in memory, and over loopback TCP on both event loops."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, Self, cast

import pytest
import trustme
from aiohttp import web

from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.head import RequestHead
from byoai_shared.tls_transport import (
    TlsError,
    TlsHandshakeFailed,
    TlsPeerRefusedCertificate,
    TlsTransport,
    TlsTruncated,
)
from support.garbage import cyclic_garbage
from support.inner import start_tls
from support.wires import PipeTransport, pipe, turns

NAME = "t.tunnel.internal"


# trustme names a type of pyOpenSSL, which is not installed: pyright cannot know it.
class Authority:
    """A certificate authority and what both ends need of it."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.certificate = self.ca.issue_cert(NAME)
        self.client_certificate = self.ca.issue_cert("client.internal")

    def server(self, *, client_ca: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        self.certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            client_ca.configure_trust(context)  # pyright: ignore[reportUnknownMemberType]
        return context

    def client(self, *, with_certificate: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)  # pyright: ignore[reportUnknownMemberType]
        if with_certificate:
            self.client_certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
        return context


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Recorder(asyncio.Protocol):
    """Remembers everything; may keep the transport open after the end of the other side."""

    def __init__(self, *, keeps_open: bool = False) -> None:
        self.transport: TlsTransport | None = None
        self.received = bytearray()
        self.calls: list[str] = []
        self.keeps_open = keeps_open
        self.error: Exception | None = None
        self.made = asyncio.Event()
        self.ended = asyncio.Event()
        self.lost = asyncio.Event()
        self._progress = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsTransport)
        self.transport = transport
        self.calls.append("made")
        self.made.set()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._progress.set()

    def eof_received(self) -> bool:
        self.calls.append("eof")
        self.ended.set()
        return self.keeps_open

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.error = exc
        self.lost.set()

    @property
    def tls(self) -> TlsTransport:
        assert self.transport is not None
        return self.transport

    async def got(self, size: int) -> bytes:
        async with asyncio.timeout(50):
            while len(self.received) < size:
                self._progress.clear()
                await self._progress.wait()
        return bytes(self.received)

    async def until(self, event: asyncio.Event) -> None:
        async with asyncio.timeout(50):
            await event.wait()


class Session:
    """Both ends of a session over a pipe."""

    def __init__(
        self,
        server: ssl.SSLContext,
        client: ssl.SSLContext,
        *,
        hostname: str = NAME,
        piece: int = 1 << 30,
        keeps_open: bool = False,
        timeout_s: float = 5.0,
        upper: asyncio.Protocol | None = None,
    ) -> None:
        self.server = Recorder(keeps_open=keeps_open)
        self.client = Recorder(keeps_open=keeps_open)
        self.reports: dict[str, list[BaseException | None]] = {"server": [], "client": []}
        self.below_server, self.below_client = pipe(piece=piece)
        self.client_tls = TlsTransport(
            self.client,
            client,
            server_side=False,
            server_hostname=hostname,
            on_handshake=self.reports["client"].append,
            handshake_timeout_s=timeout_s,
        )
        self.server_tls = TlsTransport(
            upper or self.server,
            server,
            server_side=True,
            on_handshake=self.reports["server"].append,
            handshake_timeout_s=timeout_s,
        )

    async def start(self) -> None:
        self.below_server.start(self.server_tls)
        self.below_client.start(self.client_tls)
        async with asyncio.timeout(50):
            while not all(self.reports.values()):
                await turns()


@pytest.fixture
async def session(authority: Authority) -> Session:
    made = Session(authority.server(), authority.client(), keeps_open=True)
    await made.start()
    return made


@pytest.mark.parametrize("piece", [1, 100, 1 << 30])
async def test_bytes_go_both_ways_however_they_are_cut(authority: Authority, piece: int) -> None:
    session = Session(authority.server(), authority.client(), piece=piece)
    await session.start()
    session.client.tls.write(b"to the server")
    session.server.tls.write(b"to the client")
    assert await session.server.got(13) == b"to the server"
    assert await session.client.got(13) == b"to the client"
    session.client.tls.close()
    await session.client.until(session.client.lost)
    await session.server.until(session.server.lost)
    assert session.client.error is None
    assert session.server.error is None
    assert session.server.calls == ["made", "eof", "lost"]
    assert session.reports == {"server": [None], "client": [None]}


async def test_one_write_above_is_one_write_below(session: Session) -> None:
    session.below_client.sent.clear()
    session.client.tls.write(b"x" * 200)
    session.client.tls.write(memoryview(b"y" * 100_000))
    session.client.tls.writelines([b"a", bytearray(b"b"), b"", b"c" * 50_000])
    assert len(session.below_client.sent) == 3
    assert await session.server.got(150_202) == (
        b"x" * 200 + b"y" * 100_000 + b"ab" + b"c" * 50_000
    )


async def test_what_is_written_never_crosses_in_clear(session: Session) -> None:
    session.client.tls.write(b"prompt-canary" * 10)
    await session.server.got(130)
    assert b"prompt-canary" not in b"".join(session.below_client.sent)


async def test_nothing_is_written_for_nothing(session: Session) -> None:
    session.below_client.sent.clear()
    session.client.tls.write(b"")
    assert session.below_client.sent == []


async def test_the_end_without_close_notify_is_a_truncation(session: Session) -> None:
    session.client.tls.write(b"half of i")
    session.below_client.write_eof()
    await session.server.until(session.server.lost)
    assert session.server.received == b"half of i"
    assert isinstance(session.server.error, TlsTruncated)
    assert "eof" not in session.server.calls


async def test_a_loss_without_close_notify_is_a_truncation(session: Session) -> None:
    session.below_client.cut(None, None)
    await session.server.until(session.server.lost)
    assert isinstance(session.server.error, TlsTruncated)


async def test_the_reason_of_the_transport_below_is_passed_up(session: Session) -> None:
    reason = ConnectionResetError("not processed")
    session.below_client.cut(None, reason)
    await session.server.until(session.server.lost)
    assert session.server.error is reason


@pytest.mark.parametrize("is_paused", [False, True])
async def test_truncate_delivers_what_was_written_and_is_no_orderly_end(
    session: Session, is_paused: bool
) -> None:
    if is_paused:
        session.client.tls.pause_reading()
    session.server.tls.write(b"last words")
    session.server.tls.truncate()
    session.server.tls.truncate()
    await session.server.until(session.server.lost)
    if is_paused:
        await turns(20)
        assert session.client.calls == ["made"]
        session.client.tls.resume_reading()
    await session.client.until(session.client.lost)
    assert session.client.received == b"last words"
    assert isinstance(session.client.error, TlsTruncated)
    assert "eof" not in session.client.calls


async def test_truncate_after_close_notify_cuts_the_transport_below(session: Session) -> None:
    session.server.tls.write_eof()
    session.server.tls.truncate()
    assert session.below_server.is_closing()
    await session.client.until(session.client.lost)
    assert session.client.error is not None


async def test_abort_cuts_the_transport_below_at_once(session: Session) -> None:
    session.client.tls.abort()
    assert session.below_client.is_closing()
    await session.client.until(session.client.lost)
    assert session.client.error is None
    await session.server.until(session.server.lost)
    assert session.server.error is not None


async def test_tampered_bytes_end_the_session(session: Session) -> None:
    session.client.tls.write(b"x" * 100)
    inbox = session.below_server._inbox
    record = bytearray(inbox.pop())
    record[-1] ^= 1
    inbox.append(bytes(record))
    await session.server.until(session.server.lost)
    assert isinstance(session.server.error, TlsError)
    assert session.server.received == b""


async def test_half_close_lets_the_other_side_finish(session: Session) -> None:
    session.client.tls.write(b"question")
    session.client.tls.write_eof()
    session.client.tls.write(b"ignored")
    await session.server.until(session.server.ended)
    assert session.server.received == b"question"
    session.server.tls.write(b"late answer" * 10_000)
    assert len(await session.client.got(110_000)) == 110_000
    session.server.tls.close()
    await session.client.until(session.client.lost)
    await session.server.until(session.server.lost)
    assert session.client.error is None
    assert session.server.error is None
    assert session.client.calls.count("eof") == 1


async def test_half_close_while_paused_loses_no_byte(session: Session) -> None:
    session.client.tls.pause_reading()
    session.server.tls.write(b"under way" * 5000)
    await turns()
    session.client.tls.write_eof()
    session.client.tls.resume_reading()
    assert await session.client.got(45_000) == b"under way" * 5000
    session.server.tls.write(b"more")
    assert (await session.client.got(45_004)).endswith(b"more")


async def test_a_paused_reader_gets_nothing_and_the_bytes_wait_below(session: Session) -> None:
    session.client.tls.pause_reading()
    for _ in range(100):
        session.server.tls.write(b"x" * 1000)
    await turns(300)
    assert session.client.received == b""
    assert session.client_tls._incoming.pending <= 1100, "one delivery at most is kept here"
    assert session.below_client._inbox_bytes > 90_000
    session.client.tls.resume_reading()
    assert session.client.received == b"", "not from inside the call"
    assert len(await session.client.got(100_000)) == 100_000


async def test_the_end_waits_for_a_paused_reader(session: Session) -> None:
    session.client.tls.pause_reading()
    session.server.tls.write(b"last words")
    session.server.tls.close()
    await turns(20)
    assert session.client.calls == ["made"]
    session.client.tls.resume_reading()
    await session.client.until(session.client.ended)
    assert session.client.received == b"last words"


async def test_a_reader_that_pauses_in_the_middle_gets_the_rest_later(
    authority: Authority,
) -> None:
    class Shy(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.tls.pause_reading()

    session = Session(authority.server(), authority.client())
    shy = Shy()
    session.client_tls.set_protocol(shy)
    await session.start()
    payload = bytes(range(256)) * 2000
    session.server.tls.write(payload)
    await turns(20)
    assert 0 < len(shy.received) < len(payload)
    async with asyncio.timeout(50):
        while len(shy.received) < len(payload):
            shy.tls.resume_reading()
            await turns(3)
    assert shy.received == payload


async def test_back_pressure_below_is_passed_up_and_bounds_what_is_kept(
    session: Session,
) -> None:
    session.server.tls.pause_reading()
    written = 0
    while "pause" not in session.client.calls:
        session.client.tls.write(b"x" * 10_000)
        written += 10_000
        assert written < 1_000_000
    assert session.client.tls.get_write_buffer_size() < 100_000
    session.server.tls.resume_reading()
    await session.server.got(written)
    assert session.client.calls == ["made", "pause", "resume"]


async def test_a_peer_with_another_certificate_is_refused(authority: Authority) -> None:
    session = Session(authority.server(), Authority().client())
    await session.start()
    assert isinstance(session.reports["client"][0], TlsHandshakeFailed)
    assert "local issuer certificate" in str(session.reports["client"][0])
    error = session.reports["server"][0]
    assert isinstance(error, TlsPeerRefusedCertificate)
    assert str(error) == "peer refused our certificate: unknown ca"
    await turns()
    assert session.client.calls == []
    assert session.server.calls == []
    assert session.below_client.is_closing()


async def test_a_peer_with_another_name_is_refused(authority: Authority) -> None:
    session = Session(authority.server(), authority.client(), hostname="other.internal")
    await session.start()
    error = session.reports["client"][0]
    assert isinstance(error, TlsHandshakeFailed)
    assert "other.internal" in str(error)


@pytest.mark.parametrize("offered", [True, False])
async def test_a_late_refusal_of_the_clients_certificate_is_a_clear_error(
    authority: Authority, offered: bool
) -> None:
    server = authority.server(client_ca=trustme.CA())
    session = Session(server, authority.client(with_certificate=offered))
    await session.start()
    assert session.reports["client"] == [None], "TLS 1.3 tells the client only afterwards"
    assert isinstance(session.reports["server"][0], TlsHandshakeFailed)
    await session.client.until(session.client.lost)
    assert isinstance(session.client.error, TlsPeerRefusedCertificate)
    expected = "unknown ca" if offered else "certificate required"
    assert str(session.client.error) == f"peer refused our certificate: {expected}"


async def test_both_ends_see_the_certificate_of_the_other(authority: Authority) -> None:
    server = authority.server(client_ca=authority.ca)
    session = Session(server, authority.client(with_certificate=True))
    await session.start()
    for end, leaf in (
        (session.server, authority.client_certificate),
        (session.client, authority.certificate),
    ):
        der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
        assert end.tls.get_extra_info("peercert_der") == der
        assert end.tls.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert end.tls.get_extra_info("socket") is None
        assert end.tls.get_extra_info("byoai.peer") == "pipe"
        assert end.tls.get_extra_info("absent", 5) == 5


@pytest.mark.parametrize("side", ["server", "client"])
async def test_a_silent_peer_is_given_up_at_the_limit(authority: Authority, side: str) -> None:
    session = Session(authority.server(), authority.client(), timeout_s=0.01)
    below, tls = (
        (session.below_server, session.server_tls)
        if side == "server"
        else (session.below_client, session.client_tls)
    )
    below.start(tls)
    async with asyncio.timeout(50):
        while not session.reports[side]:
            await turns()
    error = session.reports[side][0]
    assert isinstance(error, TlsHandshakeFailed)
    assert str(error) == "TLS handshake not done after the limit of 0.01 s"
    assert below.is_closing()


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" * 50])
async def test_what_is_not_tls_is_refused(authority: Authority, raw: bytes) -> None:
    session = Session(authority.server(), authority.client())
    session.below_server.start(session.server_tls)
    session.below_client.protocol = asyncio.Protocol()
    session.below_client.write(raw)
    await turns(10)
    assert isinstance(session.reports["server"][0], TlsHandshakeFailed)
    assert session.below_server.is_closing()


async def test_a_stream_lost_during_the_handshake_is_reported_with_its_reason(
    authority: Authority,
) -> None:
    session = Session(authority.server(), authority.client())
    session.below_client.start(session.client_tls)
    reason = ConnectionResetError("not processed")
    session.below_server.cut(None, reason)
    await turns()
    assert session.reports["client"] == [reason]
    session = Session(authority.server(), authority.client())
    session.below_client.start(session.client_tls)
    session.below_server.write_eof()
    await turns()
    assert isinstance(session.reports["client"][0], TlsError)


async def test_starting_tls_raises_what_failed_and_cuts_when_cancelled(
    authority: Authority,
) -> None:
    below, _peer = pipe()
    task = asyncio.ensure_future(
        start_tls(below, Recorder(), authority.client(), server_hostname=NAME)
    )
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert below.is_closing()
    below, _peer = pipe()
    with pytest.raises(TlsHandshakeFailed):
        await start_tls(
            below,
            Recorder(),
            authority.client(),
            server_hostname=NAME,
            handshake_timeout_s=0.01,
        )


async def test_a_refused_peer_is_never_announced(authority: Authority) -> None:
    below_server, below_client = pipe()
    upper = Recorder()
    tls: list[TlsTransport] = []
    server = TlsTransport(
        upper, authority.server(), server_side=True, on_handshake=lambda _: tls[0].abort()
    )
    tls.append(server)
    below_server.start(server)
    client = Recorder()
    below_client.start(
        TlsTransport(client, authority.client(), server_side=False, server_hostname=NAME)
    )
    await turns(20)
    assert upper.calls == []


async def test_the_first_request_may_come_with_the_end_of_the_handshake(
    authority: Authority,
) -> None:
    # The client's last flight and its first bytes reach the server in one piece.
    session = Session(authority.server(), authority.client())

    def write_at_once(error: BaseException | None) -> None:
        asyncio.get_running_loop().call_soon(session.client_tls.write, b"first")

    session.client_tls._on_handshake = write_at_once
    session.reports["client"].append(None)
    session.below_server.start(session.server_tls)
    session.below_client.start(session.client_tls)
    assert await session.server.got(5) == b"first"


# ---- aiohttp above: a second opinion on how a transport must behave


async def test_aiohttp_serves_over_it(authority: Authority) -> None:
    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for chunk in request.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response

    runner = web.ServerRunner(web.Server(echo))
    await runner.setup()
    assert runner.server is not None
    try:
        session = Session(authority.server(), authority.client(), upper=runner.server())
        connection = ClientConnection()
        session.client_tls.set_protocol(connection)
        await session.start()
        async with asyncio.timeout(50):
            for size in (0, 10, 3_000_000):
                head = RequestHead("POST", "/", ((b"host", NAME.encode()),))
                response = await connection.request(head, b"x" * size)
                assert response.head.status == 200
                assert await response.read(size) == b"x" * size
                assert connection.is_reusable
        connection.close()
        await turns(20)
    finally:
        await runner.cleanup()


# ---- loopback TCP, on both event loops


def _uvloop() -> asyncio.AbstractEventLoop:
    return cast("asyncio.AbstractEventLoop", pytest.importorskip("uvloop").new_event_loop())


@pytest.fixture(params=[asyncio.SelectorEventLoop, _uvloop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Awaitable[None]], None]]:
    with asyncio.Runner(loop_factory=request.param) as runner:

        def run_one(main: Any) -> None:
            runner.run(main)

        yield run_one


class Tcp:
    """A server and one client over loopback."""

    def __init__(self, authority: Authority, *, keeps_open: bool = False) -> None:
        self.authority = authority
        self.server = Recorder(keeps_open=keeps_open)
        self.client = Recorder(keeps_open=keeps_open)
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        context = self.authority.server()
        self._listener = await loop.create_server(
            lambda: TlsTransport(self.server, context, server_side=True), "127.0.0.1", 0
        )
        port = self._listener.sockets[0].getsockname()[1]
        below, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        await start_tls(below, self.client, self.authority.client(), server_hostname=NAME)
        async with asyncio.timeout(50):
            await self.server.made.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for end in (self.client, self.server):
            end.tls.abort()
            await end.until(end.lost)
        await self._listener.wait_closed()


def test_large_transfers_over_tcp_both_ways_at_once(
    authority: Authority, run: Callable[[Awaitable[None]], None]
) -> None:
    async def main() -> None:
        async with Tcp(authority) as tcp:
            up, down = b"u" * 20_000_000, b"d" * 10_000_000
            tcp.client.tls.write(up)
            for start in range(0, len(down), 100_000):
                tcp.server.tls.write(down[start : start + 100_000])
            assert await tcp.server.got(len(up)) == up
            assert await tcp.client.got(len(down)) == down
            assert "pause" in tcp.client.calls
            tcp.client.tls.close()
            await tcp.server.until(tcp.server.lost)
            assert tcp.server.error is None

    run(main())


def test_pausing_over_tcp_stops_the_writer(
    authority: Authority, run: Callable[[Awaitable[None]], None]
) -> None:
    async def main() -> None:
        async with Tcp(authority) as tcp:
            tcp.server.tls.pause_reading()
            written = 0
            while "pause" not in tcp.client.calls:
                tcp.client.tls.write(b"x" * 65536)
                written += 65536
                assert written < 100_000_000
                await asyncio.sleep(0)
            assert tcp.server.received == b""
            assert tcp.server.tls._incoming.pending <= 512 * 1024
            tcp.server.tls.resume_reading()
            assert len(await tcp.server.got(written)) == written
            assert tcp.client.calls[-1] == "resume"

    run(main())


def test_half_close_over_tcp(authority: Authority, run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        async with Tcp(authority, keeps_open=True) as tcp:
            tcp.client.tls.write(b"question")
            tcp.client.tls.write_eof()
            await tcp.server.until(tcp.server.ended)
            tcp.server.tls.write(b"answer" * 100_000)
            assert len(await tcp.client.got(600_000)) == 600_000
            tcp.server.tls.close()
            await tcp.client.until(tcp.client.lost)
            assert tcp.client.error is None

    run(main())


def test_truncation_over_tcp(authority: Authority, run: Callable[[Awaitable[None]], None]) -> None:
    async def main() -> None:
        async with Tcp(authority) as tcp:
            tcp.client.tls.write(b"half of i")
            await tcp.server.got(9)
            below = tcp.client.tls._below
            assert below is not None
            below.write_eof()
            await tcp.server.until(tcp.server.lost)
            assert isinstance(tcp.server.error, TlsTruncated)

    run(main())


def test_a_late_refusal_over_tcp(
    authority: Authority, run: Callable[[Awaitable[None]], None]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        context = authority.server(client_ca=trustme.CA())
        listener = await loop.create_server(
            lambda: TlsTransport(Recorder(), context, server_side=True), "127.0.0.1", 0
        )
        port = listener.sockets[0].getsockname()[1]
        below, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        client = Recorder()
        await start_tls(
            below, client, authority.client(with_certificate=True), server_hostname=NAME
        )
        await client.until(client.lost)
        assert isinstance(client.error, TlsPeerRefusedCertificate)
        listener.close()
        await listener.wait_closed()

    run(main())


def test_the_standard_librarys_tls_is_a_peer(
    authority: Authority, run: Callable[[Awaitable[None]], None]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = Recorder()
        listener = await loop.create_server(
            lambda: TlsTransport(server, authority.server(), server_side=True), "127.0.0.1", 0
        )
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=authority.client(), server_hostname=NAME
        )
        writer.write(b"x" * 1_000_000)
        await server.got(1_000_000)
        server.tls.write(b"y" * 1_000_000)
        async with asyncio.timeout(50):
            assert await reader.readexactly(1_000_000) == b"y" * 1_000_000
        server.tls.close()
        async with asyncio.timeout(50):
            assert await reader.read() == b""
        writer.close()
        listener.close()
        await listener.wait_closed()

    run(main())


def test_the_pipe_is_a_pipe() -> None:
    # The tests above rest on it.
    async def main() -> None:
        left, right = pipe(piece=2)
        assert isinstance(left, PipeTransport)
        received: list[bytes] = []

        class Taker(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                received.append(bytes(data))

        left.start(asyncio.Protocol())
        right.start(Taker())
        left.write(b"abc")
        await turns()
        assert received == [b"ab", b"c"]

    asyncio.run(main())


async def test_what_ended_is_not_left_in_reference_cycles(authority: Authority) -> None:
    in_order: Session | None = None
    with cyclic_garbage() as left:
        for _ in range(5):
            in_order = Session(authority.server(), authority.client())
            await in_order.start()
            in_order.client.tls.close()
            await in_order.server.until(in_order.server.lost)
            await nothing_but_a_failure(
                Session(authority.server(), authority.client(), hostname="x")
            )
            server = authority.server(client_ca=authority.ca)
            await nothing_but_a_failure(Session(server, authority.client()))
        del in_order
        await turns(50)
    assert not left


async def nothing_but_a_failure(session: Session) -> None:
    await session.start()
    with suppress(TlsError):
        await session.server_tls.established()
    session.reports.clear()  # the error holds this frame


async def test_a_failed_handshake_is_told_to_each_who_awaits_it(authority: Authority) -> None:
    session = Session(authority.server(), authority.client(), hostname="another.internal")
    await session.start()
    for _ in range(2):
        with pytest.raises(TlsError, match="bad certificate"):
            await session.server_tls.established()
