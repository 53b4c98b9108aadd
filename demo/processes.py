"""One child program: started, followed through its log, stopped in order or killed.

A program is up when it says so (an event called `*.ready` in its JSON log), not when a port
happens to answer. One that ends before that, or takes too long, is an error that carries the last
lines of its log. Children get a session of their own, so that Ctrl-C at a terminal reaches the
parent alone, which then stops them in the right order. A `Lifeline` ends them with a parent that is
killed and cannot stop anything.
"""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from .lifeline import Lifeline

T = TypeVar("T")

Event = Mapping[str, Any]
"""One line of a JSON log; the fields are each program's own."""

LONGEST_LINE = 1024 * 1024
# Limits on what has gone wrong, not on how fast a machine is.
READY_S = 60.0
EVENT_S = 30.0
STOP_S = 30.0
COMMAND_S = 60.0
FOLLOWED_S = 30.0


class ProcessError(Exception):
    """A program did not do what it was started for; the sentence ends with its last log lines."""


class Process:
    """A child program and its log, which is also kept in `<directory>/<name>.log`.

    It can be started again after `stop` or `kill`; the log file goes on, the events begin anew.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        directory: Path,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log_path = directory / f"{name}.log"
        self.events: list[Event] = []
        self.lines: list[str] = []
        self._environ = environ
        self._changed = asyncio.Condition()
        self._child: asyncio.subprocess.Process | None = None
        self._lifeline = Lifeline()
        self._followers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        """The process id; an error when it is not running."""
        if self._child is None:
            raise ProcessError(f"{self.name} is not running")
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._child is not None and self._child.returncode is None

    async def start(self) -> None:
        """Start the program; returns as soon as it exists."""
        self.events.clear()
        self.lines.clear()
        with self._lifeline.tied(self.command) as (command, stdin):
            self._child = await asyncio.create_subprocess_exec(
                *command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **(self._environ or {})},
                start_new_session=True,
                limit=LONGEST_LINE,
            )
        # Two pipes, because a library may write its own log in pieces: lines must stay whole.
        outputs = (self._child.stdout, self._child.stderr)
        self._followers = [asyncio.create_task(self._follow(output)) for output in outputs]

    async def _follow(self, output: asyncio.StreamReader | None) -> None:
        """Keep every line, and the events among them, until the program ends."""
        if output is None:
            return
        with self.log_path.open("ab", buffering=0) as log:
            async for line in output:
                log.write(line)
                self.lines.append(line.decode(errors="replace"))
                if (event := parsed(line)) is not None:
                    self.events.append(event)
                await self._tell()
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def ready(self, timeout_s: float = READY_S) -> Event:
        """Wait for its `*.ready` event.

        Raises:
            ProcessError: it ended, or the time is up.
        """
        return await self.event(lambda event: is_named(event, ".ready"), timeout_s)

    async def event(
        self, wanted: Callable[[Event], bool], timeout_s: float = EVENT_S, after: int = 0
    ) -> Event:
        """The first event from the `after`-th on that is `wanted`, past or still to come.

        Raises:
            ProcessError: it ended, or the time is up.
        """
        return await self._first(self.events, wanted, timeout_s, after)

    async def line(self, text: str, timeout_s: float = EVENT_S) -> str:
        """The first line with `text` in it, for programs that log no events; else like `event`."""
        return await self._first(self.lines, lambda line: text in line, timeout_s, 0)

    async def _first(
        self, log: Sequence[T], wanted: Callable[[T], bool], timeout_s: float, after: int
    ) -> T:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                while True:
                    for entry in log[after:]:
                        if wanted(entry):
                            return entry
                    after = max(after, len(log))
                    if all(follower.done() for follower in self._followers):
                        raise ProcessError(f"{self.name} ended early{self.last_lines()}")
                    await self._changed.wait()
        except TimeoutError as error:
            why = f"{self.name} did not get as far as expected in {timeout_s:g} s"
            raise ProcessError(why + self.last_lines()) from error

    async def stop(self, timeout_s: float = STOP_S) -> int:
        """Ask it to end (SIGTERM), kill it when it does not; answers its exit code. Idempotent."""
        if self.is_running:
            self._signal(signal.SIGTERM)
        return await self.ended(timeout_s)

    def interrupt(self) -> None:
        """Press Ctrl-C (SIGINT), once."""
        self._signal(signal.SIGINT)

    async def kill(self) -> None:
        """End it with no chance to say goodbye (SIGKILL)."""
        if self.is_running:
            self._signal(signal.SIGKILL)
        await self.ended(STOP_S)

    async def ended(self, timeout_s: float) -> int:
        """Wait for its end, for so long, then kill it; answers the exit code."""
        if self._child is None:
            return 0
        try:
            async with asyncio.timeout(timeout_s):
                await self._child.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._child.wait()
        self._lifeline.cut()
        await asyncio.wait(self._followers, timeout=FOLLOWED_S)
        for follower in self._followers:
            follower.cancel()
        return self._child.returncode or 0

    def _signal(self, number: int) -> None:
        """To its whole session: a program's own children must not outlive it."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def last_lines(self, count: int = 15) -> str:
        """The end of its log, as a paragraph for an error message."""
        if not self.log_path.exists():
            return ""
        lines = self.log_path.read_text(errors="replace").splitlines()[-count:]
        return "; its last lines:\n" + "\n".join(f"    {line}" for line in lines)


def parsed(line: bytes) -> Event | None:
    """A log line as an event, or None when it is some other text."""
    if not line.startswith(b"{"):
        return None
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return event


def is_named(event: Event, name: str) -> bool:
    """Whether the event's dotted name ends so."""
    return str(event.get("event", "")).endswith(name)


async def output_of(
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    timeout_s: float = COMMAND_S,
) -> str:
    """Run a command to its end and answer what it wrote to standard output.

    Raises:
        ProcessError: it failed or took too long; with what it wrote to standard error.
    """
    name = f"{Path(command[0]).name} {command[1]}"
    lifeline = Lifeline()
    with lifeline.tied(command) as (tied, stdin):
        child = await asyncio.create_subprocess_exec(
            *tied,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate()
    except TimeoutError as error:
        raise ProcessError(f"{name} took longer than {timeout_s:g} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        lifeline.cut()
    if child.returncode:
        said = err.decode(errors="replace") + out.decode(errors="replace")
        raise ProcessError(f"{name} failed with exit code {child.returncode}:\n{said.strip()}")
    return out.decode()
