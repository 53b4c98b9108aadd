import random

from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.backoff import Backoff


class Longest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


class Shortest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return a


def test_the_longest_delays_double_up_to_the_cap() -> None:
    backoff = Backoff(base_s=0.5, cap_s=60, rng=Longest())
    delays = [backoff.next_delay_s() for _ in range(10)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_even_the_shortest_delay_is_not_zero() -> None:
    backoff = Backoff(base_s=0.5, cap_s=60, rng=Shortest())
    delays = [backoff.next_delay_s() for _ in range(10)]
    assert min(delays) > 0.01
    assert delays == sorted(delays)
    assert delays[-1] >= 1


def test_a_link_that_stood_begins_again_at_the_smallest_wait() -> None:
    backoff = Backoff(rng=Longest())
    for _ in range(5):
        backoff.next_delay_s()
    backoff.opened(1000)
    backoff.lost(1005)
    assert backoff.next_delay_s() == 0.5


def test_a_link_that_falls_as_soon_as_it_stands_is_one_that_was_not_made() -> None:
    backoff = Backoff(rng=Longest())
    for _ in range(3):
        backoff.next_delay_s()
    backoff.opened(1000)
    backoff.lost(1004.9)
    assert backoff.next_delay_s() == 4


def test_a_cheap_try_waits_no_longer_than_its_own_cap() -> None:
    backoff = Backoff(base_s=0.5, cap_s=60, rng=Longest())
    delays = [backoff.next_delay_s(5.0) for _ in range(6)]
    assert delays == [0.5, 1, 2, 4, 5, 5]
    assert backoff.next_delay_s() == 32
    assert backoff.next_delay_s(1000.0) == 60


def test_losing_what_never_opened_changes_nothing() -> None:
    backoff = Backoff(rng=Longest())
    backoff.next_delay_s()
    backoff.lost(10_000)
    backoff.opened(10_000)
    backoff.lost(10_001)
    backoff.lost(20_000)
    assert backoff.next_delay_s() == 1


def test_many_failures_do_not_overflow() -> None:
    backoff = Backoff(rng=Longest())
    assert [backoff.next_delay_s() for _ in range(5000)][-1] == 60


@given(st.randoms(use_true_random=False), st.integers(1, 40))
def test_delays_stay_within_floor_and_cap(rng: random.Random, attempts: int) -> None:
    backoff = Backoff(base_s=0.5, cap_s=60, rng=rng)
    for attempt in range(attempts):
        ceiling = min(60, 0.5 * 2**attempt)
        assert ceiling / 10 <= backoff.next_delay_s() <= ceiling


def test_a_crowd_is_spread_out_without_being_seeded() -> None:
    first = {Backoff().next_delay_s() for _ in range(50)}
    assert len(first) == 50
