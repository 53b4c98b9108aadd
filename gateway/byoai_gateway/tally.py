"""How requests under `/v1` and attempts at providers ended; read by the metrics.

An outcome is one of a closed set of words (our refusals' codes, the kinds of failures, and those
here), so that nothing a client or a provider sends can become a label.
"""

from bisect import bisect_left
from collections import Counter
from typing import Final, Self

ANSWERED: Final = "ok"
CLIENT_LEFT: Final = "client_left"
BROKEN_OFF: Final = "broken_off"
FAILED: Final = "internal_error"

FIRST_TOKEN_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
"""Upper bounds of the histogram: from a cached prompt to a model that has to be loaded."""


class Outcome:
    """How one request ends, counted when the block that answers it does."""

    __slots__ = ("_tally", "word")

    def __init__(self, tally: "RequestTally") -> None:
        self._tally = tally
        self.word = FAILED

    def ended(self, word: str) -> None:
        """Note that the request was answered, or refused with this code."""
        self.word = word

    def __enter__(self) -> Self:
        self._tally.in_flight += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._tally.in_flight -= 1
        self._tally.outcomes[self.word] += 1


class RequestTally:
    """The requests of one gateway, since it started."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.outcomes: Counter[str] = Counter()

    def request(self) -> Outcome:
        """Return a context manager that counts one request, however it ends."""
        return Outcome(self)


class Histogram:
    """How often a time was how long: a count for each bound of `FIRST_TOKEN_S`, and one beyond."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(FIRST_TOKEN_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self.counts[bisect_left(FIRST_TOKEN_S, seconds)] += 1
        self.sum_s += seconds


class AttemptTally:
    """The attempts of one gateway at providers, since it started."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """By provider and outcome."""
        self.fallbacks: Counter[str] = Counter()
        """By reason."""
        self.first_token: dict[str, Histogram] = {}
        """By provider: from the attempt's beginning to the answer's."""

    def ended(self, provider: str, outcome: str) -> None:
        """Count an attempt."""
        self.outcomes[provider, outcome] += 1

    def began(self, provider: str, after_s: float) -> None:
        """Count how long an answer took to begin."""
        histogram = self.first_token.get(provider)
        if histogram is None:
            histogram = self.first_token[provider] = Histogram()
        histogram.observe(after_s)
