"""The frame codec: an 8-byte header and a payload, several frames to a message.

    0        3    4         8
    +--------+----+---------+------------------+
    | length |type|stream id| payload          |   big-endian; length counts the payload only
    +--------+----+---------+------------------+

A WebSocket message holds one or more whole frames, so the codec keeps no state between
messages. It checks shape only; what a frame means is for `link_protocol` and its users.
"""

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Final

from byoai_shared.protocol.errors import RemoteProtocolError

SUBPROTOCOL: Final = "byoai.link.v1"
HEADER_BYTES: Final = 8
MAX_PAYLOAD_BYTES: Final = 32 * 1024
MAX_MESSAGE_BYTES: Final = 128 * 1024
MAX_STREAM_ID: Final = 2**32 - 1
MAX_CREDIT: Final = 2**31 - 1
SMALL_DATA_BYTES: Final = 64
"""DATA below this costs its sender extra. A TLS record of one byte is 23; an event of a streamed
answer is well above 100."""

_HEADER = Struct(">II")
_U32 = Struct(">I")


class FrameType(IntEnum):
    """What a frame is; the comment says on which stream id it may stand."""

    HELLO = 0x01  # 0
    AUTH = 0x02  # 0
    AUTH_OK = 0x03  # 0
    STATUS = 0x04  # 0
    TRUST = 0x05  # 0
    PRESENCE = 0x06  # 0
    PING = 0x07  # 0
    PONG = 0x08  # 0
    GOAWAY = 0x09  # 0
    TRUST_HELD = 0x0A  # 0
    SERVICES = 0x0B  # 0
    OPEN = 0x10  # n
    ACCEPT = 0x11  # n
    DATA = 0x12  # n
    FIN = 0x13  # n
    RESET = 0x14  # n
    CREDIT = 0x15  # n


DATA: Final = int(FrameType.DATA)
FIN: Final = int(FrameType.FIN)
_FIRST_STREAM_TYPE: Final = int(FrameType.OPEN)
_KNOWN_TYPES: Final = frozenset(int(member) for member in FrameType)

Frame = tuple[int, int, memoryview]
"""Type, stream id and payload; the payload is a view into the message."""


def encode(frame_type: int, stream_id: int, payload: bytes | memoryview = b"") -> bytes:
    """Make one frame; the caller keeps payloads within `MAX_PAYLOAD_BYTES`."""
    return _HEADER.pack(len(payload) << 8 | frame_type, stream_id) + payload


def encode_u32(frame_type: int, stream_id: int, number: int) -> bytes:
    """Make a frame whose payload is one unsigned 32-bit number (ACCEPT, RESET, CREDIT)."""
    return _HEADER.pack(4 << 8 | frame_type, stream_id) + _U32.pack(number)


def decode_u32(payload: memoryview) -> int:
    """Read the number of an ACCEPT, RESET or CREDIT.

    Raises:
        RemoteProtocolError: the payload is not exactly four bytes.
    """
    if len(payload) != _U32.size:
        raise RemoteProtocolError(f"payload of {len(payload)} bytes where 4 were expected")
    number: int = _U32.unpack(payload)[0]
    return number


def decode(message: bytes) -> Iterator[Frame]:
    """Yield the frames of one message in order.

    Raises:
        RemoteProtocolError: at the first frame that is truncated, too large, of an unknown
            type or on a stream id its type forbids; the frames before it were yielded.
    """
    size = len(message)
    if size == 0:
        raise RemoteProtocolError("a message without a frame")
    if size > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError(
            f"message of {size} bytes exceeds the limit of {MAX_MESSAGE_BYTES}"
        )
    view = memoryview(message)
    unpack_from = _HEADER.unpack_from
    offset = 0
    while offset < size:
        start = offset + HEADER_BYTES
        if start > size:
            raise RemoteProtocolError(
                f"frame header of {size - offset} bytes where {HEADER_BYTES} were expected"
            )
        word, stream_id = unpack_from(message, offset)
        length = word >> 8
        frame_type = word & 0xFF
        offset = start + length
        if length > MAX_PAYLOAD_BYTES:
            raise RemoteProtocolError(
                f"frame of {length} bytes exceeds the limit of {MAX_PAYLOAD_BYTES}"
            )
        if offset > size:
            raise RemoteProtocolError(
                f"frame of {length} bytes is truncated to {size - start} bytes"
            )
        if frame_type not in _KNOWN_TYPES:
            raise RemoteProtocolError(f"frame of unknown type {frame_type:#04x}")
        if (frame_type >= _FIRST_STREAM_TYPE) != (stream_id != 0):
            name = FrameType(frame_type).name
            raise RemoteProtocolError(f"{name} frame on stream {stream_id}")
        yield frame_type, stream_id, view[start:offset]
