import asyncio

import pytest

from byoai_gateway.tally import RequestTally
from byoai_shared.http1.errors import TruncatedMessage


def test_a_request_counts_by_the_word_for_its_end() -> None:
    tally = RequestTally()
    for word in ("ok", "ok", "agent_offline"):
        with tally.request() as outcome:
            assert tally.in_flight == 1
            outcome.ended(word)
    assert tally.in_flight == 0
    assert tally.outcomes == {"ok": 2, "agent_offline": 1}


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
