from hypothesis import given
from hypothesis import strategies as st

from byoai_gateway.router.breaker import PROBE_WAIT_S, Breakers, Key
from byoai_gateway.router.upstream import ProviderName
from support.control import FakeClock

ANNA: Key = ("anna", ProviderName.OPENROUTER, "")
BERT: Key = ("bert", ProviderName.OPENROUTER, "")
ANNAS_OWN: Key = ("anna", ProviderName.SELF_HOSTED, "")
FAILURES = 3
OPEN_S = 30.0


def a_breaker(clock: FakeClock, size: int = 100) -> Breakers:
    return Breakers(FAILURES, OPEN_S, clock, size)


def opened(clock: FakeClock) -> Breakers:
    breakers = a_breaker(clock)
    for _ in range(FAILURES):
        assert breakers.admit(ANNA) is None
        breakers.failed(ANNA)
    return breakers


def half_open(clock: FakeClock) -> Breakers:
    breakers = opened(clock)
    clock.advance(OPEN_S)
    return breakers


def test_it_opens_after_failures_in_a_row() -> None:
    clock = FakeClock()
    breakers = opened(clock)
    assert breakers.admit(ANNA) == OPEN_S
    clock.advance(10)
    assert breakers.admit(ANNA) == OPEN_S - 10


def test_a_success_begins_the_row_anew() -> None:
    breakers = a_breaker(FakeClock())
    for _ in range(FAILURES):
        breakers.failed(ANNA)
        breakers.failed(ANNA)
        breakers.succeeded(ANNA)
    assert breakers.admit(ANNA) is None
    assert len(breakers) == 0


def test_a_refusal_is_no_success() -> None:
    breakers = a_breaker(FakeClock())
    for _ in range(FAILURES):
        breakers.failed(ANNA)
        breakers.released(ANNA)
    assert breakers.admit(ANNA) is not None


def test_it_is_never_shared() -> None:
    breakers = opened(FakeClock())
    assert breakers.admit(BERT) is None
    assert breakers.admit(ANNAS_OWN) is None


def test_one_agent_says_nothing_about_the_next() -> None:
    breakers = a_breaker(FakeClock())
    sick: Key = ("anna", ProviderName.SELF_HOSTED, "agent-1")
    sound: Key = ("anna", ProviderName.SELF_HOSTED, "agent-2")
    for _ in range(FAILURES):
        breakers.failed(sick)
    assert breakers.admit(sick) == OPEN_S
    assert breakers.admit(sound) is None
    assert breakers.admit(ANNAS_OWN) is None


def test_how_long_to_wait_is_told_without_trying() -> None:
    clock = FakeClock()
    breakers = opened(clock)
    assert (breakers.wait_s(ANNA), breakers.wait_s(BERT)) == (OPEN_S, None)
    clock.advance(OPEN_S + 1)
    assert [breakers.wait_s(ANNA) for _ in range(3)] == [0.0] * 3
    assert breakers.admit(ANNA) is None
    assert breakers.wait_s(ANNA) == PROBE_WAIT_S


def test_exactly_one_may_try_when_the_time_is_over() -> None:
    breakers = half_open(FakeClock())
    waits = [breakers.admit(ANNA) for _ in range(10)]
    assert waits == [None] + [PROBE_WAIT_S] * 9


def test_it_closes_when_the_try_succeeds() -> None:
    breakers = half_open(FakeClock())
    breakers.admit(ANNA)
    breakers.succeeded(ANNA)
    assert [breakers.admit(ANNA) for _ in range(3)] == [None] * 3


def test_it_opens_for_the_whole_time_again_when_the_try_fails() -> None:
    clock = FakeClock()
    breakers = half_open(clock)
    breakers.admit(ANNA)
    clock.advance(5)
    breakers.failed(ANNA)
    assert breakers.admit(ANNA) == OPEN_S
    clock.advance(OPEN_S)
    assert [breakers.admit(ANNA) for _ in range(2)] == [None, PROBE_WAIT_S]


def test_another_may_try_when_the_try_was_given_up() -> None:
    breakers = half_open(FakeClock())
    breakers.admit(ANNA)
    breakers.released(ANNA)
    assert [breakers.admit(ANNA) for _ in range(2)] == [None, PROBE_WAIT_S]


def test_failures_of_requests_from_before_do_not_keep_it_open() -> None:
    clock = FakeClock()
    breakers = opened(clock)
    clock.advance(OPEN_S - 1)
    breakers.failed(ANNA)
    assert breakers.admit(ANNA) == 1.0


def test_users_not_heard_of_for_longest_are_forgotten() -> None:
    breakers = Breakers(1, OPEN_S, FakeClock(), size=2)
    keys: list[Key] = [(f"user-{n}", ProviderName.OPENROUTER, "") for n in range(3)]
    breakers.failed(keys[0])
    breakers.failed(keys[1])
    breakers.failed(keys[0])
    breakers.failed(keys[2])
    assert len(breakers) == 2
    assert breakers.admit(keys[1]) is None
    assert breakers.admit(keys[0]) is not None


def test_a_user_without_failures_takes_no_room() -> None:
    breakers = a_breaker(FakeClock())
    for n in range(100):
        key: Key = (f"user-{n}", ProviderName.DEFAULT, "")
        breakers.admit(key)
        breakers.released(key)
        breakers.succeeded(key)
    assert len(breakers) == 0


STEPS = st.lists(
    st.sampled_from(["ask", "succeeded", "failed", "released"]) | st.integers(0, 40), max_size=80
)


@given(STEPS)
def test_whatever_happens_one_at_a_time_it_is_open_only_after_failures_in_a_row(
    steps: list[str | int],
) -> None:
    clock = FakeClock()
    breakers = a_breaker(clock)
    in_a_row, is_asking = 0, False
    for step in steps:
        if isinstance(step, int):
            clock.advance(step)
        elif step == "ask":
            wait_s = None if is_asking else breakers.admit(ANNA)
            assert wait_s is None or (in_a_row >= FAILURES and 0 < wait_s <= OPEN_S)
            is_asking = is_asking or wait_s is None
        elif is_asking:
            is_asking = False
            getattr(breakers, step)(ANNA)
            in_a_row = {"succeeded": 0, "failed": in_a_row + 1, "released": in_a_row}[step]
    clock.advance(OPEN_S)
    if is_asking:
        breakers.released(ANNA)
    assert breakers.admit(ANNA) is None


def test_answers_that_one_fault_cut_are_one_failure() -> None:
    clock = FakeClock()
    breakers = a_breaker(clock)
    answered_at = clock()
    clock.advance(1)
    for _ in range(FAILURES + 1):
        breakers.failed(ANNA, answered_at)
        clock.advance(0.01)
    assert breakers.admit(ANNA) is None


def test_answers_that_break_off_one_after_another_open_it() -> None:
    clock = FakeClock()
    breakers = a_breaker(clock)
    for _ in range(FAILURES):
        clock.advance(1)
        answered_at = clock()
        clock.advance(1)
        breakers.failed(ANNA, answered_at)
    assert breakers.admit(ANNA) is not None
