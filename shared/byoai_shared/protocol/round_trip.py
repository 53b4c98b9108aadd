"""How long a round trip takes: as it is now, and as it is when nothing stands in the way.

Windows are sized by the second. The first grows with every queue, and a window sized by it would
feed the queue that it measures (bufferbloat).
"""

from typing import Final

MEMORY_S: Final = 300.0
"""The best sample is believed for this long at least, and for twice as long at most."""


class RoundTrip:
    """Samples of one way there and back."""

    __slots__ = ("_best", "_best_before", "_turned_at", "smoothed_s")

    def __init__(self) -> None:
        self.smoothed_s: float | None = None
        """The present round trip, smoothed (RFC 6298's gain of 1/8)."""
        self._best: float | None = None
        self._best_before: float | None = None
        self._turned_at = 0.0

    def add(self, sample_s: float, now: float) -> None:
        """Take a sample."""
        known = self.smoothed_s
        self.smoothed_s = sample_s if known is None else known + (sample_s - known) / 8
        if self._best is None or now - self._turned_at >= MEMORY_S:
            self._best_before, self._best = self._best, sample_s
            self._turned_at = now
        else:
            self._best = min(self._best, sample_s)

    @property
    def base_s(self) -> float:
        """The best of the last minutes; 0 while there is no sample."""
        bests = [best for best in (self._best, self._best_before) if best is not None]
        return min(bests, default=0.0)
