"""The head of a message: start line and headers, read strictly and written safely.

llhttp (through httptools) reads the headers; it gets one whole head at a time, cut out and
bounded here, because it has no limits of its own. Two readings must agree: what llhttp lets
pass and RFC 9112 does not (several spaces in a request line, RTSP, HTTP/2.0, control characters
in a reason) is refused here. Bodies are not llhttp's: see `decoding`.

It refuses bare CR or LF, line folding, blank before a colon, control characters, an empty line
before the start line, CONNECT, and more bytes or headers than `HttpLimits` allows.
Names are lower-cased when read; values keep every byte but the blanks around them.
"""

from http import HTTPStatus

import httptools
import msgspec

from byoai_shared.http1.errors import HeadTooLarge, LocalProtocolError, RemoteProtocolError

Headers = tuple[tuple[bytes, bytes], ...]

_END = b"\r\n\r\n"
_TEXT = bytes(c for c in range(256) if c in b"\t\r\n" or (c >= 32 and c != 127))
_VISIBLE = bytes(range(0x21, 0x7F))
_VERSIONS = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a peer may ask us to keep, and how long we wait for it."""

    max_head_bytes: int = 64 * 1024
    max_headers: int = 128
    max_body_bytes: int = 100 * 1024 * 1024  # of a request, at a server
    max_informational: int = 8  # 1xx responses before the final one, at a client
    max_chunk_overhead_bytes: int = 16 * 1024  # extensions and trailers of one message
    buffer_bytes: int = 64 * 1024  # of a body (or of pipelined bytes) nobody takes yet
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0  # for each `least_body_bytes` of a request's body
    least_body_bytes: int = 1024  # or else the rest of it
    keep_alive_timeout_s: float = 75.0
    linger_s: float = 2.0  # reading on after an early refusal, so that it is seen
    stall_timeout_s: float | None = None  # a client takes nothing of its answer; None: for ever


DEFAULT_LIMITS = HttpLimits()


class RequestHead(msgspec.Struct, frozen=True):
    """A request's start line and headers, in the order they came."""

    method: str
    target: str
    headers: Headers = ()
    minor_version: int = 1

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of `name` (given in lower case), or None."""
        return header(self.headers, name)


class ResponseHead(msgspec.Struct, frozen=True):
    """A response's status line and headers, in the order they came."""

    status: int
    headers: Headers = ()
    reason: bytes = b""
    minor_version: int = 1

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of `name` (given in lower case), or None."""
        return header(self.headers, name)


def header(headers: Headers, name: bytes) -> bytes | None:
    """Return the first value of `name` (given in lower case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def has_token(headers: Headers, name: bytes, token: bytes) -> bool:
    """Say whether a comma-separated header holds `token` (given in lower case)."""
    return any(
        token == part.strip(b" \t").lower()
        for key, value in headers
        if key == name
        for part in value.split(b",")
    )


def wants_keep_alive(head: RequestHead | ResponseHead) -> bool:
    """Say whether the sender will use the connection again (RFC 9112 section 9.3)."""
    value = header(head.headers, b"connection")
    if value is None:
        return head.minor_version == 1
    if has_token(head.headers, b"connection", b"close"):
        return False
    return head.minor_version == 1 or has_token(head.headers, b"connection", b"keep-alive")


class HeadBuffer:
    """Cuts one head out of the bytes of a connection, in linear time and bounded space."""

    __slots__ = ("_held", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._held = bytearray()
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return (head, what follows it), or None when more bytes are needed.

        Raises HeadTooLarge, and RemoteProtocolError for a bare LF, which no head outlives:
        without this a peer that ends lines with LF alone would wait for its timeout.
        """
        if not self._held:
            end = data.find(_END) + 4
            if end > 3:
                self._check_size(end)
                return data[:end], data[end:]
        return self._feed_piece(data)

    def _feed_piece(self, data: bytes) -> tuple[bytes, bytes] | None:
        held = self._held
        before = len(held)
        held += data
        end = held.find(_END, max(0, before - 3)) + 4
        if end > 3:
            self._check_size(end)
            head, rest = bytes(held[:end]), bytes(held[end:])
            self._held = bytearray()
            return head, rest
        self._check_size(len(held))
        start = max(0, before - 1)
        line_ends = held.count(b"\n", before)
        if line_ends and line_ends != held.count(b"\r\n", start):
            raise RemoteProtocolError("bare LF in a message head")
        return None

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise HeadTooLarge(
                f"message head of {size} bytes or more exceeds the limit of {self._max_bytes}"
            )


def parse_request_head(raw: bytes, limits: HttpLimits = DEFAULT_LIMITS) -> RequestHead:
    """Read a whole request head, its empty line included.

    Raises RemoteProtocolError with the status that fits (400, 431, 501 or 505).
    """
    line = _start_line(raw)
    parts = line.split(b" ")
    if len(parts) != 3:
        raise RemoteProtocolError("request line is not a method, a target and a version")
    method, target, version = parts
    minor_version = _minor_version(version)
    if method == b"CONNECT":
        raise RemoteProtocolError("method CONNECT is not served", status=501)
    if not target or target.translate(None, _VISIBLE):
        raise RemoteProtocolError("request target holds what a target may not")
    headers = _read_headers(httptools.HttpRequestParser, raw, limits)
    return RequestHead(method.decode("ascii"), target.decode("ascii"), headers, minor_version)


def parse_response_head(raw: bytes, limits: HttpLimits = DEFAULT_LIMITS) -> ResponseHead:
    """Read a whole response head, its empty line included. Raises RemoteProtocolError."""
    version, _, rest = _start_line(raw).partition(b" ")
    status, _, reason = rest.partition(b" ")
    minor_version = _minor_version(version)
    if len(status) != 3 or not status.isdigit() or not b"100" <= status <= b"599":
        raise RemoteProtocolError("status line without a status from 100 to 599")
    headers = _read_headers(httptools.HttpResponseParser, raw, limits)
    return ResponseHead(int(status), headers, reason, minor_version)


def _start_line(raw: bytes) -> bytes:
    if raw.translate(None, _TEXT):
        raise RemoteProtocolError("control character in a message head")
    line_ends = raw.count(b"\r\n")
    if raw.count(b"\n") != line_ends or raw.count(b"\r") != line_ends:
        raise RemoteProtocolError("bare CR or LF in a message head")
    return raw[: raw.index(b"\r\n")]


def _minor_version(version: bytes) -> int:
    minor = _VERSIONS.get(version)
    if minor is None:
        status = 505 if version.startswith(b"HTTP/") else 400
        raise RemoteProtocolError("version is neither HTTP/1.1 nor HTTP/1.0", status=status)
    return minor


class _HeaderList:
    """What httptools calls while it reads."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))


def _read_headers(
    parser: type[httptools.HttpRequestParser | httptools.HttpResponseParser],
    raw: bytes,
    limits: HttpLimits,
) -> Headers:
    found = _HeaderList()
    try:
        parser(found).feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # an offer to change protocols may be ignored (RFC 9110 section 7.8)
    except httptools.HttpParserError as error:
        # llhttp's sentences are constants: nothing of the message is in them.
        raise RemoteProtocolError(f"malformed message head: {error}") from error
    if len(found.headers) > limits.max_headers:
        raise HeadTooLarge(f"{len(found.headers)} headers exceed the limit of {limits.max_headers}")
    return tuple(found.headers)


_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


def serialise_request(head: RequestHead, extra: Headers = ()) -> bytes:
    """Return the bytes of `head` with the headers `extra` after its own.

    Raises LocalProtocolError when a value would begin another line.
    """
    start = f"{head.method} {head.target} HTTP/1.1".encode("ascii")
    return _serialise(start, head.headers + extra)


def serialise_response(head: ResponseHead, extra: Headers = ()) -> bytes:
    """Return the bytes of `head` with the headers `extra` after its own.

    Always HTTP/1.1, whatever `head.minor_version` (that is what a peer spoke).
    Raises LocalProtocolError when a value would begin another line.
    """
    reason = head.reason or _REASONS.get(head.status, b"")
    return _serialise(b"HTTP/1.1 %d %b" % (head.status, reason), head.headers + extra)


def _serialise(start: bytes, headers: Headers) -> bytes:
    lines = [start]
    lines += [b"%b: %b" % pair for pair in headers]
    raw = b"\r\n".join(lines) + _END
    expected = len(lines) + 1
    if raw.count(b"\r") != expected or raw.count(b"\n") != expected or b"\0" in raw:
        raise LocalProtocolError("a header to be sent holds CR, LF or NUL")
    return raw
