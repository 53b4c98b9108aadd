"""A forward proxy on loopback, as a company network has one."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Proxy:
    """An HTTP CONNECT or SOCKS5 proxy that leads every name to one port of this host."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.asked: list[bytes] = []
        self.answer = b"HTTP/1.1 200 Connection established\r\n\r\n"
        self._pipes: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        ends = [writer]
        self._ends.add(writer)
        try:
            first = await reader.readexactly(1)
            await (self._socks if first == b"\x05" else self._connect)(reader, writer)
            near, near_out = await asyncio.open_connection("127.0.0.1", self._port)
            ends.append(near_out)
            await asyncio.gather(pump(reader, near_out), pump(near, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._pipes.discard(task)
            self._ends.discard(writer)
            for end in ends:
                end.close()
            for end in ends:
                with contextlib.suppress(ConnectionError):
                    await end.wait_closed()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(b"C" + await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answer)
        if b" 200 " not in self.answer:
            raise ConnectionError

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (count,) = await reader.readexactly(1)
        await reader.readexactly(count)
        writer.write(b"\x05\x00")
        *_, kind = await reader.readexactly(4)
        is_name = kind == 3  # RFC 1928 section 5; else an IPv4 address
        size = (await reader.readexactly(1))[0] if is_name else 4
        self.asked.append(await reader.readexactly(size))
        await reader.readexactly(2)
        writer.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")

    async def end(self) -> None:
        """Cut what still goes through, and wait until it is gone."""
        for writer in self._ends:
            writer.transport.abort()
        await asyncio.gather(*self._pipes)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def proxy_to(port: int) -> AsyncGenerator[tuple[Proxy, str]]:
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield proxy, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await proxy.end()
        await server.wait_closed()
