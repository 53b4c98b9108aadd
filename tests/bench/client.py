"""The load generator's HTTP clients: raw `httptools` over a connection, nothing that is not needed.

They are cheap, not correct: a response that is not a 200 or a connection that ends early fails the
whole measurement. No retry, no pool.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import cast

import httptools

UPLOAD_BLOCK = bytes(256 * 1024)
BOUNDARY = "bench-boundary"
STAMP = b'"@'
"""What the upstream puts before the time in the content of its chunks."""
MULTIPART_HEAD = (
    f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="model"\r\n\r\nbench\r\n'
    f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n'
    "content-type: application/octet-stream\r\n\r\n"
).encode()
MULTIPART_TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


class MeasurementFailed(Exception):
    """The chain under measurement did not answer as it should."""


def request_head(path: str, headers: Mapping[str, str], content_length: int, kind: str) -> bytes:
    """The head of a POST."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST {path} HTTP/1.1\r\nhost: bench.test\r\n{extra}"
        f"content-type: {kind}\r\ncontent-length: {content_length}\r\n\r\n"
    ).encode()


def chat_request(headers: Mapping[str, str], mode: str, chunks: int = 0) -> bytes:
    """A chat completion that also tells the measuring upstream what to do."""
    body = json.dumps(
        {
            "model": "bench",
            "stream": mode != "tiny",
            "messages": [{"role": "user", "content": "How far is it to the moon?"}],
            "bench": {"mode": mode, "chunks": chunks},
        }
    ).encode()
    return request_head("/v1/chat/completions", headers, len(body), "application/json") + body


class Client(asyncio.Protocol):
    """One keep-alive connection; `done` fails when anything is not as it should be."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"{error!r} in {data[:300]!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"connection lost: {exc!r}")

    def on_headers_complete(self) -> None:
        if (status := self._parser.get_status_code()) != 200:
            self.fail(f"answered {status}")

    def on_message_complete(self) -> None:
        self.finish()

    def fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(MeasurementFailed(why))

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        """End the connection; a failure from now on interests nobody."""
        if not self.done.done():
            self.done.cancel()
        self.transport.abort()


class ClosedLoopClient(Client):
    """Sends the next request as soon as the last is answered."""

    def __init__(self, request: bytes, latencies_ns: list[int]) -> None:
        super().__init__()
        self._request = request
        self._latencies_ns = latencies_ns

    def send(self) -> None:
        self._sent_ns = time.monotonic_ns()
        self.transport.write(self._request)

    def on_message_complete(self) -> None:
        if not self.done.done():
            self._latencies_ns.append(time.monotonic_ns() - self._sent_ns)
            self.send()


class StreamClient(Client):
    """Reads an SSE stream and notes for each event how long it was under way."""

    def __init__(self, request: bytes, lags_ns: list[int]) -> None:
        super().__init__()
        self.first_event: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._request = request
        self._lags_ns = lags_ns
        self._rest = b""

    def send(self) -> None:
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now_ns = time.monotonic_ns()
        super().data_received(data)

    def fail(self, why: str) -> None:
        super().fail(why)
        if not self.first_event.done():
            self.first_event.set_exception(MeasurementFailed(why))

    def on_body(self, body: bytes) -> None:
        *events, self._rest = (self._rest + body).split(b"\n\n")
        for event in events:
            at = event.find(STAMP)
            if at < 0:
                continue
            self._lags_ns.append(self._now_ns - int(event[at + 2 : at + 21]))
            if not self.first_event.done():
                self.first_event.set_result(self._now_ns)


class BurstClient(Client):
    """Counts the events of a stream that comes as fast as it can."""

    def __init__(self, request: bytes) -> None:
        super().__init__()
        self._request = request
        self.events = 0

    def send(self) -> None:
        self.transport.write(self._request)

    def on_body(self, body: bytes) -> None:
        self.events += body.count(b"\n\n")


class StalledClient(Client):
    """Asks for a long answer and stops reading at its first bytes."""

    def __init__(self, request: bytes) -> None:
        super().__init__()
        self._request = request
        self.has_stalled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self) -> None:
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.pause_reading()
        if not self.has_stalled.done():
            self.has_stalled.set_result(None)

    def fail(self, why: str) -> None:
        super().fail(why)
        if not self.has_stalled.done():
            self.has_stalled.set_exception(MeasurementFailed(why))


class UploadClient(Client):
    """Sends one large multipart body, no faster than it is taken."""

    def __init__(self, headers: Mapping[str, str], size: int) -> None:
        super().__init__()
        self._headers = headers
        self._size = size
        self._left = size
        self._is_paused = False
        self._answer = b""

    def send(self) -> None:
        length = len(MULTIPART_HEAD) + self._size + len(MULTIPART_TAIL)
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        head = request_head("/v1/audio/transcriptions", self._headers, length, kind)
        self.transport.write(head + MULTIPART_HEAD)
        self._pump()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._pump()

    def _pump(self) -> None:
        while self._left and not self._is_paused:
            block = UPLOAD_BLOCK[: self._left]
            self._left -= len(block)
            self.transport.write(block)
            if not self._left:
                self.transport.write(MULTIPART_TAIL)

    def on_body(self, body: bytes) -> None:
        self._answer += body

    def on_message_complete(self) -> None:
        took = int(json.loads(self._answer)["text"])
        sent = len(MULTIPART_HEAD) + self._size + len(MULTIPART_TAIL)
        if took != sent:
            self.fail(f"the upstream took {took} of {sent} bytes")
        self.finish()
