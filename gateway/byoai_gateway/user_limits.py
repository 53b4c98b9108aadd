"""What one user may ask of a gateway: how often, and how much at a time.

Requests under way are counted by each gateway for itself: a count that is shared is wrong for
long after a gateway has died. While the store cannot count, each gateway counts by itself with the
same limits (`limits.when_store_is_down`), or else the answer is 503: without a count nothing stands
between one user and everybody's provider.
"""

import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from math import ceil
from types import TracebackType
from typing import Final, NamedTuple

from byoai_gateway.config import LimitsSection
from byoai_gateway.rate_windows import MemoryWindows, StoreWindows
from byoai_gateway.refusals import Refusal
from byoai_gateway.shared_store import SharedStore

_BUSY_RETRY_S: Final = 1
_TRIALS_PER_MINUTE: Final = 1_000_000


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
        self.shared = SharedStore(settings, clock)
        self._concurrent = settings.concurrent_requests
        self._under_way: dict[str, int] = {}
        self._clock = clock
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
        trials = self._trials.shared
        if trials is None:
            return ""
        return await self.shared.why_not(partial(trials.hit, "gateway"))

    async def close(self) -> None:
        """Close the connections to the store."""
        await self.shared.close()

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
        wait_s = await self._hit(kind, user_id)
        if wait_s is not None:
            raise _too_many(what, max(1, ceil(wait_s)))

    async def _hit(self, kind: _Kind, user_id: str) -> float | None:
        """Count one: by the store if it answers, else here if that is allowed."""
        if kind.shared is None:
            return await kind.alone.hit(user_id)
        return await self.shared.ask(
            partial(kind.shared.hit, user_id), partial(kind.alone.hit, user_id)
        )

    def _kind(self, name: str, per_minute: int) -> _Kind:
        store = self.shared.store
        shared = None if store is None else StoreWindows(store, name, per_minute)
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
