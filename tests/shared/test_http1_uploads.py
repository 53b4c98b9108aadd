"""A long request body goes no faster than it is taken, and one that is taken arrives whole."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import cast

import pytest

from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.errors import ConnectionClosed
from byoai_shared.http1.head import RequestHead
from byoai_shared.http1.pieces import PIECE_BYTES
from byoai_shared.http1.pool import Pool
from support.authority import tls_contexts
from support.wires import RecordingTransport, turns

POST = RequestHead("POST", "/", ((b"host", b"a"),))
BODY = bytes(range(256)) * (5 * PIECE_BYTES // 256) + b"end"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno"


class Narrow(RecordingTransport):
    """Has enough at once, whatever is written."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        cast("asyncio.Protocol", self.protocol).pause_writing()


class Breaking(RecordingTransport):
    """Fails at the first write, and says so in a later turn, as a socket does."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))
        self.abort()


async def ask(connection: ClientConnection) -> "asyncio.Task[Response]":
    task = asyncio.ensure_future(connection.request(POST, BODY))
    await turns()
    return task


async def test_the_next_piece_waits_until_the_last_was_taken() -> None:
    connection = ClientConnection()
    transport = Narrow(connection)
    task = await ask(connection)
    head, _, first = transport.take().partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(BODY) in head
    assert len(first) == PIECE_BYTES
    came = first
    while len(came) < len(BODY):
        assert not connection.is_reusable
        connection.resume_writing()
        piece = transport.take()
        assert 0 < len(piece) <= PIECE_BYTES
        came += piece
    is_the_same = came == BODY
    assert is_the_same
    connection.resume_writing()
    connection.data_received(ANSWER)
    assert await (await task).read(2) == b"ok"
    assert connection.is_reusable


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES])
async def test_a_body_of_one_piece_is_one_write(size: int) -> None:
    connection = ClientConnection()
    transport = RecordingTransport(connection)
    task = asyncio.ensure_future(connection.request(POST, b"x" * size))
    await turns()
    assert len(transport.writes) == 1
    connection.data_received(ANSWER)
    await task
    assert connection.is_reusable


async def test_an_early_answer_is_read_and_what_is_left_of_the_body_does_not_follow() -> None:
    connection = ClientConnection()
    transport = Narrow(connection)

    async def connect(_: str) -> ClientConnection:
        return connection

    pool = Pool(connect)
    assert await pool.acquire("a") is connection
    task = await ask(connection)
    connection.data_received(TOO_LARGE)
    response = await task
    assert response.head.status == 413
    assert await response.read(2) == b"no"
    pool.release("a", connection)
    assert transport.is_aborted
    transport.take()
    await turns()
    connection.resume_writing()
    assert transport.writes == []


async def test_a_cancelled_upload_cuts_the_connection_and_writes_no_more() -> None:
    connection = ClientConnection()
    transport = Narrow(connection)
    task = await ask(connection)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert transport.is_aborted
    transport.take()
    await turns()
    connection.resume_writing()
    assert transport.writes == []


async def test_an_upload_whose_connection_is_lost_was_sent_for_all_that_is_known() -> None:
    connection = ClientConnection()
    Narrow(connection)
    task = await ask(connection)
    reason = ConnectionResetError("reset by the test")
    connection.connection_lost(reason)
    with pytest.raises(ConnectionClosed) as caught:
        await task
    assert caught.value.request_sent
    assert caught.value.__cause__ is reason


async def test_nothing_more_is_written_into_a_transport_that_broke() -> None:
    connection = ClientConnection()
    transport = Breaking(connection)
    with pytest.raises(ConnectionClosed):
        await connection.request(POST, BODY)
    assert len(transport.writes) == 1


# ---- over loopback TCP and TLS, on both event loops


def _uvloop() -> asyncio.AbstractEventLoop:
    return cast("asyncio.AbstractEventLoop", pytest.importorskip("uvloop").new_event_loop())


Run = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture(params=[asyncio.SelectorEventLoop, _uvloop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:

        def run_one(main: Coroutine[None, None, None]) -> None:
            runner.run(main)

        yield run_one


class Metered(bytes):
    """Knows how much of itself was asked for."""

    handed = 0

    def __getitem__(self, at: object) -> bytes:  # type: ignore[override]
        piece = bytes.__getitem__(self, cast("slice", at))
        self.handed += len(piece)
        return piece


class Stubborn(asyncio.Protocol):
    """A server that reads nothing until it is asked to, and then answers what is whole."""

    def __init__(self, body: Metered, came: "asyncio.Future[Stubborn]") -> None:
        self.body = body
        self.came = came
        self.data = bytearray()
        self.most_between = 0  # handed over by the client, and not come here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()
        self.came.set_result(self)

    def data_received(self, data: bytes) -> None:
        self.most_between = max(self.most_between, self.body.handed - len(self.data))
        self.data += data
        if self.data.endswith(b"end"):
            self.transport.write(ANSWER)


class Watched(ClientConnection):
    """Tells when its transport has enough."""

    def __init__(self) -> None:
        super().__init__()
        self.has_enough = asyncio.Event()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.has_enough.set()


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_a_server_that_reads_nothing_bounds_what_is_handed_over_and_then_gets_it_all(
    *, run: Run, is_tls: bool
) -> None:
    body = Metered(b"0123456789abcdef" * (20_000_000 // 16) + b"end")
    server_side, client_side = tls_contexts() if is_tls else (None, None)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        came: asyncio.Future[Stubborn] = loop.create_future()
        server = await loop.create_server(
            lambda: Stubborn(body, came), "127.0.0.1", 0, ssl=server_side
        )
        port = server.sockets[0].getsockname()[1]
        _, connection = await loop.create_connection(Watched, "127.0.0.1", port, ssl=client_side)
        peer = await came
        task = asyncio.ensure_future(connection.request(POST, body))
        try:
            await asyncio.wait_for(connection.has_enough.wait(), 50)
            handed = body.handed
            assert 0 < handed < 20_000_000
            peer.transport.resume_reading()
            assert await (await task).read(2) == b"ok"
            is_the_same = peer.data.endswith(bytes(body))
            assert is_the_same
            # Two pieces, and what the system keeps of a connection within this machine.
            most_between = peer.most_between
            assert most_between < 12_000_000
            assert connection.is_reusable
        finally:
            connection.abort()
            peer.transport.abort()
            server.close()
            await asyncio.wait([task])
            await turns(20)

    run(asyncio.wait_for(main(), 55))
