"""Answers of the database, remembered for a moment: bounded in number and in age.

An answer is at most `FRESH_S` old when it is used first, and looked up again for one request while
the others go on with what is known. While the database does not answer, what is known is used
until it is `stale_s` old, and no request waits for the database longer than `PATIENCE_S`. Who asks
for what is not known is told that the database is away.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from byoai_gateway.availability import Availability
from byoai_gateway.database import DatabaseUnavailable
from byoai_gateway.vault import KeysUnavailable

FRESH_S: Final = 2.0
STALE_S: Final = 600.0
PATIENCE_S: Final = 0.5
"""Longest wait for an answer while an older one is known."""
MAX_REMEMBERED: Final = 10_000

_AWAY: Final = (DatabaseUnavailable, KeysUnavailable, SQLAlchemyError)

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class _Remembered(Generic[_Value]):
    __slots__ = ("is_outdated", "looked_up_at", "value")

    def __init__(self, value: _Value, looked_up_at: float) -> None:
        self.value = value
        self.looked_up_at = looked_up_at
        self.is_outdated = False


class Memory(Generic[_Key, _Value]):
    """Answers of a slow question by key: bounded in number and in age; close it with `close`."""

    def __init__(
        self,
        look_up: Callable[[_Key], Awaitable[_Value]],
        availability: Availability,
        *,
        fresh_s: float = FRESH_S,
        stale_s: float = STALE_S,
        size: int = MAX_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
        is_kept: Callable[[_Value], bool] = lambda _: True,
    ) -> None:
        """`is_kept` says of an answer whether it is remembered; else each asks anew."""
        self._look_up = look_up
        self._availability = availability
        self._is_kept = is_kept
        self._fresh_s = fresh_s
        self._stale_s = stale_s
        self._size = size
        self._clock = clock
        self._known: OrderedDict[_Key, _Remembered[_Value]] = OrderedDict()
        self._forgotten = 0
        self._renewals: dict[_Key, asyncio.Task[_Value]] = {}
        self._tasks: set[asyncio.Task[_Value]] = set()

    async def get(self, key: _Key) -> _Value:
        """Return the answer; what `look_up` raises is raised and not remembered.

        Raises:
            DatabaseUnavailable: the database is away, and nothing young enough is known.
        """
        known = self._known.get(key)
        if known is None:
            return await self._ask(key)
        if not known.is_outdated and self._clock() - known.looked_up_at <= self._fresh_s:
            return known.value
        if not self._may_be_used(known):
            return await asyncio.shield(self._renewals.get(key) or self._renew(key))
        if self._availability.is_suspect:
            if key not in self._renewals and self._availability.is_probe_due:
                self._renew(key)  # finds out whether it is back; nobody waits for that
            return self._stale(known)
        if key in self._renewals:
            return known.value
        return await self._renewed(key, known)

    def forget(self, key: _Key) -> None:
        """Drop what is known, which is wrong; an answer on its way is not remembered either."""
        self._known.pop(key, None)
        self._renewals.pop(key, None)
        self._forgotten += 1

    def outdate(self, key: _Key) -> None:
        """Ask again the next time; what is known is used only while the database is away."""
        known = self._known.get(key)
        if known is not None:
            known.is_outdated = True
        self._renewals.pop(key, None)
        self._forgotten += 1

    async def close(self) -> None:
        """End the questions that nobody waits for any more."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _may_be_used(self, known: _Remembered[_Value]) -> bool:
        return self._clock() - known.looked_up_at <= self._stale_s

    def _stale(self, known: _Remembered[_Value]) -> _Value:
        self._availability.stale_answers += 1
        return known.value

    async def _renewed(self, key: _Key, known: _Remembered[_Value]) -> _Value:
        """Return the new answer; or the known one, if the new one fails to come or takes long."""
        renewal = self._renew(key)
        done, _ = await asyncio.wait((renewal,), timeout=PATIENCE_S)
        if not done:
            return self._stale(known)
        try:
            return renewal.result()
        except _AWAY:
            return self._stale(known)
        except Exception:
            self._known.pop(key, None)
            raise

    def _renew(self, key: _Key) -> asyncio.Task[_Value]:
        """Ask in a task of its own: a client that leaves, or does not wait, ends no question."""
        task = asyncio.create_task(self._ask(key))
        self._renewals[key] = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: _Key, task: asyncio.Task[_Value]) -> None:
        self._tasks.discard(task)
        if self._renewals.get(key) is task:
            del self._renewals[key]
        if not task.cancelled():
            task.exception()  # whoever waited for it has it; the database has logged its own

    async def _ask(self, key: _Key) -> _Value:
        forgotten = self._forgotten
        value = await self._look_up(key)
        if not self._is_kept(value):
            self._known.pop(key, None)
        elif forgotten == self._forgotten:
            self._known[key] = _Remembered(value, self._clock())
            self._known.move_to_end(key)
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        return value
