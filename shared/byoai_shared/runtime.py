"""How a program of ours runs: its event loop, its garbage collector, its signals.

It decides nothing about what runs; a program that is asked to stop does so by itself.
"""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Final, Self

from byoai_shared.entry_point import end_process
from byoai_shared.logs import report_loop_error
from byoai_shared.open_files import raise_open_files_limit

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C, by the convention of shells: 128 and the signal's number."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a program and return its exit code.

    uvloop where it is installed, asyncio's own loop elsewhere or with
    `BYOAI_EVENT_LOOP=asyncio`.
    """
    raise_open_files_limit()
    # Measured: full collections over a large, stable heap were a third of the tail latency.
    gc.set_threshold(100_000, 50, 50)
    # And what was imported stays for good: 65 ms less for each of those that are left.
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_reporting(main))
    except KeyboardInterrupt:  # before or after the program listens for signals
        return INTERRUPTED
    finally:
        gc.unfreeze()


async def _reporting(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    # The loop's own report prints the arguments of callbacks: what a client sent.
    asyncio.get_running_loop().set_exception_handler(report_loop_error)
    return await main()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if os.environ.get("BYOAI_EVENT_LOOP") == "asyncio" or sys.platform == "win32":
        return None
    try:
        import uvloop  # noqa: PLC0415 - optional: half the CPU on small writes where it exists
    except ImportError:
        return None
    return uvloop.new_event_loop


class StopSignal:
    """SIGINT, SIGTERM and SIGHUP as events: the first one asks, the second one insists.

    A third one ends the process, in case something keeps the program from acting on the others.
    A terminal that closes sends SIGHUP; whoever started us with `nohup` wants it ignored.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.insisted = asyncio.Event()
        self._previous: dict[signal.Signals, Any] = {}
        self._handled = _stopping()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in self._handled:
            self._previous[number] = signal.getsignal(number)
            try:
                loop.add_signal_handler(number, self._received, number)
            except NotImplementedError:  # Windows
                signal.signal(number, self._from_thread(loop))
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number, previous in self._previous.items():
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, previous)

    def _received(self, number: int) -> None:
        if self.insisted.is_set():
            end_process(number)
        (self.insisted if self.requested.is_set() else self.requested).set()

    def _from_thread(
        self, loop: asyncio.AbstractEventLoop
    ) -> Callable[[int, FrameType | None], None]:
        def handler(number: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._received, number)

        return handler


def _stopping() -> tuple[signal.Signals, ...]:
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # None on Windows
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return _SIGNALS
    return (*_SIGNALS, hangup)
