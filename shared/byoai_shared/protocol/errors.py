"""What can go wrong on a link, and whose fault it was.

    ProtocolError
    ├── LocalProtocolError     we asked our own side for something the protocol forbids
    └── RemoteProtocolError    the peer broke the rules; the link closes with `close_code`

A fault of a single stream is not an exception: it becomes a RESET with a `ResetCode`.
"""

from enum import IntEnum

from byoai_shared.errors import ByoaiError


class CloseCode(IntEnum):
    """Why a link was closed: a WebSocket close code (RFC 6455 section 7.4.2, private range).

    4000-4099 say that trying again may help, 4100-4199 that it will not without a person.
    """

    NORMAL = 1000
    GOING_AWAY = 4000
    NOT_READY = 4001
    REPLACED = 4002
    IDLE = 4003
    TOKEN_EXPIRED = 4004
    OVERLOADED = 4005
    HANDSHAKE_TIMEOUT = 4006
    INTERNAL_ERROR = 4007
    CERTIFICATE_EXPIRED = 4008
    PROTOCOL_ERROR = 4100
    ABUSE = 4101
    UNSUPPORTED_VERSION = 4102
    TOKEN_REFUSED = 4103
    REVOKED = 4104
    WRONG_ROLE = 4105


class ResetCode(IntEnum):
    """Why a stream was aborted. Only `NOT_PROCESSED` says that nothing of it was acted upon."""

    CANCELLED = 1
    NOT_PROCESSED = 2
    UNKNOWN_TUNNEL = 3
    TUNNEL_OFFLINE = 4
    REFUSED = 5
    LIMIT_EXCEEDED = 6
    FLOW_CONTROL = 7
    LINK_LOST = 8
    OVERLOADED = 9
    REVOKED = 10
    INTERNAL_ERROR = 11
    THROTTLED = 12
    """The tunnel, or the stream, used up what it may: early resets or small frames."""

    @classmethod
    def _missing_(cls, value: object) -> "ResetCode":  # noqa: ARG003 - the hook's signature
        """Take a code that we do not know yet: it still means that the stream is over."""
        return cls.INTERNAL_ERROR


class ProtocolError(ByoaiError):
    """A rule of `byoai.link.v1` was broken."""


class LocalProtocolError(ProtocolError):
    """Our own side broke a rule; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule; the link must be closed with `close_code`."""

    def __init__(self, message: str, close_code: CloseCode = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.close_code = close_code
