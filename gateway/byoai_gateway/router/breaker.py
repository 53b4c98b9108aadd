"""Leaves a provider alone for a while after it failed one user several times in a row.

One breaker per user and provider, and per agent of a tunnel that has several, never shared: one
user's bad key, model or machine says nothing about another's, nor one agent about the next. When
the time is over exactly one request may try; the others keep being refused until it is known how
that went. A user nobody has heard of for long is forgotten.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from byoai_gateway.router.upstream import ProviderName

Key = tuple[str, ProviderName, str]
"""A user's id, whom they ask, and by which agent; an empty one where there is no choice."""

PROBE_WAIT_S: Final = 1.0
"""When to come back while another request is trying."""


@dataclass(slots=True)
class _State:
    failures: int = 0
    open_until: float | None = None
    """None while the breaker is closed."""
    is_probed: bool = False
    failed_at: float | None = None


class Breakers:
    """The breakers of all users; only those with failures take any room."""

    def __init__(
        self, failures: int, open_s: float, clock: Callable[[], float], size: int = 10_000
    ) -> None:
        """Open after `failures` in a row, for `open_s` by the (monotonic) `clock`."""
        self._failures = failures
        self._open_s = open_s
        self._clock = clock
        self._size = size
        self._states: OrderedDict[Key, _State] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def admit(self, key: Key) -> float | None:
        """Return None if the provider may be asked, else for how many seconds it may not.

        Whoever is admitted says what became of it: `succeeded`, `failed` or `released`.
        """
        wait_s = self.wait_s(key)
        if wait_s is None:
            return None
        if wait_s > 0:
            return wait_s
        self._states[key].is_probed = True
        return None

    def wait_s(self, key: Key) -> float | None:
        """Return None while a breaker is closed, 0 if one may try, else how long none may."""
        state = self._states.get(key)
        if state is None or state.open_until is None:
            return None
        if state.is_probed:
            return PROBE_WAIT_S
        return max(0.0, state.open_until - self._clock())

    def succeeded(self, key: Key) -> None:
        """The provider answered."""
        self._states.pop(key, None)

    def failed(self, key: Key, answered_at: float | None = None) -> None:
        """The provider failed, by a fault of its own.

        `answered_at`, by the clock, is when it had begun the answer that then broke off: whatever
        cuts many answers at once, a model server that starts anew, is one failure.
        """
        state = self._states.setdefault(key, _State())
        self._states.move_to_end(key)
        failed_at, state.failed_at = state.failed_at, self._clock()
        if answered_at is not None and failed_at is not None and answered_at <= failed_at:
            self.released(key)
            return
        state.failures += 1
        # A request from before it opened is no news: it must not keep the breaker open.
        is_news = state.open_until is None or state.is_probed
        if state.failures >= self._failures and is_news:
            state.open_until = self._clock() + self._open_s
        state.is_probed = False
        while len(self._states) > self._size:
            self._states.popitem(last=False)

    def released(self, key: Key) -> None:
        """It is not known how the provider does: the attempt was given up, or was refused.

        If it was the one that tried, the next may. A request that was admitted before the
        breaker opened is not told from it, and may so let one more try.
        """
        state = self._states.get(key)
        if state is not None:
            state.is_probed = False
