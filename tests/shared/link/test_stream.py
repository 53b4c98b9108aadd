"""Streams as asyncio transports: gateway and agent over real links through a real relay."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from byoai_shared.link import session as session_module
from byoai_shared.link.errors import LinkLost, StreamReset
from byoai_shared.link.session import LinkSession
from byoai_shared.link.stream import WRITE_HIGH_BYTES, StreamTransport
from byoai_shared.protocol.credit import INITIAL_CREDIT
from byoai_shared.protocol.errors import ResetCode
from support.links import TUNNEL_ID
from support.pipes import Pipe, Pipes
from support.relays import Rig, end, relaying

MIB = 1024 * 1024
RANDOM = random.Random(7).randbytes(4 * MIB)


@dataclass
class Line:
    """A gateway and an agent that are linked by a relay."""

    rig: Rig
    gateway: LinkSession
    agent: LinkSession
    pipes: Pipes

    async def stream(self, ours: Pipe | None = None) -> tuple[Pipe, Pipe]:
        """Open a stream: the gateway's and the agent's protocol."""
        ours = ours or Pipe()
        await self.gateway.open_stream(TUNNEL_ID, ours)
        return ours, self.pipes.made[-1]

    async def quiet(self) -> None:
        """Wait until no slot is taken anywhere."""
        switch = self.rig.service.relay.switch
        await self.rig.until(
            lambda: not (self.gateway.stream_count or self.agent.stream_count or switch._streams_of)
        )
        assert switch.buffered_bytes == sum(
            link.port.outbox.queued_bytes for link in self.rig.service.relay.links()
        )


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with relaying(tmp_path) as rig:
        pipes = Pipes()
        gateway, _ = await rig.gateway()
        yield Line(rig, gateway, await rig.agent(pipes), pipes)


@pytest.fixture
def loop_errors() -> list[dict[str, Any]]:
    return []


@pytest.fixture
async def watched(line: Line, loop_errors: list[dict[str, Any]]) -> Line:
    """The line, with what the event loop is told collected."""
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: loop_errors.append(context)
    )
    return line


# -- bytes


async def test_many_bytes_go_both_ways_at_once_within_bounds(line: Line) -> None:
    ours, theirs = await line.stream()
    async with asyncio.TaskGroup() as tasks:
        for pipe in (ours, theirs):
            tasks.create_task(pipe.write(RANDOM))
    for pipe in (ours, theirs):
        await pipe.until(lambda pipe=pipe: len(pipe.received) == len(RANDOM))  # type: ignore[misc] # a default in a lambda
        assert pipe.received == RANDOM
        assert pipe.pauses > 0
        assert pipe.most_unsent <= WRITE_HIGH_BYTES + 60_000
    ours.transport.close()
    assert await ours.lost() is None
    assert await theirs.lost() is None
    await line.quiet()


async def test_one_write_larger_than_any_buffer_arrives(line: Line) -> None:
    ours, theirs = await line.stream()
    ours.transport.write(RANDOM)
    ours.transport.write_eof()
    await theirs.until(lambda: theirs.has_eof)
    assert theirs.received == RANDOM


async def test_a_paused_reader_stops_the_writer_and_loses_nothing(line: Line) -> None:
    ours, theirs = await line.stream()
    theirs.transport.pause_reading()
    assert not theirs.transport.is_reading()
    writing = asyncio.ensure_future(ours.write(RANDOM))
    await line.rig.until(
        lambda: sum(map(len, theirs.transport._received)) == INITIAL_CREDIT and ours.is_paused
    )
    assert theirs.received == b""
    assert not writing.done()
    theirs.transport.resume_reading()
    await writing
    ours.transport.write_eof()
    await theirs.until(lambda: theirs.has_eof)
    assert theirs.received == RANDOM


async def test_a_paused_reader_of_one_stream_stops_no_other(line: Line) -> None:
    ours, stalled = await line.stream()
    stalled.transport.pause_reading()
    blocked = asyncio.ensure_future(ours.write(RANDOM))
    lively, heard = await line.stream()
    await lively.write(RANDOM)
    await heard.until(lambda: heard.received == RANDOM)
    blocked.cancel()
    await asyncio.wait({blocked})


async def test_eof_waits_for_a_paused_reader(line: Line) -> None:
    ours, theirs = await line.stream()
    theirs.transport.pause_reading()
    ours.transport.write(b"all of it")
    ours.transport.close()
    await line.rig.until(lambda: theirs.transport._has_eof)
    assert not theirs.has_eof
    theirs.transport.resume_reading()
    await theirs.until(lambda: theirs.has_eof)
    assert theirs.received == b"all of it"


async def test_a_buffer_that_changes_after_the_write_is_copied(line: Line) -> None:
    ours, theirs = await line.stream()
    buffer = bytearray(b"before")
    ours.transport.write(buffer)
    ours.transport.writelines([memoryview(buffer), b"!"])
    buffer[:] = b"after!"
    await theirs.until(lambda: theirs.received == b"beforebefore!")


# -- ends


@pytest.mark.parametrize("first", ["gateway", "agent"])
async def test_half_close_lets_the_other_half_live(line: Line, first: str) -> None:
    line.pipes._make = lambda: Pipe(keeps_open=True)
    one, other = await line.stream(Pipe(keeps_open=True))
    if first == "agent":
        one, other = other, one
    assert one.transport.can_write_eof()
    one.transport.write(b"question")
    one.transport.write_eof()
    await other.until(lambda: other.has_eof)
    assert other.received == b"question"
    await other.write(RANDOM)
    other.transport.close()
    await one.until(lambda: one.has_eof)
    assert one.received == RANDOM
    one.transport.close()
    assert await one.lost() is None
    await line.quiet()


async def test_close_flushes_and_then_says_goodbye(line: Line) -> None:
    ours, theirs = await line.stream()
    ours.transport.write(RANDOM)
    ours.transport.close()
    ours.transport.close()
    ours.transport.write(b"not any more")
    assert ours.transport.is_closing()
    assert await ours.lost() is None
    assert await theirs.lost() is None
    assert theirs.received == RANDOM
    await line.quiet()


async def test_abort_is_a_reset_for_the_other_side_at_once(line: Line) -> None:
    ours, theirs = await line.stream()
    ours.transport.write(RANDOM)
    ours.transport.abort()
    assert await ours.lost() is None
    error = await theirs.lost()
    assert isinstance(error, StreamReset)
    assert error.code is ResetCode.CANCELLED
    await line.quiet()


async def test_fail_says_why(line: Line) -> None:
    ours, theirs = await line.stream()
    theirs.transport.fail(ResetCode.NOT_PROCESSED)
    error = await ours.lost()
    assert isinstance(error, StreamReset)
    assert error.code is ResetCode.NOT_PROCESSED


async def test_aborting_at_both_ends_at_once_leaves_nothing(line: Line) -> None:
    for _ in range(20):
        ours, theirs = await line.stream()
        ours.transport.abort()
        theirs.transport.abort()
        await ours.lost()
        await theirs.lost()
    await line.quiet()


async def test_what_a_closing_stream_had_not_read_does_not_hold_its_peer_up(line: Line) -> None:
    ours, theirs = await line.stream(Pipe(keeps_open=True))
    theirs.transport.pause_reading()
    await ours.write(RANDOM[:INITIAL_CREDIT])
    await line.rig.until(lambda: len(theirs.transport._received) > 0)
    writing = asyncio.ensure_future(ours.write(RANDOM))
    theirs.transport.close()
    await writing
    ours.transport.close()
    await line.quiet()


async def test_a_peer_that_never_finishes_is_reset_after_a_while(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "LINGER_S", 0.02)
    line.pipes._make = lambda: Pipe(keeps_open=True)
    ours, theirs = await line.stream()
    ours.transport.close()
    await theirs.until(lambda: theirs.has_eof)
    error = await theirs.lost()
    assert isinstance(error, StreamReset)
    await line.quiet()


async def test_a_slow_reader_still_gets_all_that_was_written_before_the_close(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "LINGER_S", 0.005)
    looks: list[int] = []
    look = LinkSession._await_finish

    def counted(session: LinkSession, stream_id: int, *state: float) -> None:
        looks.append(stream_id)
        look(session, stream_id, *state)  # type: ignore[arg-type] # its own state, handed on

    monkeypatch.setattr(LinkSession, "_await_finish", counted)
    ours, theirs = await line.stream()
    theirs.transport.pause_reading()
    ours.transport.write(RANDOM)
    ours.transport.close()
    await line.rig.until(lambda: len(looks) > 5)
    theirs.transport.resume_reading()
    await theirs.until(lambda: theirs.has_eof)
    assert theirs.received == RANDOM
    await line.quiet()


@pytest.mark.parametrize("lost", ["gateway", "agent"])
async def test_a_lost_link_ends_all_its_streams_at_both_ends(line: Line, lost: str) -> None:
    pairs = [await line.stream() for _ in range(10)]
    await end(line.gateway if lost == "gateway" else line.agent)
    for pair in pairs:
        ours, theirs = pair if lost == "gateway" else reversed(pair)
        assert isinstance(await ours.lost(), LinkLost)
        error = await theirs.lost()
        assert isinstance(error, StreamReset)
        assert error.code is ResetCode.LINK_LOST
    survivor = line.agent if lost == "gateway" else line.gateway
    await line.rig.until(lambda: survivor.stream_count == 0)


# -- protocols that fail


class Broken(Pipe):
    """Fails where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._break("connection_made")

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._break("data_received")

    def eof_received(self) -> bool:
        self._break("eof_received")
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._break("connection_lost")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._break("resume_writing")

    def _break(self, where: str) -> None:
        if where == self.where:
            raise ZeroDivisionError(where)


@pytest.mark.parametrize(
    "where",
    ["connection_made", "data_received", "eof_received", "connection_lost", "resume_writing"],
)
@pytest.mark.parametrize("pause", [False, True])
async def test_a_failing_protocol_costs_its_stream_alone(
    watched: Line, loop_errors: list[dict[str, Any]], where: str, pause: bool
) -> None:
    good, heard = await watched.stream()
    watched.pipes._make = lambda: Broken(where)
    ours, broken = await watched.stream()
    if pause and where != "connection_made":
        broken.transport.pause_reading()
    ours.transport.write(b"x")
    broken.transport.write(RANDOM)
    if where == "eof_received":
        ours.transport.write_eof()
    await watched.rig.until(lambda: where == "connection_made" or bool(ours.received))
    if where == "connection_lost":
        ours.transport.abort()
    if pause and where != "connection_made":
        broken.transport.resume_reading()
    await broken.lost()
    good.transport.write(b"still here")
    await heard.until(lambda: heard.received == b"still here")
    assert [str(context["exception"]) for context in loop_errors] == [where]
    assert isinstance(loop_errors[0]["exception"], ZeroDivisionError)


async def test_a_protocol_that_cannot_bear_its_end_keeps_it_from_no_other(
    watched: Line, loop_errors: list[dict[str, Any]]
) -> None:
    watched.pipes._make = lambda: Broken("connection_lost")
    pairs = [await watched.stream() for _ in range(3)]
    await end(watched.agent)
    for ours, broken in pairs:
        await broken.lost()
        await ours.lost()
    assert len(loop_errors) == 3


async def test_an_acceptor_that_fails_refuses_its_stream(
    watched: Line, loop_errors: list[dict[str, Any]]
) -> None:
    good, heard = await watched.stream()

    def fail() -> Pipe:
        raise ZeroDivisionError

    watched.pipes._make = fail
    with pytest.raises(StreamReset) as caught:
        await watched.gateway.open_stream(TUNNEL_ID, Pipe())
    assert caught.value.code is ResetCode.INTERNAL_ERROR
    good.transport.write(b"still here")
    await heard.until(lambda: heard.received == b"still here")
    assert len(loop_errors) == 1
    await watched.rig.until(lambda: watched.agent.stream_count == 1)


# -- what else a transport says


async def test_a_transport_knows_who_dials_and_has_no_socket(line: Line) -> None:
    ours, theirs = await line.stream()
    assert theirs.transport.get_extra_info("byoai.peer") == "gateway-1"
    for pipe in (ours, theirs):
        assert pipe.transport.get_extra_info("socket") is None
        assert pipe.transport.get_protocol() is pipe


async def test_a_protocol_can_be_replaced(line: Line) -> None:
    ours, theirs = await line.stream()
    new = Pipe()
    theirs.transport.set_protocol(new)
    new._transport = theirs.transport
    ours.transport.write(b"for the new one")
    await new.until(lambda: new.received == b"for the new one")
    assert theirs.received == b""


async def test_write_marks_can_be_set(line: Line) -> None:
    ours, theirs = await line.stream()
    theirs.transport.pause_reading()
    ours.transport.set_write_buffer_limits(high=10)
    assert ours.transport.get_write_buffer_limits() == (2, 10)
    ours.transport.write(bytes(11))
    assert ours.is_paused
    await ours.until(lambda: not ours.is_paused)


async def test_bytes_that_follow_open_in_the_same_message_are_not_lost(line: Line) -> None:
    class Eager(Pipe):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert isinstance(transport, StreamTransport)
            transport.write(b"at once")

    line.pipes._make = Eager
    ours, theirs = await line.stream(Eager())
    await theirs.until(lambda: theirs.received == b"at once")
    await ours.until(lambda: ours.received == b"at once")
