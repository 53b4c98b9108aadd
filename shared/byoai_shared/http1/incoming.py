"""A body as it comes: from a connection to whoever wants it, never more of it than agreed.

Until somebody wants it, at most `buffer_bytes` (and one read) are kept and the connection is
paused. Then it goes by callback into a `BodySink`, which may pause it; or `read` collects it.
Only the framing makes it complete; anything else is an error, and the sink is told so.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from byoai_shared.http1.decoding import decoder
from byoai_shared.http1.errors import BodyTooLarge, HttpError
from byoai_shared.http1.framing import Framing


class BodySource(Protocol):
    """Where a body comes from. One sink at a time."""

    def attach(self, sink: "BodySink") -> None:
        """Let everything, from what is kept already, go to `sink`, by callback."""
        ...

    def detach(self) -> None:
        """Leave the sink alone from now on; keep (a bounded part of) what still comes."""
        ...

    def pause(self) -> None:
        """Hold the sender back; idempotent."""
        ...

    def resume(self) -> None:
        """Let it go on; idempotent."""
        ...


class BodySink(Protocol):
    """Where a body goes. All calls are made by its source, none may block."""

    def attached(self, source: BodySource) -> None:
        """Meet the source: it is what to pause, now if need be, and to resume."""
        ...

    def write(self, data: bytes) -> None:
        """Take a piece."""
        ...

    def flush(self) -> None:
        """Know that no piece is at hand: what was held back for joining should go."""
        ...

    def finish(self, data: bytes = b"") -> None:
        """Take the last piece, perhaps empty: the body is complete."""
        ...

    def fail(self, error: HttpError) -> None:
        """Know that the body ends here, incomplete."""
        ...


class Flow(Protocol):
    """What an incoming body is read from."""

    def pause_reading(self) -> None:
        """Stop reading; idempotent."""
        ...

    def resume_reading(self) -> None:
        """Read on; idempotent."""
        ...


class IncomingBody:
    """One received body: a `BodySource`.

    `complete` is True once its framing says so, `error` is why it will not be, `framing` is
    how it comes. `error` itself is never raised: sinks and readers get copies of it.
    """

    __slots__ = (
        "_buffer",
        "_buffered",
        "_capacity",
        "_decoder",
        "_flow",
        "_is_read",
        "_max_bytes",
        "_on_arrival",
        "_on_progress",
        "_on_wanted",
        "_received",
        "_sink",
        "_waiter",
        "complete",
        "error",
        "framing",
    )

    def __init__(
        self,
        flow: Flow,
        framing: Framing,
        *,
        buffer_bytes: int,
        max_overhead_bytes: int,
        max_bytes: int | None = None,
        on_wanted: Callable[[], None] | None = None,
    ) -> None:
        self.framing = framing
        self._flow = flow
        self._decoder = decoder(framing, max_overhead_bytes)
        self._capacity = buffer_bytes
        self._max_bytes = max_bytes
        self._on_wanted = on_wanted
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._received = 0
        self._sink: BodySink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_arrival: asyncio.Future[None] | None = None
        self._on_progress: Callable[[], None] | None = None
        self._is_read = False
        self.error: HttpError | None = None
        self.complete = self._decoder.done

    # ---- for the connection

    def feed(self, data: bytes) -> bytes:
        """Take what was read; return what comes after the body once it is complete.

        Raises RemoteProtocolError; the connection then calls `fail`.
        """
        payload = self._decoder.feed(data)
        if self._on_progress is not None:
            self._on_progress()
        if self._max_bytes is not None:
            self._received += len(payload)
            if self._received > self._max_bytes:
                raise BodyTooLarge(self._max_bytes)
        if self._decoder.done:
            self._complete(payload)
            return self._decoder.rest
        if payload:
            if self._sink is not None:
                self._sink.write(payload)
            else:
                self._keep(payload)
        return b""

    def end(self) -> None:
        """Take the end of the connection. Raises TruncatedMessage unless that ends the body."""
        self._decoder.end()
        if not self.complete:
            self._complete(b"")

    def fail(self, error: HttpError) -> None:
        """Tell whoever waits, or comes later, that the body will not be complete."""
        if self.complete or self.error is not None:
            return
        self.error = error.with_traceback(None)
        sink, self._sink = self._sink, None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error.copied())
        if self._on_arrival is not None:
            self._tell_arrival(self._on_arrival)
        if sink is not None:
            sink.fail(error.copied())

    # ---- for whoever wants the body

    def attach(self, sink: BodySink) -> None:
        """See `BodySource`."""
        self._want()
        self._sink = sink
        sink.attached(self)
        data = self._take()
        if self.complete:
            self._sink = None
            sink.finish(data)
        elif self.error is not None:
            self._sink = None
            sink.fail(self.error.copied())
        elif data:
            sink.write(data)
        else:
            sink.flush()

    def detach(self) -> None:
        """See `BodySource`."""
        self._sink = None

    def pause(self) -> None:
        """See `BodySource`."""
        if not self.complete:
            self._flow.pause_reading()

    def resume(self) -> None:
        """See `BodySource`."""
        if not self.complete:
            self._flow.resume_reading()

    async def pipe(self, sink: BodySink) -> None:
        """Let everything go to `sink`; return when it is complete, or raise why it is not.

        Cancelled, it detaches the sink.
        """
        self.attach(sink)
        try:
            await self._wait()
        except asyncio.CancelledError:
            self.detach()
            raise

    async def read(self, limit: int) -> bytes:
        """Return the whole body. Raises BodyTooLarge, at once if its length is declared."""
        if isinstance(self.framing, int) and self.framing > limit:
            self.error = BodyTooLarge(limit, self.framing)
        elif self._buffered > limit:
            self.error = BodyTooLarge(limit)
        if self.error is not None:
            raise self.error.copied()
        self._capacity = limit
        self._is_read = True
        self._want()
        await self._wait()
        return self._take()

    def watch(self, on_progress: Callable[[], None] | None) -> None:
        """Call `on_progress` for each piece that comes from now on, before it goes anywhere."""
        self._on_progress = on_progress

    async def peek(self, is_enough: Callable[[bytes], bool]) -> bytes:
        """Wait for as much as `is_enough` accepts, or for the end; return it, and leave it here.

        Every byte is still delivered to a sink or a reader. Where enough has come already, there
        is no wait. An end that is an error is reported to the reader of the body.
        """
        self._want()
        while True:
            data = b"".join(self._buffer)
            if self.complete or self.error is not None or is_enough(data):
                return data
            self._on_arrival = asyncio.get_running_loop().create_future()
            try:
                await self._on_arrival
            finally:
                self._on_arrival = None

    def take(self) -> bytes:
        """Return what has come and was not taken yet; all of it if it is `complete`."""
        return self._take()

    # ---- inside

    def _want(self) -> None:
        wanted, self._on_wanted = self._on_wanted, None
        if wanted is not None:
            wanted()
        self.resume()

    def _keep(self, payload: bytes) -> None:
        self._buffer.append(payload)
        self._buffered += len(payload)
        if self._on_arrival is not None:
            self._tell_arrival(self._on_arrival)
        if self._buffered > self._capacity:
            self._flow.pause_reading()
            if self._is_read and self._waiter is not None and not self._waiter.done():
                self.error = BodyTooLarge(self._capacity)
                self._waiter.set_exception(self.error.copied())

    def _take(self) -> bytes:
        buffer, self._buffer = self._buffer, []
        self._buffered = 0
        return buffer[0] if len(buffer) == 1 else b"".join(buffer)

    def _complete(self, payload: bytes) -> None:
        sink, self._sink = self._sink, None
        if sink is None and payload:
            self._keep(payload)
        self.complete = True
        if sink is not None:
            sink.finish(payload)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._on_arrival is not None:
            self._tell_arrival(self._on_arrival)

    @staticmethod
    def _tell_arrival(waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        if self.complete:
            return
        if self.error is not None:
            raise self.error.copied()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
