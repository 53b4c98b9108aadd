"""The measuring upstream: a model server that costs next to nothing and stamps what it sends.

A process of its own, so that its CPU is nobody else's. What it does is said in the request
body, in `bench` beside the usual fields; the paths are OpenAI's, because the agent lets nothing
else pass. Each SSE chunk carries the monotonic time at which it was written: on one machine that
clock is the same for every process, so the reader of the stream can tell the lag.

It answers no errors and knows no limits: it is reached over loopback by the benchmark alone.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import cast

import httptools
import msgspec
import uvloop

CHUNK_S = 0.02
"""50 chunks/s, what a fast model streams to one client."""

CHUNK = (
    b'data: {"id":"chatcmpl-9f3c1a7be52d4c08","object":"chat.completion.chunk",'
    b'"created":1754300000,"model":"bench","choices":[{"index":0,"delta":{"content":"@%019d"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
"""The stamp is the content: whatever reads and writes events anew keeps that."""

CHUNKS_PER_BURST_WRITE = 64
GOLDEN = 0.618033988749895
"""Successive multiples of it spread over a period as evenly as any number of streams can be."""

TINY_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1754300000,"model":"bench",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"Far."},'
    b'"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":14,"completion_tokens":2,"total_tokens":16}}'
)
MODELS = b'{"object":"list","data":[{"id":"bench","object":"model","owned_by":"bench"}]}'
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
FINISH = (
    b'data: {"id":"chatcmpl-9f3c1a7be52d4c08","object":"chat.completion.chunk",'
    b'"created":1754300000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
)
DONE = b"%x\r\n%b\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n" % (len(FINISH), FINISH)


class Order(msgspec.Struct, frozen=True):
    """What one request asks for: `tiny`, `paced` or `burst`, and how many chunks."""

    mode: str = "tiny"
    chunks: int = 0


class Body(msgspec.Struct, frozen=True):
    """The part of a request body that matters here; the rest is ignored."""

    bench: Order = Order()


def stamped_chunk() -> bytes:
    """One SSE event in one HTTP chunk, stamped now."""
    event = CHUNK % time.monotonic_ns()
    return b"%x\r\n%s\r\n" % (len(event), event)


def answer(body: bytes) -> bytes:
    """A whole small response."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


class Upstream(asyncio.Protocol):
    """One connection: parses requests and answers each as ordered."""

    streams_begun = 0

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._decode = msgspec.json.Decoder(Body).decode
        self._next: asyncio.Handle | None = None
        self._resume: Callable[[], None] | None = None
        self._is_paused = False
        self._remaining = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._resume is not None:
            self._resume()

    def on_message_begin(self) -> None:
        self._body = b""
        self._body_bytes = 0
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes < 65536:
            self._body += body

    def on_message_complete(self) -> None:
        if self._url.startswith(b"/v1/models"):
            self._transport.write(answer(MODELS))
        elif self._url.startswith(b"/v1/audio"):
            self._transport.write(answer(b'{"text":"%d"}' % self._body_bytes))
        else:
            self._obey(self._decode(self._body).bench)

    def _obey(self, order: Order) -> None:
        self._remaining = order.chunks
        match order.mode:
            case "paced":
                self._transport.write(STREAM_HEAD)
                self._transport.write(stamped_chunk())
                Upstream.streams_begun += 1
                phase = (Upstream.streams_begun * GOLDEN % 1) * CHUNK_S
                due = self._loop.time() + phase
                self._next = self._loop.call_at(due, self._send_paced, due)
            case "burst":
                self._transport.write(STREAM_HEAD)
                self._batch = stamped_chunk() * CHUNKS_PER_BURST_WRITE
                self._resume = self._send_burst
                self._send_burst()
            case _:
                self._transport.write(answer(TINY_ANSWER))

    def _send_paced(self, due: float) -> None:
        if self._remaining <= 0:
            self._transport.write(DONE)
            return
        self._remaining -= 1
        self._transport.write(stamped_chunk())
        due += CHUNK_S
        self._next = self._loop.call_at(due, self._send_paced, due)

    def _send_burst(self) -> None:
        """One batch for each turn of the loop, for as long as the reader keeps up."""
        if self._is_paused:
            return
        if self._remaining <= 0:
            self._resume = None
            self._transport.write(DONE)
            return
        self._remaining -= CHUNKS_PER_BURST_WRITE
        self._transport.write(self._batch)
        self._next = self._loop.call_soon(self._send_burst)


async def serve() -> None:
    """Serve on a port of the kernel's choice, said on standard output, until ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=1024)
    port: int = server.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"event": "upstream.ready", "port": port}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
