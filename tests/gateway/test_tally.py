import pytest

from byoai_gateway.tally import RequestTally


def test_a_request_counts_by_the_word_for_its_end() -> None:
    tally = RequestTally()
    for word in ("ok", "ok", "agent_offline"):
        with tally.request() as outcome:
            assert tally.in_flight == 1
            outcome.ended(word)
    assert tally.in_flight == 0
    assert tally.outcomes == {"ok": 2, "agent_offline": 1}


def test_a_request_that_fails_without_a_word_is_counted_too() -> None:
    tally = RequestTally()
    with pytest.raises(ZeroDivisionError), tally.request():
        raise ZeroDivisionError
    assert (tally.in_flight, tally.outcomes) == (0, {"internal_error": 1})
