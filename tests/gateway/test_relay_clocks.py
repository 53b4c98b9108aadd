"""Relays' clocks beside ours: what is warned of, and when that is taken back."""

import pytest

from byoai_gateway.relay_clocks import TOLERANCE_S, RelayClocks
from support.relays import Clock


def test_a_clock_is_wrong_beyond_what_tokens_bear_and_until_it_is_not() -> None:
    ours = Clock(10_000.7)
    clocks = RelayClocks(ours)
    for unix_time, expected in (
        (10_000 + TOLERANCE_S, 0),
        (10_001 + TOLERANCE_S, 1),
        (9_999 - TOLERANCE_S, 1),
        (10_000, 0),
    ):
        clocks.compare("wss://r", unix_time)
        assert len(clocks.warnings()) == expected
        assert clocks.differences_s == {"wss://r": unix_time - 10_000}


def test_each_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    clocks = RelayClocks(Clock(10_000.0))
    for unix_time in (13_600, 13_601, 13_602, 10_000, 10_001):
        clocks.compare("wss://r", unix_time)
    assert caplog.text.count("relay.clock_differs") == 1
    assert caplog.text.count("relay.clock_agrees") == 1


def test_a_relay_without_a_link_has_no_clock() -> None:
    clocks = RelayClocks(Clock(10_000.0))
    clocks.compare("wss://r", 13_600)
    clocks.compare("wss://other", 6_400)
    clocks.forget("wss://r")
    clocks.forget("wss://r")
    (warning,) = clocks.warnings()
    assert warning == (
        "wss://other: relay clock differs from the gateway's by about 3600 s (it is behind); "
        "set the relay's clock (NTP)"
    )
