"""What leaves a link first."""

from collections import defaultdict
from struct import pack

from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.protocol.frames import (
    DATA,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    FrameType,
    decode,
)
from byoai_shared.protocol.outbox import Outbox


def put_data(outbox: Outbox, stream_id: int, payload: bytes) -> None:
    outbox.put_stream(stream_id, pack(">II", len(payload) << 8 | DATA, stream_id), payload)


def drain(outbox: Outbox) -> list[tuple[int, int, bytes]]:
    frames: list[tuple[int, int, bytes]] = []
    while outbox:
        message = outbox.take()
        assert len(message) <= MAX_MESSAGE_BYTES
        frames += [
            (kind, stream_id, bytes(payload)) for kind, stream_id, payload in decode(message)
        ]
    return frames


def test_control_ping_reset_and_credit_overtake_data_in_that_order() -> None:
    outbox = Outbox()
    put_data(outbox, 1, b"first come")
    outbox.put_number(FrameType.CREDIT, 1, 10)
    outbox.put_number(FrameType.RESET, 2, 1)
    outbox.put_urgent(FrameType.PING, 0, b"12345678")
    outbox.put_urgent(FrameType.OPEN, 3, b"{}")
    kinds = [kind for kind, _, _ in drain(outbox)]
    assert kinds == [
        FrameType.OPEN,
        FrameType.PING,
        FrameType.RESET,
        FrameType.CREDIT,
        FrameType.DATA,
    ]


def test_a_token_overtakes_an_upload_of_50_mb() -> None:
    outbox = Outbox()
    chunk = bytes(MAX_PAYLOAD_BYTES)
    for _ in range(50 * 1024 * 1024 // MAX_PAYLOAD_BYTES):
        put_data(outbox, 1, chunk)
    put_data(outbox, 2, b"token")
    assert [stream_id for _, stream_id, _ in decode(outbox.take())][:2] == [1, 2]


def test_streams_take_turns_frame_by_frame() -> None:
    outbox = Outbox()
    for turn in range(3):
        for stream_id in (1, 2, 3):
            put_data(outbox, stream_id, bytes([turn]))
    assert [stream_id for _, stream_id, _ in drain(outbox)] == [1, 2, 3] * 3


def test_a_reset_drops_what_the_stream_still_had_to_say() -> None:
    outbox = Outbox()
    put_data(outbox, 1, b"never sent")
    put_data(outbox, 2, b"sent")
    outbox.put_number(FrameType.RESET, 1, 1)
    assert [(kind, stream_id) for kind, stream_id, _ in drain(outbox)] == [
        (FrameType.RESET, 1),
        (FrameType.DATA, 2),
    ]


def test_dropping_a_stream_says_whether_anything_was_lost() -> None:
    outbox = Outbox()
    put_data(outbox, 1, b"x")
    assert outbox.drop(1)
    assert not outbox.drop(1)
    assert outbox.queued_bytes == 0


def test_urgent_bytes_are_told_from_those_of_streams() -> None:
    outbox = Outbox()
    put_data(outbox, 1, bytes(1000))
    outbox.put_urgent(FrameType.PING, 0, bytes(8))
    assert (outbox.urgent_bytes, outbox.queued_bytes) == (16, 1024)


def test_the_newest_state_leaves_in_the_place_of_the_older_one() -> None:
    outbox = Outbox()
    outbox.put_urgent(FrameType.HELLO, 0, b"first")
    outbox.put_latest(FrameType.PRESENCE, ("t", "a"), bytes(9000))
    outbox.put_latest(FrameType.PRESENCE, ("t", "b"), b"other")
    outbox.put_urgent(FrameType.TRUST_HELD, 0, b"last")
    for number in range(100):
        outbox.put_latest(FrameType.PRESENCE, ("t", "a"), b"newest %d" % number)
    assert outbox.queued_bytes == outbox.urgent_bytes == 4 * 8 + len(b"firstnewest 99otherlast")
    assert [payload for _, _, payload in drain(outbox)] == [
        b"first",
        b"newest 99",
        b"other",
        b"last",
    ]


def test_a_state_that_left_is_followed_by_the_next() -> None:
    outbox = Outbox()
    for number in range(3):
        outbox.put_latest(FrameType.PRESENCE, ("t", "a"), b"%d" % number)
        assert outbox.has_latest(("t", "a"))
        assert drain(outbox) == [(FrameType.PRESENCE, 0, b"%d" % number)]
        assert not outbox.has_latest(("t", "a"))


def test_states_beyond_one_message_follow_in_the_next_and_are_replaced_until_then() -> None:
    outbox = Outbox()
    for number in range(40):
        outbox.put_latest(FrameType.PRESENCE, ("t", str(number)), bytes([number]) * 8000)
    taken = len(list(decode(outbox.take())))
    for number in range(40):
        outbox.put_latest(FrameType.PRESENCE, ("t", str(number)), bytes([100 + number]))
    left = [payload[0] for _, _, payload in drain(outbox)]
    assert 0 < taken < 40
    assert left == [*range(100 + taken, 140), *range(100, 100 + taken)]
    assert outbox.queued_bytes == 0


def test_a_cleared_outbox_starts_anew() -> None:
    outbox = Outbox()
    put_data(outbox, 1, b"x")
    outbox.put_latest(FrameType.PRESENCE, ("t", "a"), b"z")
    outbox.put_urgent(FrameType.PING, 0, bytes(8))
    outbox.clear()
    assert not outbox
    assert outbox.largest_stream() is None
    put_data(outbox, 2, b"y")
    assert drain(outbox) == [(FrameType.DATA, 2, b"y")]


def test_urgent_frames_beyond_one_message_follow_in_the_next() -> None:
    outbox = Outbox()
    for number in range(40):
        outbox.put_urgent(FrameType.TRUST, 0, bytes([number]) * 8000)
    put_data(outbox, 1, b"last")
    frames = drain(outbox)
    assert [payload[:1] for _, _, payload in frames[:40]] == [bytes([n]) for n in range(40)]
    assert frames[40][2] == b"last"


@given(
    st.lists(st.tuples(st.integers(1, 5), st.binary(min_size=1, max_size=5000)), max_size=60),
    st.integers(1, 10),
)
def test_every_byte_leaves_once_in_its_streams_order(
    writes: list[tuple[int, bytes]], take_every: int
) -> None:
    outbox = Outbox()
    written: dict[int, bytes] = defaultdict(bytes)
    left: dict[int, bytes] = defaultdict(bytes)
    for count, (stream_id, payload) in enumerate(writes):
        put_data(outbox, stream_id, payload)
        written[stream_id] += payload
        if count % take_every == 0:
            for _, taken_id, taken in decode(outbox.take(limit=6000)):
                left[taken_id] += bytes(taken)
    for _, stream_id, payload in drain(outbox):
        left[stream_id] += payload
    assert left == written
    assert outbox.queued_bytes == 0
    assert outbox.largest_stream() is None
