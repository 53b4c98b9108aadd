"""Ends a program at once, and without a traceback, when a signal comes while nothing handles it.

A program imports its modules for up to a second, and Ctrl-C meanwhile would print a traceback of
whatever is being imported; so would Ctrl-C at its very end. The handler that this module sets ends
the process as the signal itself would: shells and supervisors see an interruption (130 or 143 in
`$?`). Commands keep it until they end: each of them can be cut off at any moment, as by a crash.
Services put their own in its place while they run: see `runtime.StopSignal`.

It imports nothing but what Python has loaded anyway, so that the handler is set early.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM)


def run(load: Callable[[], Callable[[], object]]) -> None:
    """Import a program with `load` and run what that returns.

    A signal that the parent process had ignored, as shells do for background jobs, stays ignored.
    """
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_process)
    try:
        load()()
    except KeyboardInterrupt:  # while an event loop put its own handler back
        end_process(signal.SIGINT)


def end_process(number: int, _frame: FrameType | None = None) -> None:
    """End this process as a signal does: no clean-up, no output."""
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    # Windows has no such ends, and a container's first process survives them.
    os._exit(128 + number)
