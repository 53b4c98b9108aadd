"""The codec: whatever comes, it yields whole frames or says what is wrong."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.protocol.errors import RemoteProtocolError
from byoai_shared.protocol.frames import (
    HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    FrameType,
    decode,
    decode_u32,
    encode,
    encode_u32,
)

STREAM_TYPES = [member for member in FrameType if member >= FrameType.OPEN]
CONTROL_TYPES = [member for member in FrameType if member < FrameType.OPEN]

a_frame = st.one_of(
    st.tuples(st.sampled_from(STREAM_TYPES), st.integers(1, 2**32 - 1), st.binary(max_size=300)),
    st.tuples(st.sampled_from(CONTROL_TYPES), st.just(0), st.binary(max_size=300)),
)


def frames_of(message: bytes) -> list[tuple[int, int, bytes]]:
    return [(kind, stream_id, bytes(payload)) for kind, stream_id, payload in decode(message)]


@given(st.lists(a_frame, min_size=1, max_size=20))
def test_frames_of_a_message_come_back_in_order(frames: list[tuple[int, int, bytes]]) -> None:
    message = b"".join(encode(*frame) for frame in frames)
    assert frames_of(message) == frames


@given(a_frame, st.data())
def test_a_truncated_frame_is_refused_wherever_it_is_cut(
    frame: tuple[int, int, bytes], data: st.DataObject
) -> None:
    whole = encode(*frame)
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(RemoteProtocolError, match=r"truncated|frame header of"):
        frames_of(whole[:cut])
    # The frame before the cut one is still good.
    reader = decode(whole + whole[:cut])
    assert next(reader)[:2] == frame[:2]
    with pytest.raises(RemoteProtocolError):
        next(reader)


@given(st.binary(max_size=200))
def test_rubbish_is_refused_or_read_but_never_crashes(rubbish: bytes) -> None:
    try:
        frames_of(rubbish)
    except RemoteProtocolError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right, a crash is not


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"", "a message without a frame"),
        (pack(">II", (MAX_PAYLOAD_BYTES + 1) << 8 | 0x12, 1), "exceeds the limit of 32768"),
        (pack(">II", 0xFFFFFF << 8 | 0x12, 1), "frame of 16777215 bytes exceeds the limit"),
        (encode(0x7F, 1), "unknown type 0x7f"),
        (encode(0x00, 0), "unknown type 0x00"),
        (encode(FrameType.DATA, 0, b"x"), "DATA frame on stream 0"),
        (encode(FrameType.HELLO, 1), "HELLO frame on stream 1"),
        (bytes(MAX_MESSAGE_BYTES + 1), "message of 131073 bytes exceeds the limit of 131072"),
    ],
)
def test_each_malformed_message_has_its_sentence(message: bytes, sentence: str) -> None:
    with pytest.raises(RemoteProtocolError, match=sentence):
        frames_of(message)


def test_the_largest_payload_passes() -> None:
    payload = bytes(MAX_PAYLOAD_BYTES)
    ((_, _, received),) = frames_of(encode(FrameType.DATA, 1, payload))
    assert received == payload


def test_numbers_are_exactly_four_bytes() -> None:
    frame = encode_u32(FrameType.CREDIT, 7, 2**32 - 1)
    assert decode_u32(memoryview(frame)[HEADER_BYTES:]) == 2**32 - 1
    for size in (0, 3, 5):
        with pytest.raises(RemoteProtocolError, match=f"payload of {size} bytes"):
            decode_u32(memoryview(bytes(size)))
