"""Flow control against the simplest model: a counter on each side."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.protocol.credit import INITIAL_CREDIT, MAX_WINDOW, ReceiveWindow, SendWindow
from byoai_shared.protocol.errors import LocalProtocolError
from byoai_shared.protocol.frames import MAX_CREDIT


@given(
    st.lists(st.integers(1, 40_000), min_size=1, max_size=200),
    st.floats(0, 0.5),
    st.floats(0.0001, 0.1),
)
def test_a_sender_that_keeps_to_its_credit_is_never_refused_and_never_starves(
    sizes: list[int], round_trip_s: float, step_s: float
) -> None:
    sender = SendWindow(INITIAL_CREDIT)
    receiver = ReceiveWindow(INITIAL_CREDIT)
    receiver.round_trip_s = round_trip_s
    now, under_way = 0.0, 0
    for size in sizes:
        now += step_s
        # With all consumed at once, three quarters of a window are always available.
        assert sender.available >= receiver.size * 3 // 4
        sender.spend(size)
        under_way += size
        assert receiver.receive(size)
        under_way -= size
        credit = receiver.consume(size, now)
        if credit:
            assert sender.grant(credit)
        assert under_way + sender.available <= receiver.size <= MAX_WINDOW


def test_an_overrun_is_seen_by_the_byte() -> None:
    receiver = ReceiveWindow(1000)
    assert receiver.receive(1000)
    assert not receiver.receive(1)


def test_credit_comes_back_a_quarter_of_the_window_at_a_time() -> None:
    receiver = ReceiveWindow(1000)
    assert receiver.receive(1000)
    assert receiver.consume(249, 10.0) == 0
    assert receiver.consume(1, 10.0) == 250


def transfer(round_trip_s: float, frame_bytes: int, seconds: float) -> tuple[int, ReceiveWindow]:
    """Send as fast as credit allows over a line of that length; what arrived in that time."""
    sender, receiver = SendWindow(INITIAL_CREDIT), ReceiveWindow(INITIAL_CREDIT)
    receiver.round_trip_s = round_trip_s
    arrivals: deque[tuple[float, int]] = deque()
    returning: deque[tuple[float, int]] = deque()
    now, arrived = 0.0, 0
    while now < seconds:
        while sender.available:
            size = min(frame_bytes, sender.available)
            sender.spend(size)
            arrivals.append((now + round_trip_s / 2, size))
        now = min(queue[0][0] for queue in (arrivals, returning) if queue)
        while arrivals and arrivals[0][0] <= now:
            _, size = arrivals.popleft()
            assert receiver.receive(size)
            arrived += size
            credit = receiver.consume(size, now)
            if credit:
                returning.append((now + round_trip_s / 2, credit))
        while returning and returning[0][0] <= now:
            assert sender.grant(returning.popleft()[1])
    return arrived, receiver


@pytest.mark.parametrize("frame_bytes", [1000, 16_406, 32_768])
@pytest.mark.parametrize("round_trip_s", [0.002, 0.05, 0.3])
def test_a_long_line_is_filled(round_trip_s: float, frame_bytes: int) -> None:
    trips = 40
    arrived, receiver = transfer(round_trip_s, frame_bytes, trips * round_trip_s)
    assert receiver.size == MAX_WINDOW
    assert arrived > trips / 2 * MAX_WINDOW


def test_the_window_grows_to_its_maximum_when_the_round_trip_needs_it() -> None:
    receiver = ReceiveWindow(INITIAL_CREDIT)
    receiver.round_trip_s = 0.05
    now = 0.0
    for _ in range(200):
        now += 0.02
        receiver.receive(receiver.size // 2)
        receiver.consume(receiver.size // 2, now)
    assert receiver.size == MAX_WINDOW


def test_the_window_stays_small_when_the_line_is_short_however_fast_it_is() -> None:
    receiver = ReceiveWindow(INITIAL_CREDIT)
    receiver.round_trip_s = 0.0003
    now = 0.0
    for _ in range(200):  # 256 MB/s
        now += 0.0005
        receiver.receive(receiver.size // 2)
        receiver.consume(receiver.size // 2, now)
    assert receiver.size == INITIAL_CREDIT


def test_the_window_stays_small_for_a_reader_that_is_slower_than_the_line() -> None:
    receiver = ReceiveWindow(INITIAL_CREDIT)
    receiver.round_trip_s = 0.05
    now = 0.0
    for _ in range(200):
        now += 0.2
        receiver.receive(receiver.size // 2)
        receiver.consume(receiver.size // 2, now)
    assert receiver.size == INITIAL_CREDIT


@pytest.mark.parametrize("credit", [0, MAX_CREDIT])
def test_zero_and_overflowing_credit_are_refused(credit: int) -> None:
    sender = SendWindow(1)
    assert not sender.grant(credit)
    assert sender.available == 1


def test_spending_what_is_not_there_is_our_own_fault() -> None:
    with pytest.raises(LocalProtocolError, match="sending 2 bytes with credit for 1"):
        SendWindow(1).spend(2)
