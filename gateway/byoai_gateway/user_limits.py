"""What one user may ask of a gateway: how often, and how much at a time.

Requests under way are counted by each gateway for itself: a count that is shared is wrong for
long after a gateway has died. If the store cannot count, the answer is 503: without a count
nothing stands between one user and everybody's provider.
"""

import time
from collections.abc import Callable
from http import HTTPStatus
from math import ceil
from types import TracebackType
from typing import Final

from byoai_gateway.config import LimitsSection
from byoai_gateway.rate_windows import (
    MemoryWindows,
    Store,
    StoreAwayError,
    StoreWindows,
    Windows,
)
from byoai_gateway.refusals import Refusal
from byoai_shared.logs import get_logger

_AWAY_RETRY_S: Final = 2
_BUSY_RETRY_S: Final = 1
_TRIALS_PER_MINUTE: Final = 1_000_000

log = get_logger("gateway")


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
        self._is_store_away = False
        self._requests = self._windows("request", settings.requests_per_minute, clock)
        self._tests = self._windows("test", settings.connection_tests_per_minute, clock)
        self._changes = self._windows("change", settings.changes_per_minute, clock)
        # In memory, whatever the store does: revoking must work also while it is away.
        self._removals = MemoryWindows(settings.removals_per_minute, clock)
        self._trials = self._windows("trial", _TRIALS_PER_MINUTE, clock)

    def request(self, user_id: str) -> "_Admission":
        """Admit one request for as long as the block runs: `async with limits.request(id):`.

        Entering raises:
            Refusal: there are too many (429), or nobody can count them (503).
        """
        return _Admission(self, user_id)

    async def connection_test(self, user_id: str) -> None:
        """Count one test of a connection.

        Raises:
            Refusal: there are too many (429), or nobody can count them (503).
        """
        await self._count(self._tests, user_id, "tests of a connection")

    async def change(self, user_id: str) -> None:
        """Count one change of what is stored: writers take turns, and each leaves an audit entry.

        Raises:
            Refusal: there are too many (429), or nobody can count them (503).
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
        """Say why the store cannot count now, so that every request is refused; else empty.

        It counts as a request does: a store that may be read but not written to is found as well.
        """
        if self._store is None:
            return ""
        try:
            await self._trials.hit("gateway")
        except StoreAwayError as error:
            self._note_store(is_away=True, reason=str(error))
            found = "refuses the user name or password" if error.is_refused else "does not answer"
            return f"no request can be counted: limits.store {found}"
        if self._is_store_away:
            self._note_store(is_away=False)
        return ""

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

    async def _count(self, windows: Windows, user_id: str, what: str) -> None:
        try:
            wait_s = await windows.hit(user_id)
        except StoreAwayError as error:
            self._note_store(is_away=True, reason=str(error))
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "limits_unavailable",
                "requests cannot be counted at the moment; try again in a few seconds",
                retry_after_s=_AWAY_RETRY_S,
            ) from error
        if self._is_store_away:
            self._note_store(is_away=False)
        if wait_s is not None:
            raise _too_many(what, max(1, ceil(wait_s)))

    def _note_store(self, *, is_away: bool, reason: str | None = None) -> None:
        """Log a change, not every request that meets it."""
        if is_away and not self._is_store_away:
            log.error(
                "limits.store_away",
                setting="limits.store",
                reason=reason,
                next="see that the store runs and that limits.store leads to it; until it answers "
                "every request is refused with 503",
            )
        elif not is_away:
            log.info("limits.store_back")
        self._is_store_away = is_away

    def _windows(self, kind: str, per_minute: int, clock: Callable[[], float]) -> Windows:
        if self._store is None:
            return MemoryWindows(per_minute, clock)
        return StoreWindows(self._store, kind, per_minute)


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
