"""Transports without sockets: one that records, and a pair that carries bytes in memory."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, cast


async def turns(count: int = 5) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


class RecordingTransport(asyncio.Transport):
    """Remembers what its protocol does to it. The test plays the peer by calling the protocol."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.writes: list[bytes] = []
        self._paused = False
        self.is_eof_written = False
        self.is_aborted = False
        self.closed = asyncio.Event()
        self._is_closing = False
        protocol.connection_made(self)

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)

    def take(self) -> bytes:
        data = self.written
        self.writes.clear()
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_closing and data:
            self.writes.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_eof_written = True

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._lose()

    def abort(self) -> None:
        self.is_aborted = True
        self._lose()

    def _lose(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self.closed.set()
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def is_paused(self) -> bool:
        return self._paused

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def get_write_buffer_size(self) -> int:
        return 0


class PipeTransport(asyncio.Transport):
    """One end of an in-memory pipe, as unforgiving as a stream of a link.

    Views handed to the protocol die with the call; above `high` unread bytes the writer is
    paused; `piece` cuts deliveries. `cut` drops the connection with an error on both ends.
    """

    def __init__(self, *, piece: int = 1 << 30, high: int = 64 * 1024) -> None:
        super().__init__()
        self.peer: PipeTransport
        self.protocol: asyncio.Protocol | None = None
        self.piece = piece
        self.high = high
        self.sent: list[bytes] = []  # every write, for the tests to look at
        self.peak = 0  # of bytes written and not yet delivered
        self._paused = False
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._eof_sent = False
        self._eof_pending = False
        self._closing = False
        self._lost = False
        self._writer_paused = False
        self._scheduled = False

    def start(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol
        protocol.connection_made(self)
        self._schedule()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._eof_sent or not data:
            return
        copy = bytes(data)
        self.sent.append(copy)
        peer = self.peer
        peer._inbox.append(copy)
        peer._inbox_bytes += len(copy)
        self.peak = max(self.peak, peer._inbox_bytes)
        if peer._inbox_bytes > self.high and not self._writer_paused and self.protocol:
            self._writer_paused = True
            self.protocol.pause_writing()
        peer._schedule()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._eof_sent:
            self._eof_sent = True
            self.peer._eof_pending = True
            self.peer._schedule()

    def close(self) -> None:
        if not self._closing:
            self.write_eof()
            self._closing = True
            asyncio.get_running_loop().call_soon(self._lose, None)

    def abort(self) -> None:
        self.cut(None, ConnectionResetError("peer aborted"))

    def cut(self, ours: Exception | None, theirs: Exception | None) -> None:
        loop = asyncio.get_running_loop()
        for end, error in ((self, ours), (self.peer, theirs)):
            end._closing = True
            end._inbox.clear()
            loop.call_soon(end._lose, error)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._schedule()

    def get_write_buffer_size(self) -> int:
        return self.peer._inbox_bytes

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"byoai.peer": "pipe"}.get(name, default)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if self._lost or self._paused or self.protocol is None:
            return
        if self._inbox:
            data = self._inbox.popleft()
            if len(data) > self.piece:
                self._inbox.appendleft(data[self.piece :])
                data = data[: self.piece]
            self._inbox_bytes -= len(data)
            with memoryview(bytearray(data)) as view:
                self.protocol.data_received(cast("bytes", view))
            self._resume_writer()
            self._schedule()
        elif self._eof_pending:
            self._eof_pending = False
            if not self.protocol.eof_received():
                self.close()

    def _resume_writer(self) -> None:
        writer = self.peer
        if writer._writer_paused and self._inbox_bytes <= self.peer.high // 4:
            writer._writer_paused = False
            if writer.protocol is not None and not writer._lost:
                writer.protocol.resume_writing()

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._closing = True
            # The ends keep each other; let them not keep what runs on them as well.
            protocol, self.protocol = self.protocol, None
            if protocol is not None:
                protocol.connection_lost(error)


def pipe(*, piece: int = 1 << 30, high: int = 64 * 1024) -> tuple[PipeTransport, PipeTransport]:
    """Return both ends of a new pipe; `start` each with its protocol."""
    left, right = PipeTransport(piece=piece, high=high), PipeTransport(piece=piece, high=high)
    left.peer, right.peer = right, left
    return left, right
