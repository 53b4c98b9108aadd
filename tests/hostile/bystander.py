"""Another tenant, whose streams and requests go on beside an attack: each byte is checked.

Each stream's chunks have to be consecutive, none twice and none missing, and the last one says how
many there were. How long each was under way is noted for the window in which it came.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, cast

import httptools

from demo.stack import HOST, Stack, Tunnel, port_of

LONGEST_S: Final = 60.0
NAME: Final = "alice"


class BytesWrong(AssertionError):
    """A stream or an answer of the bystander is not what its model server sent."""


@dataclass(slots=True)
class Window:
    """What was seen between two moments."""

    lags_ns: list[int] = field(default_factory=list[int])
    byte_count: int = 0

    def percentile_ms(self, share: float) -> float:
        """Return the lag that this share of the chunks did not exceed; 0 without chunks."""
        ordered = sorted(self.lags_ns) or [0]
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6


class Reader(asyncio.Protocol):
    """One stream's client."""

    def __init__(self, request: bytes, window: Window) -> None:
        loop = asyncio.get_running_loop()
        self.window = window
        self.begun: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        """Done with the count of chunks when the stream is complete."""
        self._request = request
        self._rest = b""
        self._count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.window.byte_count += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the stream broke off after {self._count} chunks: {exc}")

    def on_headers_complete(self) -> None:
        if (status := self._parser.get_status_code()) != 200:
            self._fail(f"the request was answered {status}")

    def on_body(self, body: bytes) -> None:
        *events, self._rest = (self._rest + body).split(b"\n\n")
        for event in events:
            self._read(event)

    def _read(self, event: bytes) -> None:
        if (at := event.find(b'"@')) >= 0:
            sent_ns, _, number = event[at + 2 : at + 30].partition(b"#")
            if int(number) != self._count:
                self._fail(f"chunk {int(number)} came where {self._count} was due")
            self._count += 1
            self.window.lags_ns.append(time.monotonic_ns() - int(sent_ns))
            if not self.begun.done():
                self.begun.set_result(None)
        elif (at := event.find(b'"=')) >= 0:
            if int(event[at + 2 : at + 10]) != self._count:
                self._fail(f"{self._count} chunks came of {event[at + 2 : at + 10].decode()}")
            elif not self.ended.done():
                self.ended.set_result(self._count)

    def _fail(self, why: str) -> None:
        for future in (self.begun, self.ended):
            if not future.done():
                future.set_exception(BytesWrong(why))
                future.exception()  # it may be read later, or by one of the two only

    def close(self) -> None:
        """End the connection."""
        self._transport.abort()


def chat(tunnel: Tunnel, port: int, kind: str = "stream") -> bytes:
    """Return a request for a stream, or for one that never begins (`silent`)."""
    body = json.dumps(
        {
            "model": "hostile",
            "stream": True,
            "messages": [{"role": "user", "content": "How far is it to the moon?"}],
            "hostile": kind,
        }
    )
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {HOST}:{port}\r\n"
        f"authorization: Bearer {tunnel.token}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


class Bystander:
    """The tenant that nothing may happen to."""

    def __init__(self, stack: Stack, tunnel: Tunnel, server_port: int) -> None:
        self._gateway_port = port_of(stack.gateway_url)
        self._tunnel = tunnel
        self._server_port = server_port
        self._readers: list[Reader] = []
        self.window = Window()

    async def begin(self, count: int) -> None:
        """Open streams, each past its first chunk."""
        for _ in range(count):
            self._readers.append(await self._open())

    async def _open(self) -> Reader:
        request = chat(self._tunnel, self._gateway_port)
        _, reader = await asyncio.get_running_loop().create_connection(
            lambda: Reader(request, self.window), HOST, self._gateway_port
        )
        async with asyncio.timeout(LONGEST_S):
            await reader.begun
        return reader

    async def see(self, chunks: int) -> Window:
        """Return a new window of at least so many chunks of each stream."""
        window = self.new_window()
        await self.reach(window, chunks)
        return window

    async def reach(self, window: Window, chunks: int) -> None:
        """Wait until there are at least so many chunks of each stream in the present window."""
        wanted = chunks * len(self._readers)
        async with asyncio.timeout(LONGEST_S):
            while len(window.lags_ns) < wanted:
                self.check()
                await asyncio.sleep(0.01)

    def new_window(self) -> Window:
        """Count from now on in a new window."""
        self.window = Window()
        for reader in self._readers:
            reader.window = self.window
        return self.window

    def check(self) -> None:
        """Check that every stream is as it should be so far."""
        for reader in self._readers:
            if reader.ended.done():
                reader.ended.result()
                raise BytesWrong("a stream ended before it was to")

    async def ask(self) -> None:
        """Open a stream of its own in the middle of an attack, and leave it after a chunk."""
        reader = await self._open()
        reader.close()

    async def finish(self) -> int:
        """Let every stream end, and return how many chunks came; all of them are checked."""
        self.check()
        await tell(self._server_port, "/finish")
        async with asyncio.timeout(LONGEST_S):
            counts = [await reader.ended for reader in self._readers]
        for reader in self._readers:
            reader.close()
        return sum(counts)


async def tell(port: int, path: str) -> bytes:
    """Call the model server's own pages, past the gateway; return the body."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.rpartition(b"content-length: ")[2])
    body = await reader.readexactly(length)
    writer.close()
    return body


@asynccontextmanager
async def bystanding(stack: Stack, port: int, streams: int) -> AsyncGenerator[Bystander]:
    """Run a tenant's agent and streams while entered; all is checked when it is left in order.

    `port` is that of the model server.
    """
    tunnel = await stack.open_tunnel(NAME, [f"http://{HOST}:{port}"])
    bystander = Bystander(stack, tunnel, port)
    await bystander.begin(streams)
    yield bystander
    await bystander.finish()
