"""Answers of slow questions, remembered for a moment: bounded in number and in age.

What is remembered is at most `FRESH_S` old when it is used first, and looked up again by one
request while the others go on with what is known.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

FRESH_S: Final = 2.0
MAX_REMEMBERED: Final = 10_000

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class _Remembered(Generic[_Value]):
    __slots__ = ("is_being_renewed", "looked_up_at", "value")

    def __init__(self, value: _Value, looked_up_at: float) -> None:
        self.value = value
        self.looked_up_at = looked_up_at
        self.is_being_renewed = False


class Memory(Generic[_Key, _Value]):
    """Answers of a slow question by key: bounded in number and in age."""

    def __init__(
        self,
        look_up: Callable[[_Key], Awaitable[_Value]],
        *,
        fresh_s: float = FRESH_S,
        size: int = MAX_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
        is_kept: Callable[[_Value], bool] = lambda _: True,
    ) -> None:
        """`is_kept` says of an answer whether it is remembered; else each asks anew."""
        self._look_up = look_up
        self._is_kept = is_kept
        self._fresh_s = fresh_s
        self._size = size
        self._clock = clock
        self._known: OrderedDict[_Key, _Remembered[_Value]] = OrderedDict()
        self._forgotten = 0

    async def get(self, key: _Key) -> _Value:
        """Return the answer; what `look_up` raises is raised and not remembered."""
        known = self._known.get(key)
        if known is None:
            return await self._ask(key)
        is_fresh = self._clock() - known.looked_up_at <= self._fresh_s
        if is_fresh or known.is_being_renewed:
            return known.value
        known.is_being_renewed = True
        try:
            return await self._ask(key)
        except BaseException:
            self._known.pop(key, None)
            raise

    def forget(self, key: _Key) -> None:
        """Ask again the next time; an answer that is on its way already is not remembered."""
        self._known.pop(key, None)
        self._forgotten += 1

    async def _ask(self, key: _Key) -> _Value:
        forgotten = self._forgotten
        value = await self._look_up(key)
        if forgotten != self._forgotten or not self._is_kept(value):
            self._known.pop(key, None)
            return value
        self._known[key] = _Remembered(value, self._clock())
        self._known.move_to_end(key)
        if len(self._known) > self._size:
            self._known.popitem(last=False)
        return value
