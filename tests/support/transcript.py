"""Transcripts of `byoai.link.v1`: what is said to one side, and what it says.

No sockets and no clock. `say` makes a frame from the thing it carries; `heard` empties an
outbox and reads it back.
"""

from struct import pack

from byoai_shared.protocol import events as ev
from byoai_shared.protocol.control import (
    Auth,
    AuthOk,
    Control,
    Goaway,
    Hello,
    Open,
    Presence,
    Role,
    Services,
    Status,
    encode_control,
)
from byoai_shared.protocol.errors import CloseCode
from byoai_shared.protocol.frames import FrameType, decode, encode
from byoai_shared.protocol.link_protocol import LinkProtocol
from byoai_shared.protocol.outbox import Outbox
from byoai_shared.protocol.trust import Trust, TrustHeld

Said = tuple[FrameType, int, bytes]
"""A frame as it was read back: type, stream id, payload."""

_TYPES: dict[type[Control], FrameType] = {
    Hello: FrameType.HELLO,
    Auth: FrameType.AUTH,
    AuthOk: FrameType.AUTH_OK,
    Status: FrameType.STATUS,
    Trust: FrameType.TRUST,
    TrustHeld: FrameType.TRUST_HELD,
    Presence: FrameType.PRESENCE,
    Goaway: FrameType.GOAWAY,
    Services: FrameType.SERVICES,
}


def hello(
    role: Role, node: str = "", *, initial_credit: int = 256 * 1024, max_streams: int = 64
) -> Hello:
    """Make a HELLO of a program that is named for its role unless it is told otherwise."""
    return Hello(
        role=role,
        node=node or role.value,
        instance="run-1",
        initial_credit=initial_credit,
        max_streams=max_streams,
    )


def say(what: Control) -> bytes:
    """Make the frame of a control payload."""
    return encode(_TYPES[type(what)], 0, encode_control(what))


def opening(stream_id: int, tunnel_id: str = "", *, credit: int = 256 * 1024) -> bytes:
    """Make an OPEN."""
    payload = encode_control(Open(credit=credit, tunnel_id=tunnel_id, dialer="gateway"))
    return encode(FrameType.OPEN, stream_id, payload)


def number(kind: FrameType, stream_id: int, value: int) -> bytes:
    """Make an ACCEPT, RESET or CREDIT."""
    return encode(kind, stream_id, pack(">I", value))


def data(stream_id: int, payload: bytes) -> bytes:
    """Make a DATA."""
    return encode(FrameType.DATA, stream_id, payload)


def fin(stream_id: int) -> bytes:
    """Make a FIN."""
    return encode(FrameType.FIN, stream_id)


def heard(outbox: Outbox) -> list[Said]:
    """Take everything that waits to be sent, in the order it leaves."""
    said: list[Said] = []
    while outbox:
        said += [(FrameType(kind), at, bytes(what)) for kind, at, what in decode(outbox.take())]
    return said


def outline(said: list[Said]) -> list[tuple[FrameType, int]]:
    """Reduce frames to type and stream id."""
    return [(kind, stream_id) for kind, stream_id, _ in said]


def failure_of(events: list[ev.Event]) -> ev.LinkFailed:
    """Expect that the last event is the link's end, and return it."""
    assert events, "nothing happened where the link should have failed"
    last = events[-1]
    assert isinstance(last, ev.LinkFailed), f"{last} where the link should have failed"
    return last


def close_code_of(link: LinkProtocol, message: bytes, now: float = 0.0) -> CloseCode:
    """Say something that must end the link, and return the code it ends with."""
    return failure_of(link.receive(message, now)).code
