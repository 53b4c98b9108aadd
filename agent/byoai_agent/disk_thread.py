"""Runs calls that may wait for a disk outside the event loop: one at a time, in a thread.

A write to a full, slow or vanished file system can take seconds, or never return. Such a thread
cannot be stopped, so it is a daemon: it keeps neither the event loop nor the program's end waiting.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


class DiskThread:
    """One call at a time; a call that does not return blocks only those that come after it."""

    def __init__(self) -> None:
        self._running: asyncio.Future[object] | None = None

    async def call(self, work: Callable[[], _T], timeout_s: float) -> _T:
        """Run `work` and return its result.

        After a timeout, or when the caller is cancelled, a call that has begun goes on to its end.

        Raises:
            TimeoutError: it, or the call before it, did not return in time.
        """
        async with asyncio.timeout(timeout_s):
            while self._running is not None and not self._running.done():
                await asyncio.wait((self._running,))
            result: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
            self._running = result  # type: ignore[assignment] # only its end is looked at
            threading.Thread(target=_run, args=(work, result), name="disk", daemon=True).start()
            return await asyncio.shield(result)


def _run(work: Callable[[], _T], result: "asyncio.Future[_T]") -> None:
    loop = result.get_loop()
    try:
        value = work()
    except BaseException as error:  # noqa: BLE001 -- it is raised where the result is awaited
        settle: Callable[[], None] = _failing(result, error)
    else:
        settle = lambda: result.set_result(value)  # noqa: E731 -- two ways to one end
    with suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(settle)


def _failing(result: "asyncio.Future[_T]", error: BaseException) -> Callable[[], None]:
    def settle() -> None:
        result.set_exception(error)
        result.exception()  # its caller may have given up; the loop need not report it

    return settle
