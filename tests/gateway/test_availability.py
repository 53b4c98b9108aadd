"""A database that is away costs one question a second, and nobody else a wait."""

from collections.abc import Callable

import pytest

from byoai_gateway.availability import PROBE_EVERY_S, SILENT_S, Availability, Question
from support.control import FakeClock


@pytest.fixture
def availability(clock: FakeClock) -> Availability:
    return Availability(clock)


def asked(availability: Availability, *, is_read: bool = True) -> Question:
    question = availability.ask(is_read=is_read)
    assert question is not None
    return question


def test_after_a_failure_one_at_a_time_finds_out_whether_it_is_back(
    availability: Availability, clock: FakeClock
) -> None:
    availability.failed(asked(availability))
    assert availability.ask(is_read=True) is None
    due = [availability.is_probe_due]
    clock.advance(PROBE_EVERY_S)
    due.append(availability.is_probe_due)
    assert due == [False, True]
    probe = asked(availability)
    assert availability.ask(is_read=False) is None
    availability.failed(probe)
    assert availability.ask(is_read=True) is None
    clock.advance(PROBE_EVERY_S)
    availability.answered(asked(availability, is_read=False))
    assert not availability.is_away
    asked(availability)
    asked(availability)


def test_a_probe_whose_asker_leaves_makes_room_for_the_next(
    availability: Availability, clock: FakeClock
) -> None:
    availability.failed(asked(availability))
    clock.advance(PROBE_EVERY_S)
    availability.drop(asked(availability))
    assert availability.is_away
    asked(availability)


def test_a_failure_of_a_question_from_before_the_last_answer_says_nothing(
    availability: Availability, clock: FakeClock
) -> None:
    old = asked(availability)
    clock.advance(0.5)
    availability.answered(asked(availability))
    availability.failed(old)
    assert not availability.is_away


def test_a_reader_that_waits_for_long_makes_it_suspect_until_another_is_answered(
    availability: Availability, clock: FakeClock
) -> None:
    asked(availability, is_read=False)  # a writer may wait for its turn
    clock.advance(SILENT_S)
    states = [availability.is_suspect]
    asked(availability)
    clock.advance(SILENT_S / 2)
    states.append(availability.is_suspect)
    assert states == [False, False]
    clock.advance(SILENT_S / 2)
    assert (availability.is_suspect, availability.is_away) == (True, False)
    assert availability.silent_s == 2 * SILENT_S
    availability.answered(asked(availability))
    assert not availability.is_suspect
    assert availability.silent_s == 0


@pytest.mark.parametrize(("waited_s", "is_suspect"), [(0.0, False), (SILENT_S, True)])
def test_who_leaves_after_a_long_wait_makes_it_suspect_and_no_question_is_refused_for_it(
    availability: Availability, clock: FakeClock, waited_s: float, *, is_suspect: bool
) -> None:
    clock.advance(1)
    question = asked(availability)
    clock.advance(waited_s)
    availability.drop(question)
    assert (availability.is_suspect, availability.is_away) == (is_suspect, False)
    availability.answered(asked(availability))
    assert not availability.is_suspect


@pytest.mark.parametrize("end", [Availability.answered, Availability.failed, Availability.drop])
def test_a_question_that_ended_is_not_waited_for(
    availability: Availability,
    clock: FakeClock,
    end: Callable[[Availability, Question], None],
) -> None:
    end(availability, asked(availability))
    clock.advance(PROBE_EVERY_S)
    availability.answered(asked(availability))
    clock.advance(10 * SILENT_S)
    assert not availability.is_suspect
