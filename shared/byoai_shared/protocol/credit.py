"""Flow control: how many bytes of one stream may be under way in one direction.

The receiver grants credit, the sender spends it. The receiver gives back what its
application has consumed, a quarter of the window at a time, and doubles the window when all of it
was consumed within one and a half round trips: then the window, not the application, was the
limit. (A quarter: what is short of a share is kept back for a round trip, so that with halves
hardly more than half a window may be under way, and its fullness is never seen.)
"""

import math
from typing import Final

from byoai_shared.protocol.errors import LocalProtocolError
from byoai_shared.protocol.frames import MAX_CREDIT

INITIAL_CREDIT: Final = 256 * 1024
MAX_WINDOW: Final = 4 * 1024 * 1024
GROWTH_ROUND_TRIPS: Final = 1.5
SHARES: Final = 4
SMALL_CREDIT_BYTES: Final = 4096
"""CREDIT below this costs its sender extra. Ours are `INITIAL_CREDIT // SHARES` at the least."""


class SendWindow:
    """What we may still send."""

    __slots__ = ("available",)

    def __init__(self, initial: int) -> None:
        self.available = initial

    def spend(self, size: int) -> None:
        """Count bytes that leave.

        Raises:
            LocalProtocolError: more than is available.
        """
        if size > self.available:
            raise LocalProtocolError(f"sending {size} bytes with credit for {self.available}")
        self.available -= size

    def grant(self, size: int) -> bool:
        """Add credit from the peer; False when it is zero or overflows (RESET the stream)."""
        if size == 0 or self.available + size > MAX_CREDIT:
            return False
        self.available += size
        return True


class ReceiveWindow:
    """What the peer may still send, and when to let it send more."""

    __slots__ = (
        "_measured",
        "_measured_since",
        "_remaining",
        "_unreturned",
        "maximum",
        "round_trip_s",
        "size",
    )

    def __init__(self, initial: int, *, maximum: int = MAX_WINDOW) -> None:
        self.size = initial
        self.maximum = max(maximum, initial)
        self.round_trip_s = 0.0
        """The round trip to the sender and back when nothing queues, end to end."""
        self._remaining = initial
        self._unreturned = 0
        self._measured = 0
        self._measured_since = -math.inf

    def receive(self, size: int) -> bool:
        """Count bytes that arrived; False when the sender overran its credit."""
        self._remaining -= size
        return self._remaining >= 0

    def consume(self, size: int, now: float) -> int:
        """Count bytes the application took; the answer is the credit to send now, often 0."""
        self._unreturned += size
        if self._unreturned < self.size // SHARES:
            return 0
        credit = self._unreturned
        self._unreturned = 0
        self._measured += credit
        if self._measured >= self.size:
            took_s = now - self._measured_since
            self._measured = 0
            self._measured_since = now
            if took_s < GROWTH_ROUND_TRIPS * self.round_trip_s and self.size < self.maximum:
                grown = min(self.size * 2, self.maximum)
                credit += grown - self.size
                self.size = grown
        self._remaining += credit
        return credit
