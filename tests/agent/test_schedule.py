import random

from hypothesis import given
from hypothesis import strategies as st

from byoai_agent.schedule import (
    Deadline,
    Reading,
    certificate_renewal_after_s,
    token_refresh_after_s,
)

START = Reading(monotonic_s=1000.0, wall_s=5e9)


@given(st.floats(min_value=2, max_value=3600), st.integers())
def test_a_token_is_refreshed_between_half_and_seven_tenths(life_s: float, seed: int) -> None:
    delay_s = token_refresh_after_s(life_s, random.Random(seed))
    assert 0.5 * life_s <= delay_s <= 0.7 * life_s


def test_agents_that_started_together_refresh_apart() -> None:
    delays = {round(token_refresh_after_s(900, random.Random(seed))) for seed in range(50)}
    assert len(delays) > 30


def test_a_certificate_is_renewed_at_two_thirds_of_its_life() -> None:
    day_s = 24 * 3600.0
    assert certificate_renewal_after_s(day_s) == 16 * 3600
    assert certificate_renewal_after_s(day_s, elapsed_s=15 * 3600) == 3600


def test_a_life_that_is_over_is_renewed_soon_but_not_in_a_tight_loop() -> None:
    assert 0 < certificate_renewal_after_s(3600, elapsed_s=1e6) < 1
    assert 0 < token_refresh_after_s(-5, random.Random(1)) < 1


def test_a_deadline_counts_down() -> None:
    deadline = Deadline(START, 100)
    assert deadline.remaining_s(Reading(1040.0, START.wall_s + 40)) == 60
    assert deadline.remaining_s(Reading(2000.0, START.wall_s + 1000)) == 0


def test_a_host_that_slept_finds_its_deadline_past() -> None:
    """The monotonic clock stands still in sleep, the wall clock does not."""
    assert Deadline(START, 600).remaining_s(Reading(1001.0, START.wall_s + 3600)) == 0


def test_a_clock_set_back_delays_nothing() -> None:
    deadline = Deadline(START, 100)
    assert deadline.remaining_s(Reading(1090.0, START.wall_s - 1e6)) == 10
