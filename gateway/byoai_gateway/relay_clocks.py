"""The relays' clocks, compared with ours. A relay whose clock is wrong refuses agents' tokens.

A relay gives its time when a link is made, and again every 30 s. So a warning is taken back when
its clock is set, or ours, and a clock that becomes wrong while a link lasts is found as well.
"""

from collections.abc import Callable
from typing import Final

from byoai_shared.logs import get_logger

TOLERANCE_S: Final = 10

log = get_logger("gateway")


class RelayClocks:
    """By how much the clocks of the connected relays are ahead of ours."""

    def __init__(self, unix_now: Callable[[], float]) -> None:
        self._unix_now = unix_now
        self.differences_s: dict[str, int] = {}
        """As each relay that gives its time gave it last."""

    def compare(self, relay: str, unix_time: int) -> None:
        """Take note of what a relay's clock shows."""
        difference_s = unix_time - int(self._unix_now())
        was_wrong = abs(self.differences_s.get(relay, 0)) > TOLERANCE_S
        is_wrong = abs(difference_s) > TOLERANCE_S
        self.differences_s[relay] = difference_s
        if is_wrong and not was_wrong:
            log.warning(
                "relay.clock_differs",
                relay=relay,
                reason=clock_sentence(difference_s),
                next="set the relay's clock (NTP): it refuses agents' tokens until then",
            )
        elif was_wrong and not is_wrong:
            log.info("relay.clock_agrees", relay=relay)

    def forget(self, relay: str) -> None:
        """The link to a relay is gone."""
        self.differences_s.pop(relay, None)

    def warnings(self) -> tuple[str, ...]:
        """Return a sentence for each connected relay whose clock is not like ours."""
        return tuple(
            f"{relay}: {clock_sentence(difference_s)}; set the relay's clock (NTP)"
            for relay, difference_s in sorted(self.differences_s.items())
            if abs(difference_s) > TOLERANCE_S
        )


def clock_sentence(difference_s: int) -> str:
    """Say by how much a relay's clock is ahead of the gateway's, or behind it."""
    way = "ahead" if difference_s > 0 else "behind"
    return f"relay clock differs from the gateway's by about {abs(difference_s)} s (it is {way})"
