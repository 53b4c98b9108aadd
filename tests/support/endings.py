"""Seeing every process end that a killed parent has left."""

import os
import signal

import psutil

from support.waiting import until


async def all_end_with(parent: int) -> list[psutil.Process]:
    """Kill a parent and return what was below it, once the last of those processes has ended.

    The watchdogs count too, which are no children of the parent but in its children's sessions.
    """
    children = psutil.Process(parent).children(recursive=True)
    sessions = {os.getsid(it.pid) for it in children} - {os.getsid(parent)}
    left = {*children, *(it for session in sessions for it in members_of(session))}
    os.kill(parent, signal.SIGKILL)
    await until(lambda: not any(_goes_on(it) for it in left))
    return list(left)


def members_of(session: int) -> list[psutil.Process]:
    """The processes of a session that go on."""
    return [it for it in psutil.process_iter() if _session(it) == session and _goes_on(it)]


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def _goes_on(process: psutil.Process) -> bool:
    """A process that has ended may not have been reaped yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
