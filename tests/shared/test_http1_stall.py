"""A peer that takes nothing is told from one that is slow. No socket."""

import asyncio

import pytest

from byoai_shared.http1.head import HttpLimits
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.http1.stall import StallWatch
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
    async with asyncio.timeout(5):
        await stalled.wait()
    assert wire.looks == 4


async def test_a_peer_that_has_read_on_is_left_alone() -> None:
    stalled = asyncio.Event()
    watch = StallWatch(asyncio.get_running_loop(), LIMIT_S, stalled.set)
    watch.paused(Wire(100))
    watch.resumed()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stalled.wait(), 3 * LIMIT_S)
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
    async with asyncio.timeout(5):
        await transport.closed.wait()
        if not is_closing:
            await cancelled.wait()
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
    await asyncio.wait_for(task, 5)
    assert drained == ["first", "second"]
    connection.drain()
