"""When to try again: exponential backoff with full jitter, which grows only while connecting fails.

Full jitter spreads a crowd that lost the same relay over the whole interval. A connection that
held for a few seconds starts the delays from the smallest again; one that fell before that counts
as one that was not made.
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
        stable_after_s: float = 5.0,
        rng: random.Random | None = None,
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._stable_after_s = stable_after_s
        self._rng = rng or random.SystemRandom()
        self._failures = 0
        self._opened_at: float | None = None

    def next_delay_s(self, cap_s: float | None = None) -> float:
        """Return how long to wait before the next attempt, and count that one as failing.

        `cap_s` limits this delay more than the others: the attempt is cheap.
        """
        cap_s = self._cap_s if cap_s is None else min(cap_s, self._cap_s)
        # The exponent is bounded: 2**2000 is no float.
        ceiling = min(cap_s, self._base_s * 2 ** min(self._failures, 32))
        self._failures += 1
        return self._rng.uniform(ceiling * _FLOOR_SHARE, ceiling)

    def opened(self, now: float) -> None:
        """Note that an attempt succeeded at `now`."""
        self._opened_at = now

    def lost(self, now: float) -> None:
        """Note that what was opened is lost; after a few seconds the delays start over."""
        if self._opened_at is not None and now - self._opened_at >= self._stable_after_s:
            self._failures = 0
        self._opened_at = None
