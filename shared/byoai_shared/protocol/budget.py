"""A token bucket: how much of something is borne in a burst and over time."""


class TokenBucket:
    """`capacity` tokens at most, refilled at `refill_per_s`; time is an argument."""

    __slots__ = ("_capacity", "_refill_per_s", "_tokens", "_updated")

    def __init__(self, capacity: float, refill_per_s: float, *, now: float) -> None:
        self._capacity = capacity
        self._refill_per_s = refill_per_s
        self._tokens = capacity
        self._updated = now

    def spend(self, cost: float, now: float, *, keep: float = 0.0) -> bool:
        """Take `cost` tokens; False, and nothing is taken, if fewer than `keep` would be left."""
        elapsed = max(0.0, now - self._updated)
        self._tokens = min(self._capacity, self._tokens + elapsed * self._refill_per_s)
        self._updated = now
        if cost > self._tokens - keep:
            return False
        self._tokens -= cost
        return True
