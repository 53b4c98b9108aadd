import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.errors import (
    BodyTooLarge,
    ConnectionClosed,
    HeadTimeout,
    HttpError,
    LocalProtocolError,
    RemoteProtocolError,
    TruncatedMessage,
)
from byoai_shared.http1.head import HttpLimits, RequestHead, ResponseHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import Divert, ServerConnection
from support.loop_clock import NEVER_S, pass_time
from support.wires import RecordingTransport, turns

NOW = 1_700_000_000.75
DATE = b"date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
)


class Server:
    """A connection with the test as its client. The handler echoes, unless told otherwise."""

    def __init__(
        self,
        handler: Callable[[ServerRequest], Any] | None = None,
        limits: HttpLimits | None = None,
        *,
        divert: Divert | None = None,
        busy_of: Callable[[asyncio.BaseTransport], Callable[[bool], None]] | None = None,
    ) -> None:
        self.now = NOW
        self.heads: list[RequestHead] = []
        self.bodies: list[bytes] = []
        self.cancelled = 0
        self.ended: list[ServerConnection] = []
        self._handler = handler
        self.connection = ServerConnection(
            self._handle,
            limits or HttpLimits(),
            divert=divert,
            on_lost=self.ended.append,
            busy_of=busy_of,
            clock=lambda: self.now,
        )
        self.transport = RecordingTransport(self.connection)

    async def _handle(self, request: ServerRequest) -> None:
        self.heads.append(request.head)
        try:
            if self._handler is not None:
                await self._handler(request)
                return
            self.bodies.append(await request.read(1 << 20))
            request.respond(200, (), self.bodies[-1])
        except (asyncio.CancelledError, TruncatedMessage):
            self.cancelled += 1
            raise

    async def send(self, *pieces: bytes) -> bytes:
        """Let the server read `pieces`; return all it wrote meanwhile."""
        for piece in pieces:
            self.connection.data_received(piece)
        await turns()
        return self.transport.take()

    def refusal(self, raw: bytes) -> tuple[int, dict[str, Any]]:
        head, _, body = raw.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert b"content-length: %d" % len(body) in head
        error: dict[str, Any] = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return int(head[9:12]), error


@pytest.fixture
async def failures() -> list[dict[str, Any]]:
    """Collect what is reported to the event loop instead of the default log."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


def every_way(raw: bytes) -> list[list[bytes]]:
    ways = [[raw], [raw[i : i + 1] for i in range(len(raw))]]
    return ways + [[raw[:i], raw[i:]] for i in range(1, len(raw))]


@pytest.mark.parametrize(("raw", "body"), [(GET, b""), (POST, b"hello"), (CHUNKED, b"hello")])
async def test_a_request_is_served_however_it_arrives_on_one_connection(
    raw: bytes, body: bytes
) -> None:
    server = Server()
    ways = every_way(raw)
    expected = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\n%b" % (len(body), DATE, body)
    for pieces in ways:
        assert await server.send(*pieces) == expected
    assert server.bodies == [body] * len(ways)
    assert server.connection.is_idle


async def test_an_answer_is_one_write() -> None:
    server = Server()
    server.connection.data_received(POST)
    await turns()
    assert len(server.transport.writes) == 1


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
async def test_pipelined_requests_are_answered_one_after_the_other(step: int) -> None:
    running = 0

    async def handle(request: ServerRequest) -> None:
        nonlocal running
        running += 1
        assert running == 1
        body = await request.read(100)
        await turns(2)
        request.respond(200, (), request.head.method.encode() + body)
        running -= 1

    server = Server(handle)
    raw = POST + GET + CHUNKED + POST
    answers = await server.send(*(raw[i : i + step] for i in range(0, len(raw), step)))
    await turns(40)
    answers += server.transport.take()
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answers.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"POSThello", b"GET", b"POSThello", b"POSThello"]


async def test_pipelined_bytes_are_bounded_by_pausing() -> None:
    release = asyncio.Event()

    async def handle(request: ServerRequest) -> None:
        await release.wait()
        request.respond(200)

    server = Server(handle, HttpLimits(buffer_bytes=1000))
    await server.send(GET)
    for _ in range(1000 // len(GET) + 1):
        assert not server.transport.is_paused()
        await server.send(GET)
    assert server.transport.is_paused()
    release.set()
    await turns(200)
    assert not server.transport.is_paused()
    assert len(server.heads) == 1000 // len(GET) + 2


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 70000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 104857601\r\n\r\n", 413),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\r\n\r\n", 400),
    ],
)
@pytest.mark.parametrize("step", [1, 1 << 20])
async def test_what_cannot_be_served_is_refused_before_the_handler(
    raw: bytes, status: int, step: int
) -> None:
    server = Server()
    written = await server.send(*(raw[i : i + step] for i in range(0, len(raw), step)))
    assert server.refusal(written)[0] == status
    assert server.heads == []
    assert await server.send(GET) == b"", "nothing is served after a refusal"


async def test_a_smuggled_second_request_is_never_served() -> None:
    server = Server()
    raw = (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5c\r\n" + GET
    )
    written = await server.send(raw)
    assert server.refusal(written)[0] == 400
    assert server.heads == []


async def test_an_announced_body_over_the_limit_is_refused_before_it_is_read() -> None:
    server = Server(limits=HttpLimits(max_body_bytes=10))
    written = await server.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n")
    status, error = server.refusal(written)
    assert (status, error["code"]) == (413, "body_too_large")
    assert error["message"] == "body of 11 bytes exceeds the limit of 10 bytes"
    assert server.heads == []


async def test_a_chunked_body_is_refused_when_it_reaches_the_limit() -> None:
    server = Server(limits=HttpLimits(max_body_bytes=10, linger_s=0.01))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await server.send(head, b"a\r\n0123456789\r\n") == b""
    written = await server.send(b"1\r\nx\r\n")
    assert server.refusal(written)[0] == 413
    assert server.cancelled == 1


async def test_a_refused_client_may_go_on_sending_for_a_while() -> None:
    server = Server(limits=HttpLimits(max_body_bytes=10, linger_s=NEVER_S))
    await server.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    await server.send(b"b\r\n0123456789x\r\n")
    assert server.transport.is_eof_written
    assert not server.transport.is_closing(), "a reset could overtake the answer"
    assert await server.send(b"y" * 100_000) == b""
    await pass_time(1.2 * NEVER_S)
    assert server.transport.is_closing()


async def test_a_malformed_body_is_answered_and_the_handler_cancelled() -> None:
    server = Server()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    await server.send(head)
    written = await server.send(b"zz\r\n")
    assert server.refusal(written)[0] == 400
    assert server.cancelled == 1


async def test_a_malformed_body_after_the_answer_began_cuts_the_connection() -> None:
    async def handle(request: ServerRequest) -> None:
        body = request.start_response(ResponseHead(200))
        body.write(b"abc")
        await request.read(100)

    server = Server(handle)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    written = await server.send(head)
    assert written.endswith(b"3\r\nabc\r\n")
    assert await server.send(b"zz\r\n") == b""
    assert server.transport.is_aborted
    assert server.cancelled == 1


@given(data=st.data())
def test_a_request_cut_short_anywhere_is_never_served_as_whole(data: st.DataObject) -> None:
    raw = data.draw(st.sampled_from([GET, POST, CHUNKED]))
    cut = data.draw(st.integers(0, len(raw) - 1))
    step = data.draw(st.integers(1, len(raw)))

    async def run() -> None:
        server = Server()
        written = await server.send(*(raw[i : min(i + step, cut)] for i in range(0, cut, step)))
        server.connection.eof_received()
        server.transport.close()
        await turns()
        assert written + server.transport.take() == b""
        assert server.bodies == []
        assert len(server.heads) == server.cancelled
        assert server.ended == [server.connection]

    asyncio.run(run())


async def test_a_client_that_leaves_cancels_the_handler() -> None:
    async def handle(request: ServerRequest) -> None:
        await asyncio.Event().wait()

    server = Server(handle)
    await server.send(GET)
    server.connection.connection_lost(None)
    await turns()
    assert server.cancelled == 1
    assert server.ended == [server.connection]


async def test_a_reader_of_a_body_whose_client_leaves_sees_a_truncation() -> None:
    seen: list[BaseException] = []

    async def handle(request: ServerRequest) -> None:
        try:
            await request.read(100)
        except TruncatedMessage as error:
            seen.append(error)
            raise

    server = Server(handle)
    await server.send(POST[:-1])
    server.connection.eof_received()
    await turns()
    assert len(seen) == 1


async def test_a_handler_that_fails_is_answered_with_500_and_reported(
    failures: list[dict[str, Any]],
) -> None:
    async def handle(request: ServerRequest) -> None:
        raise ValueError("secret-canary")

    server = Server(handle)
    written = await server.send(GET)
    assert server.refusal(written)[0] == 500
    assert b"secret" not in written
    assert isinstance(failures[0]["exception"], ValueError)


async def test_a_handler_that_forgets_to_answer_is_answered_with_500_and_reported(
    failures: list[dict[str, Any]],
) -> None:
    async def handle(request: ServerRequest) -> None:
        pass

    server = Server(handle)
    assert server.refusal(await server.send(GET))[0] == 500
    assert isinstance(failures[0]["exception"], LocalProtocolError)


@pytest.mark.parametrize("length", [None, b"10"])
async def test_a_begun_answer_that_is_not_finished_cuts_the_connection(
    length: bytes | None, failures: list[dict[str, Any]]
) -> None:
    async def handle(request: ServerRequest) -> None:
        headers = () if length is None else ((b"content-length", length),)
        request.start_response(ResponseHead(200, headers)).write(b"abc")
        if request.head.target == "/fail":
            raise ValueError

    for target in (b"/", b"/fail"):
        server = Server(handle)
        written = await server.send(GET.replace(b"GET / ", b"GET %b " % target))
        assert b"abc" in written
        assert not written.endswith(b"0\r\n\r\n")
        assert server.transport.is_aborted


async def test_more_or_less_than_the_declared_length_cuts_the_connection() -> None:
    async def handle(request: ServerRequest) -> None:
        body = request.start_response(ResponseHead(200, ((b"content-length", b"5"),)))
        if request.head.target == "/more":
            with pytest.raises(LocalProtocolError):
                body.write(b"123456")
        else:
            body.write(b"1234")
            with pytest.raises(LocalProtocolError):
                body.finish()

    for target in (b"/more", b"/less"):
        server = Server(handle)
        await server.send(GET.replace(b"GET / ", b"GET %b " % target))
        assert server.transport.is_aborted


async def test_a_streamed_answer_is_one_write_per_piece() -> None:
    async def handle(request: ServerRequest) -> None:
        body = request.start_response(ResponseHead(200), hold_head=True)
        body.write(b"one")
        body.write(b"two")
        body.finish(b"three")

    server = Server(handle)
    server.connection.data_received(GET)
    await turns()
    assert server.transport.writes == [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n" + DATE + b"\r\n3\r\none\r\n",
        b"3\r\ntwo\r\n",
        b"5\r\nthree\r\n0\r\n\r\n",
    ]
    assert server.connection.is_idle


async def test_a_second_answer_is_refused() -> None:
    async def handle(request: ServerRequest) -> None:
        request.respond(200)
        assert request.is_answered
        with pytest.raises(LocalProtocolError):
            request.respond(200)

    server = Server(handle)
    assert (await server.send(GET)).count(b"HTTP/1.1 200") == 1


async def test_http_1_0_gets_an_answer_that_ends_with_the_connection() -> None:
    async def handle(request: ServerRequest) -> None:
        body = request.start_response(ResponseHead(200))
        body.write(b"abc")
        body.finish(b"def")

    server = Server(handle)
    written = await server.send(b"GET / HTTP/1.0\r\n\r\n")
    assert written == b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + DATE + b"\r\nabcdef"
    assert server.transport.is_closing()
    assert not server.transport.is_aborted


async def test_http_1_0_may_keep_the_connection() -> None:
    server = Server()
    raw = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    for _ in range(2):
        written = await server.send(raw)
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n"
        assert written == head + DATE + b"\r\n"


async def test_a_client_that_wants_to_close_is_closed() -> None:
    server = Server()
    written = await server.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"connection: close" in written
    assert server.transport.is_closing()


async def test_head_gets_no_body() -> None:
    async def handle(request: ServerRequest) -> None:
        request.respond(200, (), b"hello")

    server = Server(handle)
    written = await server.send(GET.replace(b"GET", b"HEAD"))
    assert written == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + DATE + b"\r\n"


@pytest.mark.parametrize("length", [b"4", b"6"])
async def test_an_answer_of_another_length_than_declared_is_not_sent(length: bytes) -> None:
    async def handle(request: ServerRequest) -> None:
        with pytest.raises(LocalProtocolError):
            request.respond(200, ((b"content-length", length),), b"hello")
        request.respond(200, ((b"content-length", b"5"),), b"hello")

    assert (await Server(handle).send(GET)).endswith(b"content-length: 5\r\n" + DATE + b"\r\nhello")


async def test_every_answer_says_when_it_was_made() -> None:
    server = Server()
    assert DATE in await server.send(GET)
    server.now += 0.2  # the same second
    assert DATE in await server.send(GET)
    server.now += 0.1
    assert b"date: Tue, 14 Nov 2023 22:13:21 GMT\r\n" in await server.send(GET)
    refused = await server.send(b"GET / HTTP/1.1\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 400")
    assert refused.count(b"date: Tue, 14 Nov 2023 22:13:21 GMT\r\n") == 1


async def test_a_date_that_was_given_stays_the_only_one() -> None:
    given = b"Sun, 06 Nov 1994 08:49:37 GMT"

    async def handle(request: ServerRequest) -> None:
        request.respond(200, ((b"date", given),))

    answer = await Server(handle).send(GET)
    assert answer.lower().count(b"date: ") == answer.count(b"date: " + given) == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_gets_none(status: int) -> None:
    async def handle(request: ServerRequest) -> None:
        request.respond(status, (), b"hello")

    server = Server(handle)
    assert (await server.send(GET)).endswith(b"\r\n\r\n")
    assert server.connection.is_idle


async def test_continue_is_sent_when_the_body_is_wanted() -> None:
    wanted = asyncio.Event()

    async def handle(request: ServerRequest) -> None:
        await wanted.wait()
        request.respond(200, (), await request.read(100))

    server = Server(handle)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    assert await server.send(head) == b""
    wanted.set()
    await turns()
    assert server.transport.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await server.send(b"hello")).endswith(b"hello")


async def test_continue_is_not_sent_for_a_body_that_is_refused_or_there() -> None:
    server = Server(limits=HttpLimits(max_body_bytes=4))
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    assert (await server.send(head)).startswith(b"HTTP/1.1 413")
    server = Server()
    assert (await server.send(head + b"hello")).startswith(b"HTTP/1.1 200")


async def test_an_answer_before_the_body_came_closes_after_it() -> None:
    async def handle(request: ServerRequest) -> None:
        request.respond(401)

    server = Server(handle)
    written = await server.send(POST[:-1])
    assert b"connection: close" in written
    assert server.transport.is_eof_written


async def test_the_body_nobody_reads_is_bounded_by_pausing() -> None:
    release = asyncio.Event()

    async def handle(request: ServerRequest) -> None:
        await release.wait()
        request.respond(200, (), b"%d" % len(await request.read(1 << 20)))

    server = Server(handle, HttpLimits(buffer_bytes=1000))
    await server.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n")
    await server.send(b"x" * 1001)
    assert server.transport.is_paused()
    release.set()
    await turns()
    assert not server.transport.is_paused()
    assert (await server.send(b"x" * 3999)).endswith(b"5000")


async def test_a_drain_waits_while_the_client_does_not_read() -> None:
    drained: list[str] = []

    async def handle(request: ServerRequest) -> None:
        body = request.start_response(ResponseHead(200))
        body.write(b"abc")
        await body.drain()
        drained.append("first")
        body.finish()

    server = Server(handle)
    server.connection.pause_writing()
    await server.send(GET)
    assert drained == []
    server.connection.resume_writing()
    await turns()
    assert drained == ["first"]


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
async def test_a_head_that_does_not_come_is_given_up(sent: bytes) -> None:
    server = Server(limits=HttpLimits(head_timeout_s=0.01, linger_s=0.01))
    if sent:
        await server.send(sent)
    async with asyncio.timeout(50):
        await server.transport.closed.wait()
        await turns()
    written = server.transport.take()
    assert written.startswith(b"HTTP/1.1 408") if sent else written == b""


async def test_a_trickled_head_gets_no_more_time() -> None:
    server = Server(limits=HttpLimits(head_timeout_s=0.05, linger_s=0.01))
    async with asyncio.timeout(50):
        while not server.transport.is_closing():
            server.connection.data_received(b"G")
            await asyncio.sleep(0.005)
    assert server.transport.take().startswith(b"HTTP/1.1 408")


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    server = Server(limits=HttpLimits(keep_alive_timeout_s=0.01))
    assert (await server.send(GET)).startswith(b"HTTP/1.1 200")
    async with asyncio.timeout(50):
        await server.transport.closed.wait()
        await turns()
    assert server.transport.take() == b""


async def test_a_body_that_stops_coming_is_given_up_and_the_handler_cancelled() -> None:
    server = Server(limits=HttpLimits(body_timeout_s=0.01, linger_s=0.01))
    await server.send(POST[:-1])
    async with asyncio.timeout(50):
        await server.transport.closed.wait()
        await turns()
    assert server.transport.take().startswith(b"HTTP/1.1 408")
    assert server.cancelled == 1


async def test_a_body_that_drips_is_given_up_and_one_that_flows_is_not() -> None:
    limits = HttpLimits(body_timeout_s=NEVER_S, least_body_bytes=8, linger_s=NEVER_S)
    dripping, flowing = Server(limits=limits), Server(limits=limits)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
    for server, piece in ((dripping, b"x"), (flowing, b"x" * 8)):
        await server.send(head + piece)
    said = [b"", b""]
    for _ in range(3):
        await pass_time(NEVER_S / 2)
        said[0] += await dripping.send(b"x")
        said[1] += await flowing.send(b"x" * 8)
    assert said[0].startswith(b"HTTP/1.1 408")
    assert said[1] == b""
    flowing.connection.abort()


async def test_who_owns_it_hears_when_a_request_is_answered_and_when_that_is_over() -> None:
    heard: list[bool] = []
    server = Server(busy_of=lambda _: heard.append)
    await server.send(GET[:5])
    assert heard == []
    await server.send(GET[5:])
    assert heard == [True, False]
    await server.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert heard == [True, False, True, False]


async def test_a_slow_handler_is_not_timed() -> None:
    async def handle(request: ServerRequest) -> None:
        await pass_time(1.2 * NEVER_S)
        request.respond(200)

    limits = HttpLimits(head_timeout_s=NEVER_S, body_timeout_s=NEVER_S)
    server = Server(handle, limits)
    await server.send(POST)
    task = server.connection.task
    assert task is not None
    await task
    assert server.transport.take().startswith(b"HTTP/1.1 200")


async def test_a_draining_connection_finishes_its_request_and_closes() -> None:
    release = asyncio.Event()

    async def handle(request: ServerRequest) -> None:
        await release.wait()
        request.respond(200)

    server = Server(handle)
    await server.send(GET)
    server.connection.drain()
    assert not server.transport.is_closing()
    release.set()
    await turns()
    assert b"connection: close" in server.transport.take()
    assert server.transport.is_closing()


async def test_a_draining_idle_connection_closes_at_once() -> None:
    server = Server()
    server.connection.drain()
    assert server.transport.is_closing()


class Other(asyncio.Protocol):
    """What a connection is diverted to."""

    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
async def test_a_diverted_connection_gets_every_byte_from_the_head_on(step: int) -> None:
    other = Other()

    def divert(head: RequestHead) -> asyncio.Protocol | None:
        return other if head.target == "/other" else None

    server = Server(divert=divert)
    assert (await server.send(POST)).endswith(b"hello")
    raw = POST.replace(b"POST / ", b"POST /other ") + GET
    for piece in (raw[i : i + step] for i in range(0, len(raw), step)):
        protocol = server.transport.protocol
        assert isinstance(protocol, asyncio.Protocol)
        protocol.data_received(piece)
    await turns()
    assert other.transport is server.transport
    assert other.received == raw
    assert len(server.heads) == 1
    assert server.ended == [server.connection]
    assert server.transport.take() == b""


async def test_a_diverted_connection_is_no_longer_timed() -> None:
    other = Other()
    server = Server(divert=lambda _: other, limits=HttpLimits(head_timeout_s=NEVER_S))
    await server.send(GET)
    await pass_time(1.2 * NEVER_S)
    assert not server.transport.is_closing()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TruncatedMessage("cut"), 502, "upstream_error"),
        (ConnectionClosed(request_sent=True), 502, "upstream_error"),
        (RemoteProtocolError("broken"), 502, "upstream_error"),
        (BodyTooLarge(5), 502, "upstream_error"),
        (HeadTimeout(1.0), 504, "upstream_timeout"),
    ],
)
async def test_the_fault_of_an_upstream_is_not_told_as_the_clients(
    error: HttpError, status: int, code: str
) -> None:
    async def handle(request: ServerRequest) -> None:
        raise error

    server = Server(handle)
    found = server.refusal(await server.send(GET))
    assert (found[0], found[1]["code"]) == (status, code)


async def test_a_body_over_the_handlers_own_limit_is_the_clients_fault() -> None:
    async def handle(request: ServerRequest) -> None:
        await request.read(4)

    for raw in (POST, CHUNKED):
        server = Server(handle)
        assert server.refusal(await server.send(raw))[0] == 413


async def test_a_refused_head_lingers_for_the_client_to_read_the_answer() -> None:
    server = Server(limits=HttpLimits(linger_s=NEVER_S))
    assert (await server.send(b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 400")
    assert server.transport.is_eof_written
    assert not server.transport.is_closing()
    await pass_time(1.2 * NEVER_S)
    assert server.transport.is_closing()


async def test_a_broken_upload_is_told_to_where_it_was_going() -> None:
    upstream = ClientConnection()
    transport = RecordingTransport(upstream)

    async def handle(request: ServerRequest) -> None:
        await upstream.request(RequestHead("POST", "/", ((b"host", b"a"),)), request.body)

    server = Server(handle)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    await server.send(head)
    assert transport.written.endswith(b"3\r\nabc\r\n")
    assert (await server.send(b"zz\r\n")).startswith(b"HTTP/1.1 400")
    assert transport.is_aborted
    assert not transport.written.endswith(b"0\r\n\r\n")
