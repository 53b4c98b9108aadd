"""Standard output and error that neither end nor hold up a program, however printing fails.

A reader can go away (`| head`, a log collector that ends), a disk behind a redirection can fill up,
a terminal can close, a stream can be closed from the start. Then what is printed is lost, and the
program goes on. A command notices it at its end, if its output was the purpose: `finish`.

A service goes further, because a pipe that nobody reads blocks its writer: `write_in_background`
hands all lines to a thread. What does not fit into its queue is dropped and counted.
"""

import atexit
import errno
import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol, TextIO

MAX_QUEUED_BYTES: Final = 1024 * 1024
_LAST_WORDS_S: Final = 1.0
"""How long the end of a program waits for a reader of its last lines."""
# The reader went away before the end, as `head` does: no failure of the command.
_READER_GONE: Final = {errno.EPIPE, errno.EINVAL} if os.name == "nt" else {errno.EPIPE}


class _Sink(Protocol):
    """Where bytes go: the raw stream below a text stream."""

    def write(self, data: memoryview, /) -> int | None: ...
    def fileno(self) -> int: ...
    def isatty(self) -> bool: ...


class _Tolerant(io.RawIOBase):
    """Writes everything to a raw stream; what fails is lost and the error kept."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__()
        self._sink = sink
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._sink.fileno()

    def isatty(self) -> bool:
        return self._sink.isatty()

    def write(self, data: Any, /) -> int:
        self.pass_on(bytes(data))
        return len(data)

    def pass_on(self, data: bytes) -> bool:
        """Write to the raw stream, waiting as long as it takes; whether that went well."""
        rest = memoryview(data)
        try:
            while rest:
                written = self._sink.write(rest)
                if written is None:  # another program made the terminal or pipe non-blocking
                    select.select((), (self._sink.fileno(),), ())
                else:
                    rest = rest[written:]
        except OSError as error:
            self.error = error
            return False
        return True


class _Queued(io.RawIOBase):
    """Hands everything to a thread that writes it."""

    def __init__(self, below: _Tolerant, max_bytes: int) -> None:
        super().__init__()
        self._below = below
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._lost = 0
        self._is_working = True
        threading.Thread(target=self._work, name="output", daemon=True).start()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._below.fileno()

    def isatty(self) -> bool:
        return self._below.isatty()

    def write(self, data: Any, /) -> int:
        line = bytes(data)
        with self._changed:
            if self._queued_bytes + len(line) > self._max_bytes:
                self._lost += 1
            else:
                self._queue.append(line)
                self._queued_bytes += len(line)
                self._changed.notify_all()
        return len(line)

    def take_lost(self) -> int:
        """The lines lost so far, once lines are written again; each is counted once."""
        with self._changed:
            if not self._is_working or self._queued_bytes > self._max_bytes // 2:
                return 0
            lost, self._lost = self._lost, 0
            return lost

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is written; whether that came to pass in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queued_bytes, timeout_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                line = self._queue.popleft()
            is_written = self._below.pass_on(line)
            with self._changed:
                self._is_working = is_written
                self._lost += not is_written
                self._queued_bytes -= len(line)
                self._changed.notify_all()


class TolerantStream(io.TextIOWrapper):
    """A standard stream that raises no error when it is written."""

    def __init__(self, stream: TextIO) -> None:
        buffer: Any = stream.buffer
        self.below = _Tolerant(getattr(buffer, "raw", buffer))
        super().__init__(
            io.BufferedWriter(self.below),
            encoding=stream.encoding,
            errors="replace",  # a log collector or a Windows pipe may know no check mark
            line_buffering=stream.isatty() or stream is sys.__stderr__,
        )


class BackgroundStream(io.TextIOWrapper):
    """A standard stream of a service: writing it takes no time and raises no error."""

    def __init__(self, stream: TolerantStream, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        self._queued = _Queued(stream.below, max_bytes)
        super().__init__(
            io.BufferedWriter(self._queued),
            encoding=stream.encoding,
            errors="replace",
            line_buffering=True,
        )

    def take_lost(self) -> int:
        """The lines lost since the last call, once lines are written again."""
        return self._queued.take_lost()

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is written; whether that came to pass in time."""
        return self._queued.drain(timeout_s)


def protect() -> None:
    """Make standard output and error tolerant; the first thing that a program does.

    Streams that a test has put in their place stay as they are.
    """
    _open_missing()
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _tolerant(sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _tolerant(sys.stderr)


def write_in_background() -> None:
    """Let a service's output neither block nor end it; after `protect`, before logs are set up."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, TolerantStream):
            stream.flush()
            background = BackgroundStream(stream)
            setattr(sys, name, background)
            atexit.register(background.drain, _LAST_WORDS_S)


def finish(code: int) -> int:
    """Flush the output of a command; its exit code, which is not 0 if its output was lost.

    A reader that has seen enough is no failure.
    """
    out = sys.stdout
    out.flush()
    if not isinstance(out, TolerantStream) or out.below.error is None:
        return code
    if out.below.error.errno in _READER_GONE:
        return code
    sys.stderr.write(f"cannot write the output: {out.below.error.strerror}\n")
    return code or 1


def run(main: Callable[[], object]) -> None:
    """Run a command line with protected streams, and end with its exit code."""
    protect()
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    sys.exit(finish(code if isinstance(code, int) else int(code is not None)))


def _tolerant(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 -- until the end
    return TolerantStream(stream)


def _open_missing() -> None:
    """Keep a socket or a file from being opened in the place of a closed standard stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
