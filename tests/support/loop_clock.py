"""The event loop's clock, moved on by a test instead of waited for.

Timers of code under test are set far beyond a test's own limit, so that on no machine they fire
by themselves; a test that is about a timer moves the clock past it. The clock otherwise goes on
as ever.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

NEVER_S = 100.0
"""For timers: longer than a test may take."""
SETTLED_ROUNDS = 100


def loop_time() -> float:
    """The running loop's time, for code that takes a clock."""
    return asyncio.get_running_loop().time()


def skip(seconds: float) -> None:
    """Move the running loop's clock on; timers that are due then fire in its next round."""
    loop = asyncio.get_running_loop()
    unmoved = _unmoved(loop)
    ahead_s = loop.time() - unmoved() + seconds
    _replace(loop, lambda: unmoved() + ahead_s)


async def settle() -> None:
    """Let everything on this loop happen that no timer, other process or thread has to allow.

    What is written to a socket of this machine can be read at once, so a round of the loop takes
    it one step further however slow the machine is.
    """
    for _ in range(SETTLED_ROUNDS):
        await asyncio.sleep(0)


async def pass_time(seconds: float) -> None:
    """Move the clock on between what has happened by now and what follows."""
    await settle()
    skip(seconds)
    await settle()


async def while_time_passes(work: Coroutine[Any, Any, T], step_s: float) -> T:
    """The result of `work`, while the clock moves on in steps.

    For timers that are set only after something that this loop does not do, as in a thread.
    """
    task = asyncio.ensure_future(work)
    while not task.done():
        await pass_time(step_s)
        await asyncio.wait((task,), timeout=0.001)
    return await task


@contextmanager
def stopped() -> Generator[None]:
    """Let no timer fire: what happens in here, happens because of an event."""
    loop = asyncio.get_running_loop()
    moving, now = loop.time, loop.time()
    _replace(loop, lambda: now)
    try:
        yield
    finally:
        _replace(loop, moving)


def _unmoved(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    return lambda: type(loop).time(loop)


def _replace(loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
    loop.time = clock  # type: ignore[method-assign]  # the loop reads its time from nowhere else
