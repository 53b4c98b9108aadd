"""The round trip as it is, and as it would be on an empty line."""

import pytest

from byoai_shared.protocol.round_trip import MEMORY_S, RoundTrip


def test_nothing_is_known_before_the_first_sample() -> None:
    trip = RoundTrip()
    assert (trip.smoothed_s, trip.base_s) == (None, 0.0)


def test_queues_raise_the_present_round_trip_and_not_the_base() -> None:
    trip = RoundTrip()
    trip.add(0.01, 0.0)
    for second in range(1, 60):
        trip.add(0.5, float(second))
    assert trip.smoothed_s == pytest.approx(0.5, rel=0.01)
    assert trip.base_s == 0.01


def test_a_route_that_became_longer_is_believed_after_a_while() -> None:
    trip = RoundTrip()
    trip.add(0.01, 0.0)
    now = 0.0
    while now < 2 * MEMORY_S:
        assert trip.base_s == 0.01
        now += 10.0
        trip.add(0.2, now)
    trip.add(0.2, now + 10.0)
    assert trip.base_s == 0.2


def test_a_route_that_became_shorter_is_believed_at_once() -> None:
    trip = RoundTrip()
    trip.add(0.2, 0.0)
    trip.add(0.05, 1.0)
    assert trip.base_s == 0.05
