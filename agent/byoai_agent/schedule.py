"""When a credential is to be replaced, pure: lifetimes and chance in, seconds out.

Lifetimes are measured from the gateway's clock (`serverTime` in its answers), because the
host's own may be wrong by hours. Waiting is measured twice: by the monotonic clock, which
nobody can set, and by the wall clock, which goes on while a laptop sleeps. Whichever says so
first is believed.
"""

import random
import time
from dataclasses import dataclass
from typing import Final

TOKEN_SHARE: Final = (0.5, 0.7)
"""A random point of the life, so that a thousand agents that started together spread out."""
CERTIFICATE_SHARE: Final = 2 / 3
_LEAST_WAIT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Reading:
    """Both clocks at one moment."""

    monotonic_s: float
    wall_s: float


def read_clocks() -> Reading:
    """Both clocks now."""
    return Reading(time.monotonic(), time.time())


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment, `delay_s` after `start`, that a sleeping host does not miss."""

    start: Reading
    delay_s: float

    def remaining_s(self, now: Reading) -> float:
        """Seconds left, never below zero; the clock that moved further counts."""
        passed = max(now.monotonic_s - self.start.monotonic_s, now.wall_s - self.start.wall_s)
        return max(0.0, self.delay_s - passed)


def token_refresh_after_s(life_s: float, rng: random.Random) -> float:
    """How long after it was issued a token is refreshed."""
    return max(_LEAST_WAIT_S, life_s * rng.uniform(*TOKEN_SHARE))


def certificate_renewal_after_s(life_s: float, elapsed_s: float = 0.0) -> float:
    """How long from now a certificate is renewed that has been alive for `elapsed_s`."""
    return max(_LEAST_WAIT_S, life_s * CERTIFICATE_SHARE - elapsed_s)
