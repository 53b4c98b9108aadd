"""What goes wrong in an HTTP/1.1 message or exchange; whose fault it was is in the type.

    HttpError
    ├── RemoteProtocolError    the peer broke HTTP (or a limit of ours)
    │   ├── HeadTooLarge       431
    │   ├── BodyTooLarge       413
    │   └── TruncatedMessage   its bytes ended before the message did
    ├── HeadTimeout            the peer's head did not come in time
    ├── ConnectionClosed       it was lost before any byte of the response
    └── LocalProtocolError     our own caller asked for what HTTP cannot say

`status` and `code` are what a server answers when its client failed this way. The same error
from an upstream is answered with 502 or 504: see `refusal`.
"""

from typing import ClassVar

from byoai_shared.errors import ByoaiError


class HttpError(ByoaiError):
    """An HTTP/1.1 message or exchange failed."""

    status: int = 500
    code: ClassVar[str] = "internal_error"


class RemoteProtocolError(HttpError):
    """The peer sent what HTTP/1.1 does not allow."""

    code = "bad_request"

    def __init__(self, sentence: str, *, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class HeadTooLarge(RemoteProtocolError):
    """A start line and headers beyond the limit."""

    code = "head_too_large"

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, status=431)


class BodyTooLarge(RemoteProtocolError):
    """A body beyond the limit; found on Content-Length before a byte of it is read."""

    code = "body_too_large"

    def __init__(self, limit: int, declared: int | None = None) -> None:
        found = "body" if declared is None else f"body of {declared} bytes"
        super().__init__(f"{found} exceeds the limit of {limit} bytes", status=413)
        self.limit = limit


class TruncatedMessage(RemoteProtocolError):
    """The bytes ended, or the connection was lost, before the message was complete."""

    code = "truncated"


class HeadTimeout(HttpError):
    """The head of a message did not come within its limit."""

    status = 408
    code = "head_timeout"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"no complete head within the limit of {limit_s:g} s")
        self.limit_s = limit_s


class ConnectionClosed(HttpError):
    """The connection was lost before a byte of the response came.

    `request_sent` says whether a byte of the request may have reached the peer. Only when it
    is False is a repetition safe whatever the method. `__cause__` is what the transport said
    (a stream's reset with its code, for instance).
    """

    status = 502
    code = "connection_closed"

    def __init__(self, *, request_sent: bool) -> None:
        when = "after the request was sent" if request_sent else "before the request was sent"
        super().__init__(f"connection closed {when}")
        self.request_sent = request_sent


class LocalProtocolError(HttpError):
    """Our own side asked for a message that HTTP/1.1 cannot carry."""
