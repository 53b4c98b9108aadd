"""The bytes of a body out of the bytes of a connection; exact about where it ends.

llhttp is not used here: it cannot stop after a message, does not say where one ended, and
takes chunk extensions and trailers without end. A `feed` takes what one read gave and returns
the payload in it as one piece, however many chunks it came in, so that one event stays one.
Payload that is a whole read is returned as it is, without a copy.

It refuses what RFC 9112 section 7.1 does: bare LF, blanks or signs in a chunk size, control
characters in an extension; extensions and trailers are dropped, and bounded in all.
"""

from typing import Protocol

from byoai_shared.http1.errors import RemoteProtocolError, TruncatedMessage
from byoai_shared.http1.framing import Framing, Open

_HEX = b"0123456789abcdefABCDEF"
_FIELD_TEXT = bytes(c for c in range(256) if c == 9 or (c >= 32 and c != 127))
_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MAX_SIZE_DIGITS = 15  # below 2**60
_MAX_LINE_BYTES = 4096


class Decoder(Protocol):
    """One body. `done` once it is complete; `rest` is then what came after it."""

    done: bool
    rest: bytes

    def feed(self, data: bytes) -> bytes:
        """Return the payload in `data`, perhaps empty. Not to be called when done."""
        ...

    def end(self) -> None:
        """Take the end of the connection. Raises TruncatedMessage unless that ends the body."""
        ...


def decoder(framing: Framing, max_overhead_bytes: int) -> Decoder:
    """Return the decoder of a body framed like this."""
    if framing is Open.CHUNKED:
        return ChunkedDecoder(max_overhead_bytes)
    if framing is Open.UNTIL_CLOSE:
        return CloseDecoder()
    return LengthDecoder(framing)


class LengthDecoder:
    """A body of a declared length; done from the start if that is 0."""

    __slots__ = ("_left", "done", "rest")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """See `Decoder`."""
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return data
        self.done = True
        if left < 0:
            self.rest = data[left:]
            data = data[:left]
        self._left = 0
        return data

    def end(self) -> None:
        """See `Decoder`."""
        if not self.done:
            raise TruncatedMessage(f"body ended {self._left} bytes before its Content-Length")


class CloseDecoder:
    """A body that ends with the connection."""

    __slots__ = ("done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """See `Decoder`."""
        return data

    def end(self) -> None:
        """See `Decoder`."""
        self.done = True


def _only_chunk(data: bytes) -> bytes:
    """Return the payload of what is one plain chunk exactly, as streams send; or nothing."""
    stop = data.find(b"\r\n", 0, _MAX_SIZE_DIGITS + 2)
    digits = data[:stop]
    if stop < 1 or digits.translate(None, _HEX) or not data.endswith(b"\r\n"):
        return b""
    begin, end = stop + 2, len(data) - 2
    return data[begin:end] if int(digits, 16) == end - begin else b""


class ChunkedDecoder:
    """A chunked body (RFC 9112 section 7.1)."""

    __slots__ = ("_held", "_in_trailers", "_left", "_overhead", "done", "rest")

    def __init__(self, max_overhead_bytes: int) -> None:
        # Bytes of the chunk still to come, its CRLF included; 0 between chunks.
        self._left = 0
        self._held = b""  # a line, or a chunk's CRLF, of which only a part has come
        self._overhead = max_overhead_bytes
        self._in_trailers = False
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """See `Decoder`."""
        left = self._left
        size = len(data)
        if left > size + 2:  # the middle of a large chunk
            self._left = left - size
            return data
        if not (left or self._held or self._in_trailers):
            payload = _only_chunk(data)
            if payload:
                return payload
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes] = []
        pos = 0
        while not self.done:
            pos = self._chunk(data, pos, pieces) if self._left else self._line(data, pos)
            if pos < 0:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self) -> None:
        """See `Decoder`."""
        if not self.done:
            raise TruncatedMessage("chunked body ended before its last chunk")

    def _chunk(self, data: bytes, pos: int, pieces: list[bytes]) -> int:
        """Take payload from `pos`; return where the next line starts, or -1 for more bytes."""
        end = pos + self._left - 2  # of the payload
        if len(data) >= end + 2:
            if data[end : end + 2] != b"\r\n":
                raise RemoteProtocolError("chunk longer than its size says")
            if end > pos:
                pieces.append(data[pos:end])
            self._left = 0
            return end + 2
        if len(data) > end:  # one byte of its CRLF
            self._held = data[end:]
            if self._held != b"\r":
                raise RemoteProtocolError("chunk longer than its size says")
            self._left = 2
            data = data[:end]
        else:
            self._left = end + 2 - len(data)
        if pos < len(data):
            pieces.append(data[pos:] if pos else data)
        return -1

    def _line(self, data: bytes, pos: int) -> int:
        """Take a size or trailer line; return where the next thing starts, or -1."""
        stop = data.find(b"\r\n", pos, pos + _MAX_LINE_BYTES)
        if stop < 0:
            held = data[pos:]
            if len(held) >= _MAX_LINE_BYTES:
                raise RemoteProtocolError("line of a chunked body exceeds 4096 bytes")
            if b"\n" in held:
                raise RemoteProtocolError("bare LF in a chunked body")
            self._held = held
            return -1
        line = data[pos:stop]
        pos = stop + 2
        if self._in_trailers:
            self._trailer(line, data, pos)
        elif line.translate(None, _HEX) or not 0 < len(line) <= _MAX_SIZE_DIGITS:
            self._start_chunk(self._strip_extension(line))
        else:
            self._start_chunk(int(line, 16))
        return pos

    def _start_chunk(self, size: int) -> None:
        if size:
            self._left = size + 2
        else:
            self._in_trailers = True

    def _strip_extension(self, line: bytes) -> int:
        digits, semicolon, extension = line.partition(b";")
        if not 0 < len(digits) <= _MAX_SIZE_DIGITS or digits.translate(None, _HEX):
            raise RemoteProtocolError("chunk size is not 1 to 15 hexadecimal digits")
        if not semicolon or extension.translate(None, _FIELD_TEXT):
            raise RemoteProtocolError("malformed chunk extension")
        self._spend(len(extension) + 1)
        return int(digits, 16)

    def _trailer(self, line: bytes, data: bytes, pos: int) -> None:
        if not line:
            self.done = True
            self.rest = data[pos:]
            return
        name, colon, value = line.partition(b":")
        if not name or not colon or name.translate(None, _TOKEN):
            raise RemoteProtocolError("malformed trailer")
        if value.translate(None, _FIELD_TEXT):
            raise RemoteProtocolError("control character in a trailer")
        self._spend(len(line))

    def _spend(self, size: int) -> None:
        self._overhead -= size
        if self._overhead < 0:
            raise RemoteProtocolError("chunk extensions and trailers exceed their limit")
