"""What one user may ask of a gateway: how often, and how much at a time.

Requests under way are counted by each gateway for itself: a count that is shared is wrong for
long after a gateway has died. While the store cannot count, each gateway counts by itself with the
same limits (`limits.when_store_is_down`), or else the answer is 503: without a count nothing stands
between one user and everybody's provider.
"""

import time
from collections.abc import Callable
from http import HTTPStatus
from math import ceil
from types import TracebackType
from typing import Final, NamedTuple

from byoai_gateway.config import LimitsSection
from byoai_gateway.rate_windows import (
    MemoryWindows,
    Store,
    StoreAwayError,
    StoreWindows,
)
from byoai_gateway.refusals import Refusal
from byoai_shared.logs import get_logger

_AWAY_RETRY_S: Final = 2
_BUSY_RETRY_S: Final = 1
ASK_AGAIN_S: Final = 1.0
"""Between two requests that find out whether a store that is away is back."""
_TRIALS_PER_MINUTE: Final = 1_000_000

log = get_logger("gateway")


class _Kind(NamedTuple):
    """What is counted together."""

    alone: MemoryWindows
    """By this gateway."""
    shared: StoreWindows | None
    """By the store, if there is one."""


class UserLimits:
    """All limits of all users; close it with `close`.

    Raises:
        ConfigError: `limits.store` is no address of a store.
    """

    def __init__(
        self, settings: LimitsSection, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = Store(settings.store) if settings.store else None
        self._concurrent = settings.concurrent_requests
        self._under_way: dict[str, int] = {}
        self._clock = clock
        self._may_count_alone = settings.when_store_is_down == "open"
        self._ask_again_at = 0.0
        self._refuses_us = False
        self.is_store_away = False
        """Whether the store failed to count when it was asked last."""
        self.counted_alone = 0
        """What this gateway has counted by itself because the store was away."""
        self._requests = self._kind("request", settings.requests_per_minute)
        self._tests = self._kind("test", settings.connection_tests_per_minute)
        self._changes = self._kind("change", settings.changes_per_minute)
        # In memory, whatever the store does: revoking must work also while it is away.
        self._removals = MemoryWindows(settings.removals_per_minute, clock)
        self._trials = self._kind("trial", _TRIALS_PER_MINUTE)

    def request(self, user_id: str) -> "_Admission":
        """Admit one request for as long as the block runs: `async with limits.request(id):`.

        Entering raises:
            Refusal: there are too many (429), or they cannot be counted (503).
        """
        return _Admission(self, user_id)

    async def connection_test(self, user_id: str) -> None:
        """Count one test of a connection.

        Raises:
            Refusal: there are too many (429), or they cannot be counted (503).
        """
        await self._count(self._tests, user_id, "tests of a connection")

    async def change(self, user_id: str) -> None:
        """Count one change of what is stored: writers take turns, and each leaves an audit entry.

        Raises:
            Refusal: there are too many (429), or they cannot be counted (503).
        """
        await self._count(self._changes, user_id, "changes")

    async def removal(self, user_id: str) -> None:
        """Count one removal of a tunnel or an agent.

        Raises:
            Refusal: there are too many (429).
        """
        wait_s = await self._removals.hit(user_id)
        if wait_s is not None:
            raise _too_many("removals", max(1, ceil(wait_s)))

    async def why_not(self) -> str:
        """Say why the store cannot count now, if every request is refused for it; else empty.

        It counts as a request does: a store that may be read but not written to is found as well.
        """
        if self._trials.shared is None:
            return ""
        try:
            await self._trials.shared.hit("gateway")
        except StoreAwayError as error:
            self._note_away(error)
        else:
            self._note_back()
        return "" if self._may_count_alone else self._why_away()

    def degraded(self) -> str:
        """Say what is done without the store; empty while it counts, or nothing is done."""
        if not self._may_count_alone or not self.is_store_away:
            return ""
        return f"{self._why_away()}; this gateway counts by itself, with the same limits"

    async def close(self) -> None:
        """Close the connections to the store."""
        if self._store is not None:
            await self._store.close()

    async def enter(self, user_id: str) -> None:
        """Begin a request; `leave` ends it unless this raises."""
        under_way = self._under_way.get(user_id, 0)
        if under_way >= self._concurrent:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_concurrent_requests",
                f"{under_way} requests of yours are under way, which is the limit; "
                "try again when one has ended",
                retry_after_s=_BUSY_RETRY_S,
            )
        self._under_way[user_id] = under_way + 1
        try:
            await self._count(self._requests, user_id, "requests")
        except BaseException:
            self.leave(user_id)
            raise

    def leave(self, user_id: str) -> None:
        """End a request that `enter` began."""
        left = self._under_way[user_id] - 1
        if left:
            self._under_way[user_id] = left
        else:
            del self._under_way[user_id]

    async def _count(self, kind: _Kind, user_id: str, what: str) -> None:
        try:
            wait_s = await self._hit(kind, user_id)
        except StoreAwayError as error:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "limits_unavailable",
                "requests cannot be counted at the moment; try again in a few seconds",
                retry_after_s=_AWAY_RETRY_S,
            ) from error
        if wait_s is not None:
            raise _too_many(what, max(1, ceil(wait_s)))

    async def _hit(self, kind: _Kind, user_id: str) -> float | None:
        """Count one: by the store if it answers, else here if that is allowed."""
        if kind.shared is None:
            return await kind.alone.hit(user_id)
        if self.is_store_away and self._may_count_alone:
            if self._clock() < self._ask_again_at:
                return await self._hit_alone(kind, user_id)
            self._ask_again_at = self._clock() + ASK_AGAIN_S  # this request finds out for all
        try:
            wait_s = await kind.shared.hit(user_id)
        except StoreAwayError as error:
            self._note_away(error)
            if not self._may_count_alone:
                raise
            return await self._hit_alone(kind, user_id)
        self._note_back()
        return wait_s

    async def _hit_alone(self, kind: _Kind, user_id: str) -> float | None:
        self.counted_alone += 1
        return await kind.alone.hit(user_id)

    def _note_away(self, error: StoreAwayError) -> None:
        """Log a change, not every request that meets it."""
        self._ask_again_at = self._clock() + ASK_AGAIN_S
        self._refuses_us = error.is_refused
        if self.is_store_away:
            return
        self.is_store_away = True
        until = (
            "each gateway counts by itself, with the same limits"
            if self._may_count_alone
            else "every request is refused with 503"
        )
        log.warning(
            "limits.store_away",
            setting="limits.store",
            reason=str(error),
            next=f"see that the store runs and that limits.store leads to it; until it answers "
            f"{until} (limits.when_store_is_down)",
        )

    def _note_back(self) -> None:
        if self.is_store_away:
            self.is_store_away = False
            log.info("limits.store_back")

    def _why_away(self) -> str:
        if not self.is_store_away:
            return ""
        found = "refuses the user name or password" if self._refuses_us else "does not answer"
        return f"no request can be counted for all gateways: limits.store {found}"

    def _kind(self, name: str, per_minute: int) -> _Kind:
        shared = StoreWindows(self._store, name, per_minute) if self._store is not None else None
        return _Kind(MemoryWindows(per_minute, self._clock), shared)


class _Admission:
    """A request's stay; a class, because a generator costs three times as much."""

    __slots__ = ("_limits", "_user_id")

    def __init__(self, limits: UserLimits, user_id: str) -> None:
        self._limits = limits
        self._user_id = user_id

    async def __aenter__(self) -> None:
        await self._limits.enter(self._user_id)

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._limits.leave(self._user_id)


def _too_many(what: str, wait_s: int) -> Refusal:
    return Refusal(
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limit_exceeded",
        f"too many {what} in this minute; try again in {wait_s} s",
        retry_after_s=wait_s,
    )
