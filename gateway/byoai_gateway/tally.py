"""How requests under `/v1` ended: counted where they are answered, read by the metrics.

An outcome is one of a closed set of words (our refusals' codes, and those here), so that
nothing a client sends can become a label.
"""

import asyncio
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from byoai_shared.http1.errors import HttpError

CLIENT_LEFT: Final = "client_left"
BROKEN_OFF: Final = "broken_off"
FAILED: Final = "internal_error"


class Outcome:
    """How one request ends; whoever answers it says so."""

    __slots__ = ("word",)

    def __init__(self) -> None:
        self.word = FAILED

    def ended(self, word: str) -> None:
        """It was answered, or refused with this code."""
        self.word = word


class RequestTally:
    """The requests of one gateway, since it started."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.outcomes: Counter[str] = Counter()

    @contextmanager
    def request(self) -> Generator[Outcome]:
        """Count one request, however it ends."""
        outcome = Outcome()
        self.in_flight += 1
        try:
            yield outcome
        except asyncio.CancelledError:
            outcome.word = CLIENT_LEFT
            raise
        except HttpError:
            outcome.word = BROKEN_OFF
            raise
        finally:
            self.in_flight -= 1
            self.outcomes[outcome.word] += 1
