"""When to try again: exponential backoff with full jitter, forgiven by stability.

Full jitter spreads a crowd that lost the same relay over the whole interval; a connection that
held for a while wipes the slate clean, one that keeps breaking does not.
"""

import random

_FLOOR_SHARE = 0.1


class Backoff:
    """Delays between attempts. Pure: the caller sleeps, and tells the monotonic time."""

    def __init__(
        self,
        *,
        base_s: float = 0.5,
        cap_s: float = 60.0,
        stable_after_s: float = 60.0,
        rng: random.Random | None = None,
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._stable_after_s = stable_after_s
        self._rng = rng or random.SystemRandom()
        self._failures = 0
        self._opened_at: float | None = None

    def next_delay_s(self) -> float:
        """Return how long to wait before the next attempt, and count that one as failing."""
        # The exponent is bounded: 2**2000 is no float.
        ceiling = min(self._cap_s, self._base_s * 2 ** min(self._failures, 32))
        self._failures += 1
        return self._rng.uniform(ceiling * _FLOOR_SHARE, ceiling)

    def opened(self, now: float) -> None:
        """Note that an attempt succeeded at `now`."""
        self._opened_at = now

    def lost(self, now: float) -> None:
        """Note that what was opened is lost; after enough stability the delays start anew."""
        if self._opened_at is not None and now - self._opened_at >= self._stable_after_s:
            self._failures = 0
        self._opened_at = None
