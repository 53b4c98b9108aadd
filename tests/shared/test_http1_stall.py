"""A peer that takes nothing is told from one that is slow."""

import asyncio

import pytest

from byoai_shared.http1.connections import Connections
from byoai_shared.http1.head import HttpLimits, ResponseHead
from byoai_shared.http1.pieces import PIECE_BYTES
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.http1.stall import StallWatch
from support.authority import tls_contexts
from support.loop_clock import pass_time
from support.wires import RecordingTransport

LIMIT_S = 0.02


class Wire(asyncio.Transport):
    """Says of what was written how much was not taken yet."""

    def __init__(self, *unsent: int) -> None:
        super().__init__()
        self._unsent = list(unsent)
        self.looks = 0

    def get_write_buffer_size(self) -> int:
        self.looks += 1
        return self._unsent.pop(0) if len(self._unsent) > 1 else self._unsent[0]


async def test_a_peer_that_takes_nothing_is_found_and_one_that_takes_a_little_is_not() -> None:
    stalled = asyncio.Event()
    watch = StallWatch(asyncio.get_running_loop(), LIMIT_S, stalled.set)
    wire = Wire(100, 99, 98, 98)
    watch.paused(wire)
    async with asyncio.timeout(50):
        await stalled.wait()
    assert wire.looks == 4


async def test_a_peer_that_has_read_on_is_left_alone() -> None:
    stalled = asyncio.Event()
    watch = StallWatch(asyncio.get_running_loop(), LIMIT_S, stalled.set)
    watch.paused(Wire(100))
    watch.resumed()
    for _ in range(3):
        await pass_time(LIMIT_S)
    assert not stalled.is_set()
    watch.stop()


@pytest.mark.parametrize("is_closing", [False, True])
async def test_a_client_that_takes_nothing_of_its_answer_is_cut_even_behind_it(
    *, is_closing: bool
) -> None:
    cancelled = asyncio.Event()

    async def answer(request: ServerRequest) -> None:
        connection.pause_writing()
        request.respond(200, (), b"long")
        if is_closing:
            return
        try:
            await request.drained()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    connection = ServerConnection(answer, HttpLimits(stall_timeout_s=LIMIT_S))
    transport = RecordingTransport(connection)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(50):
        await transport.closed.wait()
        if not is_closing:
            await cancelled.wait()
    assert transport.is_aborted


class Unread(RecordingTransport):
    """A transport whose peer takes nothing of little: its protocol is not asked to pause."""

    def close(self) -> None:
        """The last bytes are still to be taken."""

    def get_write_buffer_size(self) -> int:
        return len(self.written)


async def test_a_client_that_takes_nothing_of_its_last_answer_is_cut() -> None:
    async def answer(request: ServerRequest) -> None:
        request.respond(200, (), b"short")

    connection = ServerConnection(answer, HttpLimits(stall_timeout_s=LIMIT_S))
    transport = Unread(connection)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(50):
        await transport.closed.wait()
    assert transport.is_aborted


async def test_a_handler_may_wait_until_its_client_has_read_on() -> None:
    drained: list[str] = []

    async def answer(request: ServerRequest) -> None:
        connection.pause_writing()
        request.respond(200, (), b"long")
        await request.drained()
        drained.append("first")
        await request.drained()
        drained.append("second")

    connection = ServerConnection(answer)
    RecordingTransport(connection)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.sleep(0)
    task = connection.task
    assert task is not None
    assert not drained
    connection.resume_writing()
    await asyncio.wait_for(task, 50)
    assert drained == ["first", "second"]
    connection.drain()


async def test_a_long_answer_goes_over_tls_no_faster_than_it_is_taken() -> None:
    body = b"x" * 12_000_000
    taken = asyncio.Event()

    async def answer(request: ServerRequest) -> None:
        request.respond_as_taken(ResponseHead(200), body)
        await request.drained()
        taken.set()

    server_side, client_side = tls_contexts()
    connections = Connections()
    server = await asyncio.get_running_loop().create_server(
        lambda: connections.add(ServerConnection(answer, on_lost=connections.lost)),
        "127.0.0.1",
        0,
        ssl=server_side,
    )
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_side)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(50):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 12000000" in head
        assert not taken.is_set()
        assert await reader.readexactly(len(body)) == body
        await taken.wait()
    writer.close()
    await writer.wait_closed()
    server.close()
    await connections.drain(5)


@pytest.mark.parametrize("size", [PIECE_BYTES + 1, 2 * PIECE_BYTES, 3 * PIECE_BYTES - 1])
async def test_pieces_are_the_whole_and_wait_while_they_are_not_taken(size: int) -> None:
    async def answer(request: ServerRequest) -> None:
        connection.pause_writing()
        request.respond_as_taken(ResponseHead(200), body)
        assert not transport.writes
        await request.drained()

    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    connection = ServerConnection(answer)
    transport = RecordingTransport(connection)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.sleep(0)
    task = connection.task
    assert task is not None
    connection.resume_writing()
    await asyncio.wait_for(task, 50)
    assert transport.take().partition(b"\r\n\r\n")[2] == body
    assert connection.is_idle
    connection.drain()
