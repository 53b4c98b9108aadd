"""One stream of a link as an ordinary asyncio transport.

What runs on top (TLS, and HTTP in it) needs to know nothing of frames and credit: a paused
reader holds its credit back, a writer above its mark is paused, a RESET is a lost connection.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from byoai_shared.protocol.errors import ResetCode

WRITE_HIGH_BYTES: Final = 256 * 1024
WRITE_LOW_BYTES: Final = 64 * 1024


class StreamCarrier(Protocol):
    """What a stream needs of its link."""

    def send(self, stream_id: int, data: bytes) -> None:
        """Queue bytes of the stream."""

    def finish(self, stream_id: int) -> None:
        """Half-close the stream after the queued bytes."""

    def reset(self, stream_id: int, code: ResetCode) -> None:
        """Abort the stream."""

    def consume(self, stream_id: int, size: int) -> None:
        """Let the peer send `size` more bytes."""

    def unsent_bytes(self, stream_id: int) -> int:
        """Bytes of the stream that have not left yet."""
        ...

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Run a callback in the loop's next turn."""

    def report(self, error: Exception) -> None:
        """Tell the event loop of an exception of a protocol; the link goes on."""

    def watch_writer(self, stream: "StreamTransport") -> None:
        """Call `writing_progressed` after each flush until it answers False."""

    def linger(self, stream_id: int) -> None:
        """Our half is closed for good; reset the stream if the peer does not finish soon."""


class StreamTransport(asyncio.Transport):
    """An asyncio transport over one stream; `close` flushes, `abort` resets."""

    def __init__(
        self, carrier: StreamCarrier, stream_id: int, extra: dict[str, Any] | None = None
    ) -> None:
        super().__init__(extra)
        self.stream_id = stream_id
        self._carrier = carrier
        self._protocol: asyncio.Protocol | None = None
        self._received: deque[bytes] = deque()
        self._is_reading_paused = False
        self._has_eof = False
        self._is_closing = False
        self._is_lost = False
        self._is_writing_paused = False
        self._write_high = WRITE_HIGH_BYTES
        self._write_low = WRITE_LOW_BYTES

    def start(self, protocol: asyncio.Protocol) -> None:
        """Attach the protocol and tell it that the stream stands."""
        self._protocol = protocol
        try:
            protocol.connection_made(self)
        except Exception as error:  # noqa: BLE001 - it costs its stream, never the link
            self._failed(error)

    # -- asyncio.Transport

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replace the protocol; it is not told `connection_made`."""
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the attached protocol."""
        return cast("asyncio.Protocol", self._protocol)

    def is_closing(self) -> bool:
        """Whether `close` or `abort` was called, or the stream is over."""
        return self._is_closing

    def is_reading(self) -> bool:
        """Whether received bytes are passed on at once."""
        return not self._is_reading_paused and not self._is_closing

    def pause_reading(self) -> None:
        """Stop passing bytes on; the peer may send no more than its credit."""
        self._is_reading_paused = True

    def resume_reading(self) -> None:
        """Pass on what came in the meantime, then everything at once again."""
        if self._is_reading_paused:
            self._is_reading_paused = False
            if self._received or self._has_eof:
                self._carrier.call_soon(self._deliver_received)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes; a buffer that may change is copied."""
        if self._is_closing or not data:
            return
        self._carrier.send(self.stream_id, data if isinstance(data, bytes) else bytes(data))
        if not self._is_writing_paused and self.get_write_buffer_size() > self._write_high:
            self._is_writing_paused = True
            self._carrier.watch_writer(self)
            if self._protocol is not None:
                self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """Whether a half-close is possible: yes."""
        return True

    def write_eof(self) -> None:
        """Close our half after what was written."""
        self._carrier.finish(self.stream_id)

    def get_write_buffer_size(self) -> int:
        """Bytes that have not left yet."""
        return self._carrier.unsent_bytes(self.stream_id)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the marks as (low, high)."""
        return self._write_low, self._write_high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks at which the protocol is paused and resumed."""
        self._write_high = WRITE_HIGH_BYTES if high is None else high
        self._write_low = self._write_high // 4 if low is None else low

    def close(self) -> None:
        """Flush and close. What was written still leaves; what comes is dropped."""
        if self._is_closing:
            return
        self._is_closing = True
        # The peer may have to use that credit before it comes to its own end.
        self._carrier.consume(self.stream_id, sum(len(data) for data in self._received))
        self._received.clear()
        self._carrier.finish(self.stream_id)
        self._carrier.linger(self.stream_id)
        self._carrier.call_soon(self._lose, None)

    def abort(self) -> None:
        """Reset the stream at once; the peer is told that nobody waits any more."""
        self.fail(ResetCode.CANCELLED)

    def fail(self, code: ResetCode, error: Exception | None = None) -> None:
        """Reset the stream with a code of our own choice."""
        if self._is_lost:
            return
        self._is_closing = True
        self._received.clear()
        self._carrier.reset(self.stream_id, code)
        self._carrier.call_soon(self._lose, error)

    # -- called by the link's session

    def data_received(self, data: memoryview) -> None:
        """Take bytes off the link; the view dies with this call."""
        if self._is_closing:
            self._carrier.consume(self.stream_id, len(data))
        elif self._is_reading_paused or self._received:
            self._received.append(bytes(data))
        else:
            self._deliver(data)

    def eof_received(self) -> None:
        """The peer closed its half."""
        self._has_eof = True
        if not self._is_reading_paused and not self._received:
            self._deliver_eof()

    def lost(self, error: Exception | None) -> None:
        """Take note that the stream is over."""
        self._is_closing = True
        self._received.clear()
        self._lose(error)

    def writing_progressed(self) -> bool:
        """Resume the writer once it is below its low mark; whether to be called again."""
        if not self._is_writing_paused or self._is_lost:
            return False
        if self.get_write_buffer_size() > self._write_low:
            return True
        self._is_writing_paused = False
        if self._protocol is not None:
            try:
                self._protocol.resume_writing()
            except Exception as error:  # noqa: BLE001 - it costs its stream, never the link
                self._failed(error)
        return self._is_writing_paused

    def _deliver(self, data: bytes | memoryview) -> None:
        if self._protocol is None:
            return
        try:
            self._protocol.data_received(data)  # type: ignore[arg-type] # any bytes-like will do
        except Exception as error:  # noqa: BLE001 - it costs its stream, never the link
            self._failed(error)
        else:
            self._carrier.consume(self.stream_id, len(data))

    def _deliver_received(self) -> None:
        while self._received and not self._is_reading_paused and not self._is_closing:
            self._deliver(self._received.popleft())
        if self._has_eof and not self._received and not self._is_reading_paused:
            self._deliver_eof()

    def _deliver_eof(self) -> None:
        self._has_eof = False
        if self._is_closing or self._protocol is None:
            return
        try:
            stays_open = self._protocol.eof_received()
        except Exception as error:  # noqa: BLE001 - it costs its stream, never the link
            self._failed(error)
            return
        if not stays_open:
            self.close()

    def _failed(self, error: Exception) -> None:
        self._carrier.report(error)
        self.fail(ResetCode.INTERNAL_ERROR, error)

    def _lose(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            protocol, self._protocol = self._protocol, None
            if protocol is None:
                return
            try:
                protocol.connection_lost(error)
            except Exception as failure:  # noqa: BLE001 - the others must hear of it as well
                self._carrier.report(failure)
