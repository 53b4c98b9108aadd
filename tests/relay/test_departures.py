import pytest

from byoai_relay.departures import reason_of_close, reason_of_end
from byoai_shared.protocol.control import GoneReason
from byoai_shared.protocol.errors import CloseCode


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (CloseCode.IDLE, GoneReason.NETWORK_LOST),
        (CloseCode.TOKEN_EXPIRED, GoneReason.TOKEN_EXPIRED),
        (CloseCode.REVOKED, GoneReason.REVOKED),
        (CloseCode.REPLACED, GoneReason.REPLACED),
        (CloseCode.GOING_AWAY, GoneReason.DRAINED),
        (CloseCode.TOKEN_REFUSED, GoneReason.REFUSED),
        (CloseCode.ABUSE, GoneReason.REFUSED),
        (CloseCode.PROTOCOL_ERROR, GoneReason.REFUSED),
    ],
)
def test_a_relay_says_why_it_closed_a_link(code: CloseCode, reason: GoneReason) -> None:
    assert reason_of_close(code) is reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (CloseCode.NORMAL, GoneReason.STOPPED),
        (CloseCode.GOING_AWAY, GoneReason.STOPPED),
        (None, GoneReason.NETWORK_LOST),
        (1006, GoneReason.NETWORK_LOST),
    ],
)
def test_an_agent_that_says_nothing_was_cut_off(code: int | None, reason: GoneReason) -> None:
    assert reason_of_end(code) is reason
