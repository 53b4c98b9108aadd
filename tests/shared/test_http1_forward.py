"""A whole chain: client, server, forward, client, server; in memory and over loopback TCP."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest
import trustme

from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.errors import (
    ConnectionClosed,
    HttpError,
    LocalProtocolError,
    TruncatedMessage,
)
from byoai_shared.http1.forward import forward
from byoai_shared.http1.framing import end_to_end
from byoai_shared.http1.head import HttpLimits, RequestHead, ResponseHead
from byoai_shared.http1.incoming import IncomingBody
from byoai_shared.http1.outgoing import OutgoingBody
from byoai_shared.http1.pool import Pool
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.tls_transport import TlsTransport
from support.inner import start_tls
from support.pools import idle, lease
from support.wires import RecordingTransport, pipe, turns

HOST = (b"host", b"a")
POST = RequestHead("POST", "/", (HOST,))
HIGH = 16 * 1024


class Chain:
    """client =pipe= server, forwarding to upstream =pipe= model, whose handler is the test's."""

    def __init__(
        self, model: Callable[[ServerRequest], Any], limits: HttpLimits | None = None
    ) -> None:
        limits = limits or HttpLimits(buffer_bytes=HIGH, linger_s=0.05)
        self.client = ClientConnection(limits)
        self.upstream = ClientConnection(limits)
        self.server = ServerConnection(self._forward, limits)
        self.model = ServerConnection(model, limits)
        self.front = pipe(high=HIGH)
        self.back = pipe(high=HIGH)
        self.errors: list[HttpError] = []
        for ends, left, right in (
            (self.front, self.client, self.server),
            (self.back, self.upstream, self.model),
        ):
            ends[0].start(left)
            ends[1].start(right)

    async def _forward(self, request: ServerRequest) -> None:
        head = RequestHead(
            request.head.method, request.head.target, end_to_end(request.head.headers)
        )
        try:
            await forward(request, head, self.upstream)
        except HttpError as error:
            self.errors.append(error)
            raise

    def peak(self) -> int:
        return max(end.peak for end in (*self.front, *self.back))


async def echo(request: ServerRequest) -> None:
    body = request.start_response(ResponseHead(200))
    await request.body.pipe(body)


async def repeat(request: ServerRequest) -> None:
    request.respond(200, (), await request.read(10_000_000))


async def test_a_small_exchange_is_one_write_at_each_of_four_hops() -> None:
    async def model(request: ServerRequest) -> None:
        request.respond(200, ((b"content-type", b"text/plain"),), await request.read(100))

    chain = Chain(model)
    async with asyncio.timeout(50):
        response = await chain.client.request(POST, b"hello")
        assert await response.read(10) == b"hello"
    assert response.head.header(b"content-type") == b"text/plain"
    assert response.head.header(b"content-length") == b"5"
    assert [len(end.sent) for end in (*chain.front, *chain.back)] == [1, 1, 1, 1]
    assert chain.client.is_reusable
    assert chain.upstream.is_reusable


async def test_each_chunk_of_a_stream_is_one_write_at_each_hop_and_waits_for_nothing() -> None:
    steps: list[asyncio.Event] = [asyncio.Event() for _ in range(5)]

    async def model(request: ServerRequest) -> None:
        body = request.start_response(ResponseHead(200))
        for i, step in enumerate(steps):
            await step.wait()
            body.write(b"data: %d\n\n" % i)
        body.finish()

    chain = Chain(model)
    async with asyncio.timeout(50):
        response = await chain.client.request(POST)
        for i, step in enumerate(steps):
            before = [len(end.sent) for end in (chain.back[1], chain.front[1])]
            step.set()
            await turns(20)
            assert response.body.take() == b"data: %d\n\n" % i
            after = [len(end.sent) for end in (chain.back[1], chain.front[1])]
            assert [b - a for a, b in zip(before, after, strict=True)] in ([1, 1], [2, 2])
        assert response.body.complete


@pytest.mark.parametrize("piece", [1, 1000, 1 << 30])
async def test_bodies_stream_both_ways_at_once(piece: int) -> None:
    chain = Chain(echo)
    for end in (*chain.front, *chain.back):
        end.piece = piece
    payload = bytes(range(256)) * (4 if piece == 1 else 2000)
    async with asyncio.timeout(50):
        response = await chain.client.request(POST, payload)
        assert await response.read(len(payload)) == payload


async def test_a_reader_that_stalls_bounds_what_is_kept_everywhere() -> None:
    sent = 0

    async def model(request: ServerRequest) -> None:
        nonlocal sent
        body = request.start_response(ResponseHead(200))
        while sent < 10_000_000:
            body.write(b"x" * 4096)
            sent += 4096
            await body.drain()
        body.finish()

    chain = Chain(model)
    async with asyncio.timeout(50):
        response = await chain.client.request(POST)
        await turns(2000)
        stalled = sent
        await turns(500)
        assert sent == stalled, "the writer must be held back"
        # Two pipes of `HIGH`, the client's buffer, and a piece in each.
        assert sent < 3 * HIGH + 6 * 4096
        assert chain.peak() < 2 * HIGH
        total = len(await response.read(20_000_000))
    assert total == sent >= 10_000_000


class Fountain:
    """A source that gives as much as it is let."""

    def __init__(self) -> None:
        self.given = 0
        self.is_paused = False
        self.sink: Any = None

    def attach(self, sink: Any) -> None:
        self.sink = sink
        sink.attached(self)
        self.flow()

    def flow(self) -> None:
        while not self.is_paused and self.given < 10_000_000:
            self.given += 10_000
            self.sink.write(b"x" * 10_000)
        if self.given == 10_000_000:
            self.given += 1
            self.sink.finish()

    def detach(self) -> None:
        self.sink = None

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            self.flow()


async def test_an_upload_nobody_reads_is_bounded_everywhere() -> None:
    release = asyncio.Event()

    async def model(request: ServerRequest) -> None:
        await release.wait()
        request.respond(200, (), b"%d" % len(await request.read(20_000_000)))

    chain = Chain(model)
    fountain = Fountain()
    async with asyncio.timeout(50):
        task = asyncio.ensure_future(chain.client.request(POST, fountain))
        await turns(2000)
        assert fountain.given < 3 * HIGH + 60_000
        assert chain.peak() < 3 * HIGH
        release.set()
        assert await (await task).read(100) == b"10000000"


async def test_a_client_that_leaves_in_silent_prefill_cuts_the_upstream_at_once() -> None:
    cancelled = asyncio.Event()

    async def model(request: ServerRequest) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    chain = Chain(model)
    task = asyncio.ensure_future(chain.client.request(POST, b"prompt"))
    await turns(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns(10)
    assert cancelled.is_set()


async def test_a_client_that_leaves_in_mid_stream_cuts_the_upstream_at_once() -> None:
    cancelled = asyncio.Event()

    async def model(request: ServerRequest) -> None:
        body = request.start_response(ResponseHead(200))
        body.write(b"first")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    chain = Chain(model)
    response = await chain.client.request(POST)
    await turns(5)
    response.abort()
    await turns(10)
    assert cancelled.is_set()


async def test_an_upstream_that_dies_in_mid_answer_is_seen_as_a_truncation() -> None:
    async def model(request: ServerRequest) -> None:
        request.start_response(ResponseHead(200)).write(b"data: half")
        await turns(20)
        request.disconnect()

    chain = Chain(model)
    async with asyncio.timeout(50):
        response = await chain.client.request(POST)
        with pytest.raises(TruncatedMessage):
            await response.read(1000)
    assert isinstance(chain.errors[0], TruncatedMessage)


async def test_an_upstream_that_dies_before_its_answer_is_a_bad_gateway() -> None:
    async def model(request: ServerRequest) -> None:
        request.disconnect()

    chain = Chain(model)
    async with asyncio.timeout(50):
        response = await chain.client.request(POST)
        assert response.head.status == 502
        assert b"upstream_error" in await response.read(1000)
    assert isinstance(chain.errors[0], ConnectionClosed)


async def test_an_upstream_that_dies_with_its_head_is_a_bad_gateway_too() -> None:
    async def model(_: ServerRequest) -> None:
        chain.upstream.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        chain.upstream.connection_lost(None)
        await asyncio.Event().wait()

    chain = Chain(model)
    async with asyncio.timeout(50):
        response = await chain.client.request(POST)
        assert response.head.status == 502
    assert isinstance(chain.errors[0], TruncatedMessage)


async def test_an_early_answer_to_an_upload_reaches_the_client() -> None:
    async def model(request: ServerRequest) -> None:
        request.respond(413, (), b"too much")

    chain = Chain(model)
    source = IncomingBody(
        RecordingTransport(asyncio.Protocol()), 1000, buffer_bytes=100, max_overhead_bytes=100
    )
    async with asyncio.timeout(50):
        task = asyncio.ensure_future(chain.client.request(POST, source))
        source.feed(b"only a part")
        response = await task
        assert response.head.status == 413
        assert await response.read(100) == b"too much"
    assert not chain.upstream.is_reusable


async def test_hop_by_hop_headers_stay_on_their_hop() -> None:
    seen: list[RequestHead] = []

    async def model(request: ServerRequest) -> None:
        seen.append(request.head)
        request.respond(200, ((b"keep-alive", b"timeout=5"), (b"x-kept", b"1")))

    chain = Chain(model)
    headers = (HOST, (b"connection", b"x-mine"), (b"x-mine", b"1"), (b"te", b"trailers"))
    async with asyncio.timeout(50):
        response = await chain.client.request(RequestHead("GET", "/", headers))
    assert seen[0].headers == (HOST,)
    kept = tuple(pair for pair in response.head.headers if pair[0] != b"date")
    assert kept == ((b"x-kept", b"1"), (b"content-length", b"0"))


async def test_a_transport_full_from_the_start_pauses_the_source() -> None:
    transport = RecordingTransport(asyncio.Protocol())
    flow = RecordingTransport(asyncio.Protocol())
    source = IncomingBody(flow, 10, buffer_bytes=100, max_overhead_bytes=100)
    ends: list[str] = []
    body = OutgoingBody(
        transport,
        10,
        b"HEAD",
        on_end=lambda: ends.append("end"),
        on_abort=lambda: ends.append("abort"),
        paused=True,
    )
    source.attach(body)
    assert flow.is_paused()
    assert transport.take() == b"HEAD"
    body.resume()
    assert not flow.is_paused()
    source.feed(b"x" * 10)
    assert transport.take() == b"x" * 10
    assert ends == ["end"]
    body.abort()
    body.finish()
    assert ends == ["end"]


async def test_a_source_of_the_wrong_length_cuts_the_connection() -> None:
    transport = RecordingTransport(asyncio.Protocol())
    ends: list[str] = []

    def body() -> OutgoingBody:
        return OutgoingBody(
            transport,
            10,
            b"",
            on_end=lambda: ends.append("end"),
            on_abort=lambda: ends.append("abort"),
        )

    with pytest.raises(LocalProtocolError):
        body().write(b"x" * 11)
    with pytest.raises(LocalProtocolError):
        body().finish(b"x" * 9)
    assert ends == ["abort", "abort"]


async def test_a_writer_that_drains_is_told_when_the_connection_is_lost() -> None:
    transport = RecordingTransport(asyncio.Protocol())
    body = OutgoingBody(transport, 10, b"", on_end=lambda: None, on_abort=lambda: None, paused=True)
    task = asyncio.ensure_future(body.drain())
    await turns()
    body.lost()
    with pytest.raises(ConnectionClosed):
        await task


# ---- over loopback TCP and TLS, on both event loops


def _uvloop() -> asyncio.AbstractEventLoop:
    return cast("asyncio.AbstractEventLoop", pytest.importorskip("uvloop").new_event_loop())


@pytest.fixture(params=[asyncio.SelectorEventLoop, _uvloop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Awaitable[None]], None]]:
    with asyncio.Runner(loop_factory=request.param) as runner:

        def run_one(main: Any) -> None:
            runner.run(main)

        yield run_one


def test_the_chain_over_tls_and_tcp(run: Callable[[Awaitable[None]], None]) -> None:
    ca = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("t.tunnel.internal").configure_cert(server_context)  # pyright: ignore[reportUnknownMemberType]
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(client_context)  # pyright: ignore[reportUnknownMemberType]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        model = await loop.create_server(lambda: ServerConnection(repeat), "127.0.0.1", 0)

        async def connect(port: int) -> ClientConnection:
            _, connection = await loop.create_connection(ClientConnection, "127.0.0.1", port)
            return connection

        pool = Pool(connect)
        model_port = model.sockets[0].getsockname()[1]

        async def handle(request: ServerRequest) -> None:
            async with lease(pool, model_port) as upstream:
                await forward(request, POST, upstream)

        edge = await loop.create_server(
            lambda: TlsTransport(ServerConnection(handle), server_context, server_side=True),
            "127.0.0.1",
            0,
        )
        edge_port = edge.sockets[0].getsockname()[1]

        async def one_client(number: int) -> None:
            below, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", edge_port)
            client = ClientConnection()
            await start_tls(below, client, client_context, server_hostname="t.tunnel.internal")
            for size in (10, 0, 300_000 + number, 5_000_000 if number == 0 else 7):
                response = await client.request(POST, b"%d" % (number % 10) * size)
                assert await response.read(size) == b"%d" % (number % 10) * size
            client.close()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(one_client(number))
        assert idle(pool)
        pool.close()
        edge.close()
        model.close()
        await edge.wait_closed()
        await model.wait_closed()
        await turns(20)

    run(main())
