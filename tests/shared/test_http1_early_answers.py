"""An answer that comes before the request's body was read, with the connection reset behind it."""

import asyncio
import select
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
import uvloop

from byoai_shared import unread
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.errors import ConnectionClosed, TruncatedMessage
from byoai_shared.http1.framing import Open
from byoai_shared.http1.head import RequestHead
from byoai_shared.http1.incoming import IncomingBody
from byoai_shared.tls_transport import TlsTransport
from support.authority import tls_contexts
from support.wires import turns

HEAD = RequestHead("POST", "/v1/chat/completions", ((b"host", b"a"),))
LOOPS = (asyncio.new_event_loop, uvloop.new_event_loop)


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@dataclass
class Pair:
    """A client's connection and the socket at its other end, which a test reads and closes."""

    client: ClientConnection
    peer: socket.socket
    ours: int
    """The descriptor of the client's own socket."""

    def cut(self) -> None:
        """Close with unread bytes, which resets the connection; return when that has come."""
        self.peer.close()
        poll = select.poll()
        poll.register(self.ours, select.POLLIN)
        while not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(5_000)):
            pass


@asynccontextmanager
async def pair() -> AsyncGenerator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport, client = await asyncio.get_running_loop().create_connection(
            ClientConnection, *listener.getsockname()
        )
        peer, _ = listener.accept()
    with peer:
        yield Pair(client, peer, transport.get_extra_info("socket").fileno())
        client.abort()
        await turns(4)


def on(loop: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(work)


class Upload:
    """The body of a request, as much of it as a test sends."""

    def __init__(self, framing: int | Open) -> None:
        self.body = IncomingBody(self, framing, buffer_bytes=1 << 20, max_overhead_bytes=1 << 20)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("status", [400, 401, 404, 413])
@pytest.mark.parametrize("size", [0, 2, 5_000, 30_000])
def test_an_answer_is_read_although_sending_the_body_fails(
    loop: Callable[[], asyncio.AbstractEventLoop], status: int, size: int
) -> None:
    async def work() -> None:
        upload = Upload(10_000_000)
        async with pair() as both:
            asking = asyncio.ensure_future(both.client.request(HEAD, upload.body))
            await turns()
            upload.body.feed(b"x" * 1000)
            # From here on the loop does not run, so that it sees the answer after the failure.
            both.peer.sendall(answer(status, b"n" * size))
            both.cut()
            upload.body.feed(b"x" * 100_000)
            upload.body.feed(b"x" * 100_000)
            response = await asking
            assert response.head.status == status
            assert await response.read(size) == b"n" * size
            assert not both.client.is_reusable

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_body_that_was_there_as_a_whole_changes_nothing(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def work() -> None:
        async with pair() as both:
            asking = asyncio.ensure_future(both.client.request(HEAD, b"x" * 8_000_000))
            await turns()
            both.peer.recv(1000)
            both.peer.sendall(answer(413, b"too large"))
            both.cut()
            response = await asking
            assert (response.head.status, await response.read(100)) == (413, b"too large")

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("is_begun", [True, False])
def test_half_an_answer_before_a_reset_is_no_answer(
    loop: Callable[[], asyncio.AbstractEventLoop], is_begun: bool
) -> None:
    async def work() -> None:
        upload = Upload(Open.CHUNKED)
        async with pair() as both:
            asking = asyncio.ensure_future(both.client.request(HEAD, upload.body))
            await turns()
            upload.body.feed(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            if is_begun:
                both.peer.sendall(answer(413, b"n" * 50)[:-1])
            both.cut()
            upload.body.feed(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            if is_begun:
                with pytest.raises(TruncatedMessage):
                    await (await asking).read(100)
            else:
                with pytest.raises(ConnectionClosed):
                    await asking

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_read_after_a_reset_is_bounded(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "LIMIT_BYTES", 10_000)

    async def work() -> None:
        upload = Upload(10_000_000)
        async with pair() as both:
            asking = asyncio.ensure_future(both.client.request(HEAD, upload.body))
            await turns()
            upload.body.feed(b"x" * 1000)
            both.peer.sendall(answer(413, b"n" * 20_000))
            both.cut()
            upload.body.feed(b"x" * 100_000)
            with pytest.raises(TruncatedMessage):
                await (await asking).read(20_000)

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", [2, 30_000])
def test_an_answer_in_tls_is_read_although_sending_the_body_fails(
    loop: Callable[[], asyncio.AbstractEventLoop], size: int
) -> None:
    async def work() -> None:
        upload = Upload(10_000_000)
        server, trusting = tls_contexts()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peers: list[ssl.SSLSocket] = []

            def serve() -> None:
                peers.append(server.wrap_socket(listener.accept()[0], server_side=True))

            thread = threading.Thread(target=serve)
            thread.start()
            client = ClientConnection()
            session = TlsTransport(client, trusting, server_side=False, server_hostname="localhost")
            below, _ = await asyncio.get_running_loop().create_connection(
                lambda: session, *listener.getsockname()
            )
            await session.established()
            thread.join()
        (peer,) = peers
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        both = Pair(client, peer, below.get_extra_info("socket").fileno())
        asking = asyncio.ensure_future(client.request(HEAD, upload.body))
        await turns()
        upload.body.feed(b"x" * 1000)
        peer.sendall(answer(413, b"n" * size))
        both.cut()
        upload.body.feed(b"x" * 100_000)
        response = await asking
        assert (response.head.status, await response.read(size)) == (413, b"n" * size)

    on(loop, work())


@pytest.mark.parametrize("error", [None, RuntimeError()])
async def test_nothing_is_read_after_an_end_that_was_no_failure_of_the_socket(
    error: Exception | None,
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"late")

        class Holding(asyncio.Transport):
            def get_extra_info(self, name: str, default: Any = None) -> Any:
                return ours

        assert unread.unread_bytes(cast("asyncio.BaseTransport", Holding()), error) == b""
        assert unread.unread_bytes(Holding(), ConnectionResetError()) == b"late"
