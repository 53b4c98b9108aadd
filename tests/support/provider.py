"""A provider that misbehaves exactly as ordered: raw HTTP over asyncio, one script a request.

What is ordered next is said with `expect`, one script for each coming request; without an order
it answers as a sound provider would. It notes every request, and the moment at which a client
left before it had its answer. The scripts are made in `provider_script`.
"""

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import msgspec

from support.loop_clock import pass_time
from support.provider_script import (
    MODEL,
    Close,
    Die,
    Endless,
    Hang,
    Pause,
    Script,
    Step,
    Until,
    chat_answer,
    chat_events,
    completion_events,
    messages_events,
    responses_events,
    stream,
    whole,
)

HOST = "127.0.0.1"
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: the connection ends with a reset."""


@dataclass(slots=True)
class Request:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    """With lower-case names."""
    body: bytes
    connection: int
    """The how-manieth connection it came on: a pool's reuse shows here."""
    gone: asyncio.Future[None] = field(repr=False)
    """Is done once the client left before the script had ended."""

    @property
    def json(self) -> Any:
        """The body."""
        return msgspec.json.decode(self.body)

    async def client_gone(self) -> None:
        """Wait until the client has left; the test's own limit ends a wait for one that stays."""
        await asyncio.shield(self.gone)


STREAMS = {
    "/chat/completions": chat_events,
    "/completions": completion_events,
    "/messages": messages_events,
    "/responses": responses_events,
}


_COMMON = {"id": "1", "model": MODEL}
_PICTURE = {"created": 1, "data": [{"b64_json": "aGVsbG8="}]}
_TRANSCRIPT = {"text": "hello there"}
ANSWERS: dict[str, dict[str, Any]] = {
    "/chat/completions": chat_answer(),
    "/completions": {**_COMMON, "choices": [{"index": 0, "text": "Hello there"}]},
    "/messages": {**_COMMON, "type": "message", "content": [{"type": "text", "text": "Hello"}]},
    "/messages/count_tokens": {"input_tokens": 3},
    "/responses": {**_COMMON, "object": "response", "status": "completed", "output": []},
    "/embeddings": {**_COMMON, "data": [{"index": 0, "embedding": [0.5]}]},
    "/rerank": {**_COMMON, "results": [{"index": 0, "relevance_score": 0.5}]},
    "/score": {**_COMMON, "data": [{"index": 0, "score": 0.5}]},
    "/classify": {**_COMMON, "data": [{"index": 0, "label": "a"}]},
    "/images/generations": _PICTURE,
    "/images/edits": _PICTURE,
    "/images/variations": _PICTURE,
    "/audio/transcriptions": _TRANSCRIPT,
    "/audio/translations": _TRANSCRIPT,
}
"""In one piece."""


def sound(request: Request) -> Script:
    """What a provider answers that is well."""
    path = request.target.partition("?")[0].rpartition("/v1")[2]
    if path == "/models":
        return whole({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
    if path.startswith("/models/"):
        return whole({"id": path.removeprefix("/models/"), "object": "model"})
    if path in STREAMS and request.json.get("stream") is True:
        return stream(*STREAMS[path]("Hello", " there"))
    return whole(ANSWERS.get(path, {"path": path}))


class Provider:
    """The provider's state; `providing` runs it."""

    def __init__(self) -> None:
        self.url = ""
        """Up to and with /v1, as `default_provider.base_url` wants it."""
        self.port = 0
        self.requests: list[Request] = []
        self.connections = 0
        self.otherwise: Callable[[Request], Script] = sound
        self.greeting: Script = ()
        """Played on every new connection before anything is read from it."""
        self._expected: deque[Script] = deque()
        self._changed = asyncio.Condition()
        self._open: set[Connection] = set()

    def expect(self, *scripts: Script) -> None:
        """Play these, one for each coming request."""
        self._expected.extend(scripts)

    def always(self, script: Script) -> None:
        """Play this for every request that nothing else was ordered for."""
        self.otherwise = lambda _: script

    async def request(self, number: int = 0) -> Request:
        """The request of this number, counted from 0, now or when it comes."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.requests) > number)
        return self.requests[number]

    async def note(self, request: Request) -> Script:
        """A request has come; answers what is to happen."""
        async with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        return self._expected.popleft() if self._expected else self.otherwise(request)

    def opened(self, connection: "Connection") -> int:
        """A connection has come; answers its number."""
        self._open.add(connection)
        self.connections += 1
        return self.connections - 1

    def closed(self, connection: "Connection") -> None:
        """A connection has ended."""
        self._open.discard(connection)

    async def drop_all(self) -> None:
        """Cut every connection, idle ones too."""
        tasks = [connection.cut() for connection in tuple(self._open)]
        await asyncio.gather(*tasks, return_exceptions=True)


class Connection(asyncio.Protocol):
    """One connection: requests one after another, each with its script."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._arrived: asyncio.Queue[Request] = asyncio.Queue()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._under_way: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        # Not 0: TLS of the standard library would never let it go on.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._parser = httptools.HttpRequestParser(self)
        self._number = self._provider.opened(self)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._provider.closed(self)
        self._may_write.set()
        self._task.cancel()
        if self._under_way is not None and not self._under_way.gone.done():
            self._under_way.gone.set_result(None)

    def cut(self) -> asyncio.Task[None]:
        """End it without a word."""
        self._under_way = None
        self._transport.abort()
        self._task.cancel()
        return self._task

    def on_message_begin(self) -> None:
        self._target, self._body = b"", bytearray()
        self._headers: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._arrived.put_nowait(
            Request(
                method=self._parser.get_method().decode(),
                target=self._target.decode(),
                headers=self._headers,
                body=bytes(self._body),
                connection=self._number,
                gone=asyncio.get_running_loop().create_future(),
            )
        )

    async def _serve(self) -> None:
        try:
            await self._play(self._provider.greeting)
            while True:
                request = await self._arrived.get()
                self._under_way = request
                await self._play(await self._provider.note(request))
                self._under_way = None
        finally:
            # A script that failed must not leave its client waiting.
            self._transport.abort()

    async def _play(self, script: Script) -> None:
        for step in script:
            await self._obey(step)

    async def _obey(self, step: Step) -> None:
        match step:
            case bytes():
                await self._write(step)
            case Pause(seconds, times):
                for _ in range(times):
                    await pass_time(seconds)
            case Until(event):
                await event.wait()
            case Hang(seconds):
                await pass_time(seconds)
                await asyncio.Event().wait()
            case Endless(data):
                while True:
                    await self._write(data)
            case Close():
                await self._close()
            case Die(with_reset):
                self._die(with_reset=with_reset)
                await asyncio.Event().wait()

    async def _write(self, data: bytes) -> None:
        self._transport.write(data)
        await self._may_write.wait()
        # The reader may be on this loop, and is to see every piece by itself.
        await asyncio.sleep(0)

    async def _close(self) -> None:
        self._under_way = None
        self._transport.close()
        await asyncio.Event().wait()

    def _die(self, *, with_reset: bool) -> None:
        self._under_way = None
        if with_reset:
            sock: socket.socket = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()


@asynccontextmanager
async def providing(
    context: ssl.SSLContext | None = None, port: int = 0
) -> AsyncGenerator[Provider, None]:
    """Serve on loopback, over TLS when a context is given, on a port of the kernel's choice."""
    provider = Provider()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(provider), HOST, port, ssl=context)
    provider.port = server.sockets[0].getsockname()[1]
    provider.url = f"{'https' if context else 'http'}://{HOST}:{provider.port}/v1"
    try:
        yield provider
    finally:
        server.close()
        await provider.drop_all()
        await server.wait_closed()
