import asyncio

import pytest

from byoai_gateway.tally import RequestTally
from byoai_shared.http1.errors import TruncatedMessage


def test_an_answer_counts_by_the_class_of_its_status() -> None:
    tally = RequestTally()
    for status in (200, 204, 429, 502):
        with tally.request() as outcome:
            assert tally.in_flight == 1
            outcome.answered(status)
    assert tally.in_flight == 0
    assert tally.outcomes == {"answered_2xx": 2, "answered_4xx": 1, "answered_5xx": 1}


def test_a_refusal_counts_by_its_code() -> None:
    tally = RequestTally()
    with tally.request() as outcome:
        outcome.refused("agent_offline")
    assert tally.outcomes == {"agent_offline": 1}


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (asyncio.CancelledError(), "client_left"),
        (TruncatedMessage("it ended"), "broken_off"),
        (ZeroDivisionError(), "internal_error"),
    ],
)
def test_a_request_that_does_not_end_well_is_counted_too(error: BaseException, word: str) -> None:
    tally = RequestTally()
    with pytest.raises(type(error)), tally.request():
        raise error
    assert (tally.in_flight, tally.outcomes) == (0, {word: 1})
