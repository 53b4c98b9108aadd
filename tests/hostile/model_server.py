"""`python -m hostile.model_server`: streams whose chunks are numbered and stamped, or nothing.

A process of its own. A request with `hostile: "silent"` in its body is never answered. Any other is
answered with a stream of chunks, each with its number and the monotonic time at which it was
written, until `/finish` is called; the last chunk has the count of those before it.
"""

import asyncio
import json
import sys
import time
from typing import Final, cast

import httptools
import uvloop

PACE_S: Final = 0.05
HOST: Final = "127.0.0.1"
EVENT: Final = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1754300000,'
    b'"model":"hostile","choices":[{"index":0,"delta":{"content":"@%019d#%08d"},'
    b'"finish_reason":null}]}\n\n'
)
FINISH: Final = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1754300000,'
    b'"model":"hostile","choices":[{"index":0,"delta":{"content":"=%08d"},'
    b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
MODELS: Final = b'{"object":"list","data":[{"id":"hostile","object":"model","owned_by":"us"}]}'
SILENT: Final = b'"silent"'


def chunk(event: bytes) -> bytes:
    """Return an event in an HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(event), event)


def answer(body: bytes) -> bytes:
    """Return a whole JSON response."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


class Connection(asyncio.Protocol):
    """One connection: one request after the other."""

    streaming: Final[set["Connection"]] = set()
    silent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._parser = httptools.HttpRequestParser(self)
        self._body = self._url = b""
        self._number = 0

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.streaming.discard(self)

    def on_message_begin(self) -> None:
        self._body = self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._url == b"/finish":
            self._finish_all()
        elif self._url == b"/silent":
            self._transport.write(answer(b"%d" % Connection.silent))
        elif self._url.startswith(b"/v1/models"):
            self._transport.write(answer(MODELS))
        elif SILENT in self._body:
            Connection.silent += 1
        else:
            self._number = 0
            self._transport.write(STREAM_HEAD)
            self.streaming.add(self)
            self._send(asyncio.get_running_loop().time())

    def _send(self, due: float) -> None:
        if self not in self.streaming:
            return
        self._transport.write(chunk(EVENT % (time.monotonic_ns(), self._number)))
        self._number += 1
        asyncio.get_running_loop().call_at(due + PACE_S, self._send, due + PACE_S)

    def _finish_all(self) -> None:
        for connection in tuple(self.streaming):
            connection.finish()
        self._transport.write(answer(b"{}"))

    def finish(self) -> None:
        """End the stream with the count of its chunks."""
        self.streaming.discard(self)
        self._transport.write(chunk(FINISH % self._number) + b"0\r\n\r\n")


async def serve() -> None:
    """Serve on a port of the kernel's choice, printed on standard output, until ended."""
    server = await asyncio.get_running_loop().create_server(Connection, HOST, 0, backlog=1024)
    port: int = server.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"event": "model_server.ready", "port": port}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
