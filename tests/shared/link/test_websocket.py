"""A link's carrier over real TLS sockets, on both event loops."""

import asyncio
import base64
import os
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from struct import pack

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from byoai_shared.identity import certificate_identity
from byoai_shared.link import websocket
from byoai_shared.link.errors import LinkRefused
from byoai_shared.link.websocket import UNSENT_HIGH_BYTES, WebSocketLink
from byoai_shared.protocol.errors import CloseCode, RemoteProtocolError
from byoai_shared.protocol.frames import DATA, MAX_MESSAGE_BYTES, FrameType, decode, encode
from byoai_shared.tls import client_context, server_context
from support.authority import Authority
from support.links import AGENT, GATEWAY, PATIENCE_S, Driver, certificates, linked, listening
from support.loop_clock import while_time_passes

MIB = 1024 * 1024
SPOKEN = Subprotocol("byoai.link.v1")


@pytest.fixture(autouse=True)
def soon_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait a second for the CLOSE of a peer that a test lets be silent."""
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.05)


def put_data(driver: Driver, stream_id: int, payload: bytes) -> None:
    header = pack(">II", len(payload) << 8 | DATA, stream_id)
    driver.outbox.put_stream(stream_id, header, payload)
    driver.link.flush_soon()


def dial_context() -> ssl.SSLContext:
    return certificates().client(AGENT)


async def refused(url: str, context: ssl.SSLContext | None = None) -> LinkRefused:
    with pytest.raises(LinkRefused) as caught:
        await websocket.connect(url, Driver, ssl_context=context or dial_context())
    return caught.value


# -- a link that works


async def test_each_end_knows_the_others_certificate() -> None:
    async with linked() as (client, server):
        assert certificate_identity(server.link.peer_certificate) == AGENT
        assert str(certificate_identity(client.link.peer_certificate)).count("relay-1") == 1
        assert server.link.peer_address.startswith("127.0.0.1:")


async def test_frames_made_in_one_turn_leave_in_one_message() -> None:
    async with linked() as (client, server):
        for number in range(20):
            put_data(client, number + 1, b"token")
        client.outbox.put_urgent(FrameType.PING, 0, bytes(8))
        client.link.flush_soon()
        await server.until(lambda: bool(server.messages))
        (message,) = server.messages
        kinds = [kind for kind, _, _ in decode(message)]
        assert kinds == [FrameType.PING] + [FrameType.DATA] * 20


async def test_what_was_put_in_while_attaching_leaves_at_once() -> None:
    def attach(link: WebSocketLink) -> Driver:
        driver = Driver(link)
        driver.outbox.put_urgent(FrameType.PING, 0, b"8 bytes!")
        return driver

    async with listening() as there:
        link = await websocket.connect(there.url, attach, ssl_context=dial_context())
        server = await there.driver()
        await server.until(lambda: server.messages == [encode(FrameType.PING, 0, b"8 bytes!")])
        link.abort()
        await server.end()


async def test_many_bytes_arrive_both_ways_at_once() -> None:
    async with linked() as (client, server):
        payload = os.urandom(32 * 1024)
        for driver in (client, server):
            for _ in range(300):
                put_data(driver, 1, payload)
        for driver in (client, server):
            await driver.until(lambda driver=driver: sum(map(len, driver.messages)) >= 300 * 32776)  # type: ignore[misc] # mypy cannot infer a default's lambda
            frames = [bytes(p) for message in driver.messages for _, _, p in decode(message)]
            assert frames == [payload] * 300


async def test_unsent_bytes_are_capped_so_that_the_order_still_means_something() -> None:
    async with linked() as (client, server):
        underlying = server.link._transport.underlying_transport  # type: ignore[union-attr] # it stands
        underlying.pause_reading()
        total = 64 * MIB
        for _ in range(total // (32 * 1024)):
            put_data(client, 1, bytes(32 * 1024))
        await client.until(lambda: client.flushes > 0)
        assert not client.link._is_writable
        ours = client.link._transport.underlying_transport  # type: ignore[union-attr] # it stands
        assert ours.get_write_buffer_size() <= UNSENT_HIGH_BYTES + 2 * MAX_MESSAGE_BYTES
        assert client.outbox.queued_bytes > total // 2
        client.outbox.put_urgent(FrameType.PING, 0, b"overtake")
        client.link.flush_soon()
        underlying.resume_reading()
        await server.until(lambda: sum(map(len, server.messages)) > total)
        kinds = [kind for message in server.messages for kind, _, _ in decode(message)]
        assert kinds.index(FrameType.PING) < len(kinds) // 2
        assert kinds.count(FrameType.DATA) == total // (32 * 1024)


# -- ends


@pytest.mark.parametrize("closing", ["client", "server"])
async def test_the_other_end_hears_a_private_close_code_and_the_reason(closing: str) -> None:
    async with linked() as (client, server):
        one, other = (client, server) if closing == "client" else (server, client)
        put_data(one, 1, b"last words")
        one.link.close(CloseCode.REVOKED, "the tunnel was revoked")
        assert await other.end() == (4104, "the tunnel was revoked")
        assert len(other.messages) == 1
        await one.end()
        assert one.link.is_closing
        assert other.link.is_closing
        one.link.close(CloseCode.IDLE, "again")
        one.link.flush_soon()


async def test_a_reason_is_cut_to_what_a_close_frame_holds() -> None:
    async with linked() as (client, server):
        client.link.close(CloseCode.PROTOCOL_ERROR, "ü" * 200)
        code, reason = await server.end()
        assert (code, reason) == (4100, "ü" * 61)


async def test_abort_is_heard_at_once_without_a_code() -> None:
    async with linked() as (client, server):
        client.link.abort()
        assert (await server.end())[0] is None
        assert (await client.end())[0] is None


async def test_what_waits_for_a_slow_peer_is_not_cut_off_by_a_close() -> None:
    async with linked() as (client, server):
        underlying = server.link._transport.underlying_transport  # type: ignore[union-attr] # it stands
        underlying.pause_reading()
        for _ in range(6):
            put_data(client, 1, bytes(32 * 1024))
        client.link.close(CloseCode.GOING_AWAY, "later")
        underlying.resume_reading()
        assert await server.end() == (4000, "later")
        assert sum(map(len, server.messages)) == 6 * (32 * 1024 + 8)


# -- peers by another hand


@asynccontextmanager
async def stranger(url: str) -> AsyncGenerator[ClientConnection]:
    async with dial(
        url + "/link", ssl=dial_context(), subprotocols=[SPOKEN], compression=None
    ) as connection:
        yield connection


@pytest.mark.parametrize(
    "message", ["text", ["frag", "mented"], [b"frag", b"mented"], b""], ids=repr
)
async def test_only_whole_binary_messages_are_spoken(message: str | bytes | list[str]) -> None:
    async with listening() as there, stranger(there.url) as peer:
        driver = await there.driver()
        await peer.send(message)
        if message == b"":
            await driver.until(lambda: driver.messages == [b""])  # refused by the protocol
            return
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(PATIENCE_S):
                await peer.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == CloseCode.PROTOCOL_ERROR
        assert driver.messages == []


async def test_a_message_over_the_limit_ends_the_link() -> None:
    async with listening() as there, stranger(there.url) as peer:
        driver = await there.driver()
        await peer.send(bytes(MAX_MESSAGE_BYTES))
        await driver.until(lambda: len(driver.messages) == 1)
        await peer.send(bytes(MAX_MESSAGE_BYTES + 1))
        await driver.end()
        # The library passes it on when all of it is here already; then the protocol refuses it.
        for message in driver.messages[1:]:
            with pytest.raises(RemoteProtocolError, match="exceeds the limit"):
                list(decode(message))


@pytest.mark.parametrize("kind", ["ping", "pong"])
async def test_a_websocket_ping_or_pong_closes_the_link_and_is_not_answered(kind: str) -> None:
    async with listening() as there, stranger(there.url) as peer:
        driver = await there.driver()
        await getattr(peer, kind)(bytes(125))
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(PATIENCE_S):
                await peer.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == CloseCode.PROTOCOL_ERROR
        assert driver.messages == []


@pytest.mark.parametrize("offered", [None, [Subprotocol("byoai.link.v2")], [Subprotocol("x")]])
async def test_a_client_without_our_subprotocol_is_refused(
    offered: list[Subprotocol] | None,
) -> None:
    async with listening() as there:
        with pytest.raises(InvalidStatus) as caught:
            async with dial(there.url + "/link", ssl=dial_context(), subprotocols=offered):
                pass
        assert caught.value.response.status_code == 400
        assert b"byoai.link.v1" in caught.value.response.body


async def test_our_subprotocol_may_be_one_of_several() -> None:
    offered = [Subprotocol("chat"), SPOKEN]
    async with (
        listening() as there,
        dial(there.url + "/link", ssl=dial_context(), subprotocols=offered) as peer,
    ):
        assert peer.subprotocol == SPOKEN
        assert peer.protocol.extensions == []


async def test_another_path_is_not_found() -> None:
    async with listening() as there:
        with pytest.raises(InvalidStatus) as caught:
            async with dial(there.url + "/other", ssl=dial_context(), subprotocols=[SPOKEN]):
                pass
        assert caught.value.response.status_code == 404


# -- raw bytes


UPGRADE = (
    b"GET /link HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: byoai.link.v1\r\n"
    b"Sec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
)


def masked(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    head = bytes([(0x80 if fin else 0) | opcode, 0x80 | len(payload)])
    return head + bytes(4) + payload


@asynccontextmanager
async def raw(
    port: int, *, tls: bool = True
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    context = dial_context() if tls else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield reader, writer
    finally:
        writer.transport.abort()


async def test_bytes_that_come_one_by_one_are_understood() -> None:
    async with listening() as there, raw(there.port) as (reader, writer):
        for byte in UPGRADE + masked(2, encode(FrameType.PING, 0, b"8 bytes!")):
            writer.write(bytes([byte]))
            await writer.drain()
        assert b"101 Switching" in await reader.readuntil(b"\r\n\r\n")
        driver = await there.driver()
        await driver.until(lambda: driver.messages == [encode(FrameType.PING, 0, b"8 bytes!")])


async def test_many_websocket_pings_get_one_close_and_no_other_byte() -> None:
    async with listening() as there, raw(there.port) as (reader, writer):
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        driver = await there.driver()
        writer.write(masked(0x9, bytes(125)) * 500)
        answer = bytearray()
        with suppress(ConnectionError, ssl.SSLError):
            while piece := await reader.read(4096):
                answer += piece
        await driver.end()
        assert not answer or answer[0] == 0x88
        assert len(answer) <= 127


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff" * 64,
        b"\x82\x08" + bytes(8) * 8,
        masked(0x3, b"reserved opcode"),
        masked(0x2 | 0x40, b"reserved bit"),
        masked(0x0, b"a continuation of nothing"),
        masked(0x9, b"a ping in pieces", fin=False),
        b"\x82\xff" + b"\xff" * 8 + bytes(4),
        masked(0x8, b"\x03"),
    ],
    ids=["noise", "unmasked", "opcode", "bit", "continuation", "ping", "huge", "close"],
)
@pytest.mark.parametrize("piece", [1, 1000])
async def test_malformed_websocket_bytes_end_the_link(rubbish: bytes, piece: int) -> None:
    async with listening() as there, raw(there.port) as (reader, writer):
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        driver = await there.driver()
        for at in range(0, len(rubbish), piece):
            writer.write(rubbish[at : at + piece])
            await asyncio.sleep(0)
        writer.write_eof() if writer.can_write_eof() else None
        await reader.read()
        assert driver.messages == [] or driver.closed.done()


@pytest.mark.parametrize("code", [None, 1000, 4000, 4999])
async def test_a_close_is_answered_with_a_code_that_may_be_sent(code: int | None) -> None:
    async with listening() as there, raw(there.port) as (reader, writer):
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        driver = await there.driver()
        writer.write(masked(8, pack(">H", code) if code else b""))
        opcode, size = await reader.readexactly(2)
        answer = await reader.readexactly(size)
        assert opcode == 0x88
        assert answer == (pack(">H", code) if code else b"") or answer[:2] == pack(">H", 1000)
        await driver.end()


# -- peers that keep us waiting


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "HANDSHAKE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(websocket, "CONNECT_TIMEOUT_S", 0.3)


def test_nobody_may_keep_us_waiting_for_more_than_5_s() -> None:
    assert websocket.HANDSHAKE_TIMEOUT_S == 5.0


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("tls", [False, True])
async def test_a_silent_client_is_cut_off(tls: bool) -> None:
    async with listening() as there, raw(there.port, tls=tls) as (reader, _):
        assert await reader.read() == b""
        assert there.drivers == []


@pytest.mark.usefixtures("short")
async def test_a_client_that_drips_its_handshake_is_cut_off() -> None:
    async with listening() as there, raw(there.port) as (reader, writer):
        gone = asyncio.ensure_future(reader.read())
        for byte in UPGRADE[:-1]:
            writer.write(bytes([byte]))
            done, _ = await asyncio.wait({gone}, timeout=0.01)
            if done:
                break
        await asyncio.wait({gone})
        assert there.drivers == []


@pytest.mark.usefixtures("short")
async def test_endless_headers_are_cut_off() -> None:
    async with listening() as there, raw(there.port) as (reader, writer):
        writer.write(UPGRADE[:-2])
        with suppress(ConnectionError, ssl.SSLError):
            while not reader.at_eof():
                writer.write(b"x-header: " + b"y" * 10_000 + b"\r\n")
                await writer.drain()
        assert there.drivers == []


@pytest.mark.usefixtures("short")
async def test_a_silent_server_is_given_up() -> None:
    async def silence(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    done = asyncio.Event()
    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        error = await refused(f"wss://127.0.0.1:{port}")
        done.set()
    assert error.code is None


async def test_a_peer_that_does_not_answer_a_close_is_cut_off() -> None:
    async with listening() as there, raw(there.port) as (reader, writer):
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        driver = await there.driver()
        driver.link.close(CloseCode.GOING_AWAY, "bye")
        await while_time_passes(driver.end(), websocket.HANDSHAKE_TIMEOUT_S)
        assert b"bye" in await reader.read()


# -- refusals, each in plain words


async def test_nobody_there() -> None:
    with pytest.raises(LinkRefused, match="refused"):
        await websocket.connect("wss://127.0.0.1:1", Driver, ssl_context=dial_context())


async def test_a_relay_of_another_authority() -> None:
    context = client_context(
        server_ca_pem=Authority("elsewhere").pem, credentials=certificates().of(AGENT)
    )
    async with listening() as there:
        assert "its certificate does not verify" in str(await refused(there.url, context))


async def test_a_relay_under_another_name() -> None:
    async with listening() as there:
        error = await refused(there.url.replace("127.0.0.1", "127.0.0.2"))
    assert "its certificate does not verify" in str(error) or "refused" in str(error)


@pytest.mark.parametrize("which", ["none", "wrong authority"])
async def test_a_certificate_that_is_rejected_late_is_a_refused_link(which: str) -> None:
    credentials = certificates().of(GATEWAY) if which == "wrong authority" else None
    context = client_context(server_ca_pem=certificates().services.pem, credentials=credentials)
    async with listening() as there:
        error = await refused(there.url, context)
        assert there.drivers == []
    assert error.is_over_certificate


async def test_a_web_server_is_no_relay() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 302 Found\r\nLocation: wss://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
        )
        await writer.drain()
        writer.close()

    context = server_context(certificates().relay, client_ca_pem=None)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        error = await refused(f"wss://127.0.0.1:{port}")
    assert "not a relay (HTTP status 302)" in str(error)


@pytest.mark.parametrize(
    ("field", "expected"),
    [(b"Retry-After: 17\r\n", 17.0), (b"", None), (b"Retry-After: x\r\n", None)],
)
async def test_a_relay_that_sheds_load_says_for_how_long(
    field: bytes, expected: float | None
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 503 Service Unavailable\r\n" + field
        writer.write(head + b"Content-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    context = server_context(certificates().relay, client_ca_pem=None)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        error = await refused(f"wss://127.0.0.1:{port}")
    assert "overloaded" in str(error)
    assert error.retry_after_s == expected


async def test_a_websocket_server_that_speaks_something_else_is_no_relay() -> None:
    async def chat(connection: ServerConnection) -> None:
        await connection.wait_closed()

    context = server_context(certificates().relay, client_ca_pem=None)
    async with serve_websocket(chat, "127.0.0.1", 0, ssl=context, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        error = await refused(f"wss://127.0.0.1:{port}")
    assert "speaks None, not 'byoai.link.v1'" in str(error)


async def test_other_refusals_are_not_blamed_on_our_certificate() -> None:
    assert not (await refused("wss://127.0.0.1:1")).is_over_certificate
