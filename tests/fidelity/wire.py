"""One request and its answer over a socket of their own, byte for byte."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

LIMIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it came; the framing is taken off."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_cut: bool
    """Whether the connection ended before the answer did."""


ENDLESS: Final = Answer(-1, (), b"", is_cut=True)
"""No end came in time."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server on loopback that speaks plain HTTP."""

    port: int
    token: str = field(default="", repr=False)
    """Of the user who asks there."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request as it is written."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def written(self) -> bytes:
        """The bytes of it."""
        fields = [("host", "127.0.0.1"), ("connection", "close"), *self.headers]
        if self.method == "POST":
            fields.append(("content-length", str(len(self.body))))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return f"{self.method} {self.target} HTTP/1.1\r\n{head}\r\n".encode() + self.body


@dataclass(frozen=True, slots=True)
class Reads:
    """Says when a client has got what is awaited of a body, or anything."""

    event: asyncio.Event
    awaited: bytes = b""

    def look(self, body: bytes) -> None:
        """Look at what has come so far."""
        if body and self.awaited in body:
            self.event.set()


async def exchange(port: int, message: Message, reads: Reads) -> Answer:
    """Send a request on a new connection and read until the server ends it.

    `reads` is told of the answer's body as it comes.
    """
    try:
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(message.written())
                return parsed(*await received(reader, reads))
            finally:
                writer.transport.abort()
    except TimeoutError:
        return ENDLESS


async def received(reader: asyncio.StreamReader, reads: Reads) -> tuple[bytes, bool]:
    """All bytes until the end, and whether it was a reset."""
    data = bytearray()
    try:
        while not is_through(data):
            piece = await reader.read(65536)
            if not piece:
                return bytes(data), False
            data += piece
            reads.look(final(bytes(data))[2])
    except ConnectionError:
        return bytes(data), True
    return bytes(data), False


def is_through(data: bytearray) -> bool:
    """Whether nothing more is due: not every server ends a connection that it was asked to end."""
    if data.find(b"transfer-encoding", 0, 2000) >= 0 and not data.endswith(b"\r\n\r\n"):
        return False
    head, separator, body = final(bytes(data))
    if not separator:
        return False
    fields = dict(fields_of(head))
    if "transfer-encoding" in fields:
        return unchunked(body)[1]
    length = fields.get("content-length", "")
    return length.isdecimal() and len(body) >= int(length)


def final(data: bytes) -> tuple[bytes, bytes, bytes]:
    """The final answer's head, its end and its body; interim ones are passed over."""
    head, separator, body = data.partition(b"\r\n\r\n")
    while head[9:10] == b"1" and separator:
        head, separator, body = body.partition(b"\r\n\r\n")
    return head, separator, body


def parsed(data: bytes, is_reset: bool) -> Answer:
    """Take the framing off; what breaks the rules of HTTP is a cut answer without a status."""
    head, separator, body = final(data)
    status = head[9:12]
    if not (separator and head.startswith(b"HTTP/1.1 ") and status.isdigit()):
        return Answer(0, (), b"", is_cut=True)
    fields = fields_of(head)
    names = dict(fields)
    if "transfer-encoding" in names:
        body, is_whole = unchunked(body)
        return Answer(int(status), fields, body, not is_whole)
    length = names.get("content-length")
    if length is not None and length.isdecimal():
        return Answer(int(status), fields, body[: int(length)], len(body) < int(length))
    return Answer(int(status), fields, body, is_reset)


def fields_of(head: bytes) -> tuple[tuple[str, str], ...]:
    """The header fields, with names in lower case."""
    lines = [line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:]]
    return tuple((name.lower(), value.strip()) for name, _, value in lines)


def unchunked(data: bytes) -> tuple[bytes, bool]:
    """The content of chunks (RFC 9112, 7.1), and whether the last one is there."""
    content, at = bytearray(), 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end].partition(b";")[0], 16)
        if size == 0:
            return bytes(content), data.find(b"\r\n\r\n", end) >= 0
        content += data[end + 2 : end + 2 + size]
        at = end + size + 4
    return bytes(content), False
