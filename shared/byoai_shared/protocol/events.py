"""What happened on a link, as values. Each says what its reader must do about it."""

import msgspec

from byoai_shared.protocol.control import Goaway, Hello, Presence, Services, Status
from byoai_shared.protocol.errors import CloseCode, ResetCode
from byoai_shared.protocol.trust import Trust, TrustHeld


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that the peer said or did."""


class PeerIntroduced(Event, frozen=True, gc=False):
    """The peer's HELLO came and fits ours: the link may be used."""

    hello: Hello


class TokenPresented(Event, frozen=True, gc=False):
    """An agent sent AUTH: verify the token, then accept it or close the link."""

    token: str

    def __repr__(self) -> str:
        return "TokenPresented(token=***)"


class TokenAccepted(Event, frozen=True, gc=False):
    """The relay takes us until a Unix time in seconds: by our token, or by the one before it."""

    accepted_until: int
    refusal: str = ""
    """Why it refused our token, when the link goes on with the one before it."""


class StatusReported(Event, frozen=True, gc=False):
    """An agent described itself."""

    status: Status


class TrustGiven(Event, frozen=True, gc=False):
    """A gateway sent what to believe, or a part of it: put the parts together, in this order."""

    trust: Trust


class TrustReported(Event, frozen=True, gc=False):
    """A relay reported what it believes: send what it lacks."""

    held: TrustHeld


class ServicesGiven(Event, frozen=True, gc=False):
    """A gateway sent revocations, or a new certificate: check who signed them."""

    services: Services


class PresenceReported(Event, frozen=True, gc=False):
    """A relay told of an agent that came, changed or went."""

    presence: Presence


class GoawayReceived(Event, frozen=True, gc=False):
    """Open no new streams here; connect elsewhere, then drain."""

    goaway: Goaway


class LinkFailed(Event, frozen=True, gc=False):
    """The link is over: close the WebSocket with `code` and abort every stream."""

    code: CloseCode
    reason: str


class StreamOpened(Event, frozen=True, gc=False):
    """The peer opened a stream: accept or reset it in this very call."""

    stream_id: int
    dialer: str


class StreamAccepted(Event, frozen=True, gc=False):
    """The peer took the stream that we opened."""

    stream_id: int


class DataReceived(Event, frozen=True, gc=False):
    """Bytes of a stream; a view that is valid only while the message is.

    Report them with `Endpoint.consume` once they are used up.
    """

    stream_id: int
    data: memoryview


class StreamFinished(Event, frozen=True, gc=False):
    """The peer will send no more bytes on the stream (half-close)."""

    stream_id: int


class StreamAborted(Event, frozen=True, gc=False):
    """The stream is over in both directions; what was not sent is dropped."""

    stream_id: int
    code: ResetCode
