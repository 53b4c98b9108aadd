"""Where a body ends (RFC 9112 section 6.3), and what must be refused to keep that one answer.

Request smuggling is two readers that disagree about where a message ends. Whatever could be
read in two ways is refused here instead of repaired: Content-Length beside Transfer-Encoding,
Content-Length twice (even alike), a list in it, any transfer coding but `chunked`,
Transfer-Encoding in HTTP/1.0, no Host or several.
"""

from enum import Enum, auto

from byoai_shared.http1.errors import LocalProtocolError, RemoteProtocolError
from byoai_shared.http1.head import Headers, RequestHead, ResponseHead

_HOST = bytes(c for c in range(0x21, 0x7F) if c not in b'"#,/<>?@\\^`{|}')
# 19 digits still fit in 64 bits.
_MAX_DIGITS = 18


class Open(Enum):
    """A body whose length its head does not say."""

    CHUNKED = auto()
    UNTIL_CLOSE = auto()


Framing = int | Open
"""The length of a body in bytes, or how its end is found."""


def request_framing(head: RequestHead) -> Framing:
    """Return how the body of a received request is framed.

    Raises RemoteProtocolError (400, or 501 for a transfer coding we do not know).
    """
    declared = _declared_framing(head.headers, head.minor_version)
    hosts = [value for name, value in head.headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and head.minor_version == 1):
        raise RemoteProtocolError(f"request with {len(hosts)} Host headers, 1 is required")
    if hosts and hosts[0].translate(None, _HOST):
        raise RemoteProtocolError("Host holds what a host name may not")
    return 0 if declared is None else declared


def response_framing(head: ResponseHead, method: str) -> Framing:
    """Return how the body of a response to `method` is framed. Raises RemoteProtocolError.

    Without Content-Length and chunked coding it ends with its connection, whether `Connection:
    close` announces that or not (RFC 9112 section 6.3, rule 8).
    """
    declared = _declared_framing(head.headers, head.minor_version)
    if method == "HEAD" or head.status < 200 or head.status in (204, 304):
        return 0
    return Open.UNTIL_CLOSE if declared is None else declared


def _declared_framing(headers: Headers, minor_version: int) -> Framing | None:
    framing: Framing | None = None
    for name, value in headers:
        if name == b"content-length":
            if framing is not None:
                raise RemoteProtocolError("more than one of Content-Length, Transfer-Encoding")
            if not value.isdigit() or len(value) > _MAX_DIGITS:
                raise RemoteProtocolError("Content-Length is not one number of 1 to 18 digits")
            framing = int(value)
        elif name == b"transfer-encoding":
            if framing is not None:
                raise RemoteProtocolError("more than one of Content-Length, Transfer-Encoding")
            if value.lower() != b"chunked":
                raise RemoteProtocolError("transfer coding other than chunked", status=501)
            if minor_version == 0:
                raise RemoteProtocolError("Transfer-Encoding in HTTP/1.0")
            framing = Open.CHUNKED
    return framing


def outgoing_framing(headers: Headers) -> Framing | None:
    """Return the framing that headers of our own making declare, None if none.

    Raises LocalProtocolError where a received message would be refused.
    """
    try:
        return _declared_framing(headers, 1)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"message to be sent: {error}") from error


# Hop by hop whatever `Connection` says (RFC 9110 section 7.6.1, and RFC 9112 appendix C.2.2).
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",  # answered by each server itself
    }
)


def is_hop_by_hop(name: bytes) -> bool:
    """Say whether a header (its name in lower case) is always meant for one connection only."""
    return name in _HOP_BY_HOP


def end_to_end(headers: Headers) -> Headers:
    """Return `headers` without what was meant for one connection only."""
    dropped = _HOP_BY_HOP
    for name, value in headers:
        if name == b"connection":
            named = (part.strip(b" \t").lower() for part in value.split(b","))
            dropped = dropped.union(named)
    return tuple(pair for pair in headers if pair[0] not in dropped)
