"""Protocols that note what a stream does to them."""

import asyncio
from collections.abc import Callable

from byoai_shared.link.stream import StreamTransport
from support.links import PATIENCE_S


class Pipe(asyncio.Protocol):
    """Keeps what comes, and writes as fast as it may."""

    def __init__(self, *, keeps_open: bool = False) -> None:
        self.keeps_open = keeps_open
        self._received = bytearray()
        self.has_eof = False
        self.is_paused = False
        self.pauses = 0
        self.most_unsent = 0
        self.losses: list[Exception | None] = []
        self._transport: StreamTransport | None = None
        self._changed = asyncio.Event()

    @property
    def received(self) -> bytes:
        """What came so far."""
        return bytes(self._received)

    @property
    def transport(self) -> StreamTransport:
        """The stream."""
        assert self._transport is not None
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, StreamTransport)
        assert self._transport is None
        self._transport = transport
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        assert not self.losses
        assert not self.has_eof
        self._received += data
        self._changed.set()

    def eof_received(self) -> bool:
        self.has_eof = True
        self._changed.set()
        return self.keeps_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.losses.append(exc)
        self._changed.set()

    def pause_writing(self) -> None:
        assert not self.is_paused
        self.is_paused = True
        self.pauses += 1

    def resume_writing(self) -> None:
        assert self.is_paused
        self.is_paused = False
        self._changed.set()

    async def until(self, what: Callable[[], bool]) -> None:
        """Wait for something that a call to this protocol brings."""
        async with asyncio.timeout(PATIENCE_S):
            while not what():
                self._changed.clear()
                await self._changed.wait()

    async def write(self, data: bytes, piece: int = 50_000) -> None:
        """Write in pieces, as back-pressure allows."""
        for at in range(0, len(data), piece):
            await self.until(lambda: not self.is_paused or bool(self.losses))
            self.transport.write(data[at : at + piece])
            self.most_unsent = max(self.most_unsent, self.transport.get_write_buffer_size())

    async def lost(self) -> Exception | None:
        """Wait for the end; what it was."""
        await self.until(lambda: bool(self.losses))
        assert len(self.losses) == 1
        return self.losses[0]


class Pipes:
    """An agent's acceptor that keeps the protocols it made."""

    def __init__(self, make: Callable[[], Pipe] = Pipe) -> None:
        self.made: list[Pipe] = []
        self._make = make

    def __call__(self, stream: StreamTransport) -> Pipe:
        pipe = self._make()
        self.made.append(pipe)
        return pipe
