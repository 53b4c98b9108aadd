import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.errors import (
    BodyTooLarge,
    ConnectionClosed,
    HeadTimeout,
    HeadTooLarge,
    HttpError,
    LocalProtocolError,
    RemoteProtocolError,
    TruncatedMessage,
)
from byoai_shared.http1.head import Headers, HttpLimits, RequestHead
from byoai_shared.http1.incoming import BodySink, BodySource, IncomingBody
from support.authority import tls_contexts
from support.loop_clock import NEVER_S, pass_time
from support.wires import RecordingTransport, turns

HOST: Headers = ((b"host", b"a"),)
GET = RequestHead("GET", "/", HOST)
POST = RequestHead("POST", "/", HOST)


class Client:
    """A connection with the test as its server."""

    def __init__(
        self, limits: HttpLimits | None = None, *, allow_close_delimited: bool = False
    ) -> None:
        self.connection = ClientConnection(
            limits or HttpLimits(), allow_close_delimited=allow_close_delimited
        )
        self.transport = RecordingTransport(self.connection)

    async def ask(
        self,
        head: RequestHead = GET,
        body: bytes | BodySource = b"",
        *,
        head_timeout_s: float | None = None,
    ) -> "asyncio.Task[Response]":
        task = asyncio.ensure_future(
            self.connection.request(head, body, head_timeout_s=head_timeout_s)
        )
        await turns()
        return task

    def answer(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)

    async def exchange(self, raw: bytes, head: RequestHead = GET) -> bytes:
        task = await self.ask(head)
        self.answer(raw)
        async with asyncio.timeout(50):
            return await (await task).read(1 << 20)


class Collector:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.source: BodySource | None = None
        self.is_finished = False
        self.error: HttpError | None = None

    def attached(self, source: BodySource) -> None:
        self.source = source

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def flush(self) -> None:
        pass

    def finish(self, data: bytes = b"") -> None:
        if data:
            self.pieces.append(data)
        self.is_finished = True

    def fail(self, error: HttpError) -> None:
        self.error = error


class Unused:
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def body_source(framing: int) -> IncomingBody:
    return IncomingBody(Unused(), framing, buffer_bytes=1000, max_overhead_bytes=100)


async def test_a_request_is_one_write() -> None:
    client = Client()
    await client.ask(RequestHead("POST", "/v1/x", HOST), b"hello")
    assert client.transport.writes == [
        b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
    ]
    client.connection.abort()


RESPONSES: dict[str, tuple[bytes, bytes]] = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"hello",
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
    "after informational": (
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        ),
        b"hi",
    ),
}


@pytest.mark.parametrize(("raw", "payload"), RESPONSES.values(), ids=RESPONSES)
async def test_a_response_is_read_however_it_arrives(raw: bytes, payload: bytes) -> None:
    ways = [[raw], [raw[i : i + 1] for i in range(len(raw))]]
    ways += [[raw[:i], raw[i:]] for i in range(1, len(raw))]
    client = Client()
    for pieces in ways:
        task = await client.ask()
        client.answer(*pieces)
        response = await task
        assert await response.read(100) == payload
        assert client.connection.is_reusable
    assert client.connection.exchanges == len(ways)


@pytest.mark.parametrize(("raw", "payload"), RESPONSES.values(), ids=RESPONSES)
async def test_bytes_after_a_response_do_not_spoil_it_but_end_the_connection(
    raw: bytes, payload: bytes
) -> None:
    client = Client()
    assert await client.exchange(raw + b"HTTP/1.1 200 OK\r\n") == payload
    assert not client.connection.is_reusable
    assert client.transport.is_closing()


async def test_a_view_is_copied_before_it_dies() -> None:
    client = Client()
    task = await client.ask()
    for piece in (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"hello", b"world"):
        with memoryview(bytearray(piece)) as view:
            client.connection.data_received(view)
    assert await (await task).read(100) == b"helloworld"


async def test_a_response_to_head_has_no_body() -> None:
    client = Client()
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    assert await client.exchange(raw, RequestHead("HEAD", "/", HOST)) == b""
    assert client.connection.is_reusable


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_connection_the_server_gives_up_is_not_reused(raw: bytes) -> None:
    client = Client()
    assert await client.exchange(raw) == b""
    assert not client.connection.is_reusable
    assert client.transport.is_closing()


MALFORMED: dict[str, bytes] = {
    "switching protocols": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "length and coding": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "no framing": b"HTTP/1.1 200 OK\r\n\r\n",
    "no framing, closing": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    "not http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "endless informational": b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
    "folded": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("step", [1, 1 << 20])
async def test_a_malformed_response_is_refused_and_the_connection_cut(
    raw: bytes, step: int
) -> None:
    client = Client()
    task = await client.ask()
    client.answer(*(raw[i : i + step] for i in range(0, len(raw), step)))
    with pytest.raises(RemoteProtocolError):
        await task
    assert client.transport.is_aborted


async def test_endless_headers_are_refused() -> None:
    client = Client(HttpLimits(max_head_bytes=4096))
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\n", *([b"A: " + b"b" * 100 + b"\r\n"] * 100))
    with pytest.raises(HeadTooLarge):
        await task
    assert client.transport.is_aborted


async def test_a_malformed_body_fails_the_reader() -> None:
    client = Client()
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    sink = Collector()
    piping = asyncio.ensure_future((await task).pipe(sink))
    await turns()
    client.answer(b"3\r\nabc\r\n", b"zz\r\n")
    with pytest.raises(RemoteProtocolError):
        await piping
    assert sink.pieces == [b"abc"]
    assert isinstance(sink.error, RemoteProtocolError)
    assert not sink.is_finished
    assert client.transport.is_aborted


async def lose(client: Client, *, orderly: bool) -> None:
    if orderly:
        client.connection.eof_received()
    client.transport.close()
    await turns()


@given(data=st.data())
@pytest.mark.parametrize("name", ["length", "chunked", "after informational"])
def test_a_response_cut_short_anywhere_is_an_error(name: str, data: st.DataObject) -> None:
    raw, _ = RESPONSES[name]
    cut = data.draw(st.integers(0, len(raw) - 1))
    step = data.draw(st.integers(1, len(raw)))
    orderly = data.draw(st.booleans())

    async def run() -> None:
        client = Client()
        task = await client.ask()
        client.answer(*(raw[i : min(i + step, cut)] for i in range(0, cut, step)))
        reading: Awaitable[bytes] = whole(task)
        reader = asyncio.ensure_future(reading)
        await turns()
        await lose(client, orderly=orderly)
        expected = ConnectionClosed if cut == 0 else (TruncatedMessage, ConnectionClosed)
        with pytest.raises(expected):
            await reader

    asyncio.run(run())


async def whole(task: "asyncio.Task[Response]") -> bytes:
    return await (await task).read(1000)


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize("announced", [b"Connection: close\r\n", b""])
async def test_a_response_until_close_is_complete_only_when_allowed_and_orderly(
    announced: bytes, *, orderly: bool
) -> None:
    client = Client(allow_close_delimited=True)
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\n" + announced + b"\r\nhel", b"lo")
    reader = asyncio.ensure_future(whole(task))
    await turns()
    await lose(client, orderly=orderly)
    if orderly:
        assert await reader == b"hello"
    else:
        with pytest.raises(TruncatedMessage):
            await reader


async def test_a_connection_whose_end_is_the_end_of_a_response_is_not_reused() -> None:
    client = Client(allow_close_delimited=True)
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\n\r\nhello")
    await task
    client.connection.eof_received()
    assert not client.connection.is_reusable


@pytest.mark.parametrize("is_notified", [True, False])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_tls_that_ends_without_a_word_is_no_orderly_end(
    new_loop: Callable[[], asyncio.AbstractEventLoop], *, is_notified: bool
) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        if is_notified:
            assert runner.run(read_over_tls(is_notified=True)) == b"hello"
        else:
            with pytest.raises(TruncatedMessage):
                runner.run(read_over_tls(is_notified=False))


async def read_over_tls(*, is_notified: bool) -> bytes:
    """Read a response until close whose server sends `close_notify` first, or only a FIN."""
    server, trusting = tls_contexts()
    trusting.check_hostname = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        below = TlsBelow(reader, writer, server)
        await below.read()
        await below.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        if is_notified:
            await below.notify()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener, asyncio.timeout(5):
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: ClientConnection(allow_close_delimited=True),
            *listener.sockets[0].getsockname()[:2],
            ssl=trusting,
            server_hostname="localhost",
        )
        return await (await client.request(GET)).read(100)


class TlsBelow:
    """A server's TLS over streams of plain TCP: it can end either with and without the other."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
    ) -> None:
        self._reader, self._writer = reader, writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def read(self) -> bytes:
        """The first bytes of a request, behind the handshake."""
        while True:
            try:
                return self._tls.read(1000)
            except ssl.SSLWantReadError:
                await self._flush()
                self._incoming.write(await self._reader.read(65536))

    async def write(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    async def notify(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await self._flush()

    async def _flush(self) -> None:
        self._writer.write(self._outgoing.read())
        await self._writer.drain()


# -- looking at what has come


async def test_what_is_looked_at_stays_for_who_reads_it() -> None:
    client = Client()
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    response = await task
    peeking = asyncio.ensure_future(response.body.peek(lambda data: len(data) >= 3))
    await turns()
    client.answer(b"h")
    await turns()
    assert not peeking.done()
    client.answer(b"e", b"l")
    assert await peeking == b"hel"
    client.answer(b"lo")
    assert await response.read(100) == b"hello"


async def test_a_look_ends_with_the_body_whether_it_is_whole_or_not() -> None:
    for is_whole in (True, False):
        client = Client()
        task = await client.ask()
        client.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        response = await task
        peeking = asyncio.ensure_future(response.body.peek(lambda _: False))
        await turns()
        client.answer(b"ab" if is_whole else b"a")
        if not is_whole:
            await lose(client, orderly=True)
        assert await peeking == (b"ab" if is_whole else b"a")
        assert (response.body.error is None) is is_whole


async def test_a_connection_lost_before_the_answer_keeps_the_transports_reason() -> None:
    client = Client()
    task = await client.ask()
    reason = ConnectionResetError("reset by the test")
    client.connection.connection_lost(reason)
    with pytest.raises(ConnectionClosed) as caught:
        await task
    assert caught.value.request_sent
    assert caught.value.__cause__ is reason


async def test_a_request_on_a_lost_connection_was_not_sent() -> None:
    client = Client()
    reason = ConnectionResetError()
    client.connection.connection_lost(reason)
    with pytest.raises(ConnectionClosed) as caught:
        await client.connection.request(GET)
    assert not caught.value.request_sent
    assert caught.value.__cause__ is reason
    assert client.transport.writes == []


async def test_bytes_on_an_idle_connection_cut_it() -> None:
    client = Client()
    client.answer(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert client.transport.is_aborted
    assert not client.connection.is_reusable


async def test_the_end_of_an_idle_connection_makes_it_unusable() -> None:
    client = Client()
    client.connection.eof_received()
    assert not client.connection.is_reusable


async def test_no_second_request_while_one_is_under_way() -> None:
    client = Client()
    task = await client.ask()
    with pytest.raises(LocalProtocolError):
        await client.connection.request(GET)
    client.answer(RESPONSES["length"][0])
    assert await whole(task) == b"hello"


async def test_a_cancelled_request_cuts_the_connection_at_once() -> None:
    client = Client()
    task = await client.ask(POST, b"prompt")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.transport.is_aborted


@pytest.mark.parametrize("how", ["pipe", "read"])
async def test_a_cancelled_reader_cuts_the_connection_at_once(how: str) -> None:
    client = Client()
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    response = await task
    taking = response.pipe(Collector()) if how == "pipe" else response.read(100)
    reader = asyncio.ensure_future(taking)
    await turns()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert client.transport.is_aborted


async def test_a_silent_server_is_given_up_at_the_limit() -> None:
    client = Client()
    task = await client.ask(head_timeout_s=0.01)
    with pytest.raises(HeadTimeout):
        await task
    assert client.transport.is_aborted


async def test_the_limit_on_the_head_does_not_limit_the_body() -> None:
    client = Client()
    task = await client.ask(head_timeout_s=NEVER_S)
    client.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    response = await task
    await pass_time(1.2 * NEVER_S)
    client.answer(b"hello")
    assert await response.read(5) == b"hello"


async def test_a_body_over_the_readers_limit_is_refused_at_once_if_declared() -> None:
    client = Client()
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    with pytest.raises(BodyTooLarge):
        await (await task).read(499)
    assert client.transport.is_aborted


async def test_a_chunked_body_over_the_readers_limit_is_refused_when_it_is_reached() -> None:
    client = Client()
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    reader = asyncio.ensure_future((await task).read(9))
    await turns()
    client.answer(b"5\r\nhello\r\n")
    await turns()
    assert not reader.done()
    client.answer(b"5\r\nworld\r\n")
    with pytest.raises(BodyTooLarge):
        await reader


async def test_a_body_nobody_takes_is_bounded_by_pausing() -> None:
    client = Client(HttpLimits(buffer_bytes=1000))
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    response = await task
    client.answer(b"x" * 1000)
    assert not client.transport.is_paused()
    client.answer(b"x")
    assert client.transport.is_paused()
    sink = Collector()
    piping = asyncio.ensure_future(response.pipe(sink))
    await turns()
    assert not client.transport.is_paused()
    assert sink.pieces == [b"x" * 1001]
    client.answer(b"x" * 98999)
    await piping
    assert sink.is_finished


async def test_a_sink_pauses_and_resumes_the_connection() -> None:
    client = Client()
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    sink = Collector()
    piping = asyncio.ensure_future((await task).pipe(sink))
    await turns()
    assert sink.source is not None
    sink.source.pause()
    assert client.transport.is_paused()
    sink.source.resume()
    assert not client.transport.is_paused()
    sink.source.pause()
    client.answer(b"helloworld")  # was under way already
    await piping
    assert not client.transport.is_paused(), "an idle connection must see its end"


async def test_each_read_is_one_piece_for_the_sink() -> None:
    client = Client()
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n")
    sink: BodySink = Collector()
    piping = asyncio.ensure_future((await task).pipe(sink))
    await turns()
    client.answer(b"1\r\nc\r\n1\r\nd\r\n", b"1\r\ne\r\n0\r\n\r\n")
    await piping
    assert isinstance(sink, Collector)
    assert sink.pieces == [b"ab", b"cd", b"e"]


async def test_a_streamed_request_body_goes_out_as_it_comes() -> None:
    client = Client()
    source = body_source(6)
    task = await client.ask(RequestHead("POST", "/", (*HOST, (b"content-length", b"6"))), source)
    assert client.transport.take().endswith(b"content-length: 6\r\n\r\n")
    source.feed(b"abc")
    source.feed(b"def")
    assert client.transport.writes == [b"abc", b"def"]
    assert not client.connection.is_reusable
    client.answer(RESPONSES["length"][0])
    assert await whole(task) == b"hello"
    assert client.connection.is_reusable


async def test_a_streamed_body_of_unknown_length_is_chunked() -> None:
    client = Client()
    source = body_source(3)
    task = await client.ask(POST, source)
    source.feed(b"abc")
    assert client.transport.written.endswith(
        b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    client.answer(RESPONSES["length"][0])
    assert await whole(task) == b"hello"


async def test_a_request_body_that_breaks_cuts_the_connection() -> None:
    client = Client()
    source = body_source(10)
    task = await client.ask(POST, source)
    source.feed(b"abc")
    source.fail(TruncatedMessage("test"))
    with pytest.raises(ConnectionClosed):
        await task
    assert client.transport.is_aborted
    assert b"0\r\n\r\n" not in client.transport.written


async def test_an_early_answer_is_delivered_while_the_upload_goes_on() -> None:
    client = Client()
    source = body_source(10)
    task = await client.ask(POST, source)
    client.answer(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
    response = await task
    assert response.head.status == 413
    assert await response.read(10) == b"no"
    assert not client.connection.is_reusable, "its request is not over"
    source.feed(b"0123456789")
    assert client.connection.is_reusable


async def test_the_transports_back_pressure_reaches_the_source_of_the_upload() -> None:
    client = Client()
    flow = RecordingTransport(asyncio.Protocol())
    source = IncomingBody(flow, 100, buffer_bytes=1000, max_overhead_bytes=100)
    task = await client.ask(POST, source)
    client.connection.pause_writing()
    assert flow.is_paused()
    client.connection.resume_writing()
    assert not flow.is_paused()
    client.connection.pause_writing()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_source_that_meets_a_full_transport_is_paused_from_the_start() -> None:
    client = Client()
    client.connection.pause_writing()
    flow = RecordingTransport(asyncio.Protocol())
    source = IncomingBody(flow, 100, buffer_bytes=1000, max_overhead_bytes=100)
    task = await client.ask(POST, source)
    assert flow.is_paused()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (((b"content-length", b"4"),), b"hello"),
        (((b"transfer-encoding", b"chunked"),), b"hello"),
        (((b"content-length", b"5"), (b"content-length", b"5")), b"hello"),
    ],
)
async def test_a_request_that_contradicts_itself_is_not_sent(headers: Headers, body: bytes) -> None:
    client = Client()
    with pytest.raises(LocalProtocolError):
        await client.connection.request(RequestHead("POST", "/", HOST + headers), body)
    assert client.transport.writes == []


async def test_abandoning_a_response_cuts_the_connection_unless_it_is_complete() -> None:
    client = Client()
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    (await task).abort()
    assert client.transport.is_aborted
    client = Client()
    task = await client.ask()
    client.answer(RESPONSES["length"][0])
    (await task).abort()
    assert not client.transport.is_aborted
    assert client.connection.is_reusable


async def test_no_payload_and_no_header_is_in_an_errors_sentence() -> None:
    client = Client()
    task = await client.ask()
    client.answer(b"HTTP/1.1 200 OK\r\nsecret-canary: \x01secret-canary\r\n\r\n")
    with pytest.raises(RemoteProtocolError) as caught:
        await task
    assert "secret" not in str(caught.value)
