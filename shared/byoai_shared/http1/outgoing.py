"""A body as it goes: framed and written into a transport, one write per piece.

The head may be held back to share the first write with the first piece. A body that was begun
and cannot be finished ends with its connection cut: never with an orderly end.
"""

import asyncio
from collections.abc import Callable, Sequence

from byoai_shared.http1.errors import ConnectionClosed, HttpError, LocalProtocolError
from byoai_shared.http1.framing import Framing, Open
from byoai_shared.http1.incoming import BodySource

# Beyond this a copy costs more than another buffer to send: allocations of this size are given
# back to the system at once, and each of their pages faults in anew (measured: 170 µs for
# 256 KiB, four times the encryption of it).
_JOIN_BYTES = 32 * 1024


def write_parts(transport: asyncio.Transport, parts: Sequence[bytes], bulk: int) -> None:
    """Write `parts`, the largest of them of `bulk` bytes, in one go; joined if it is cheaper."""
    if bulk > _JOIN_BYTES:
        transport.writelines(parts)
    else:
        transport.write(b"".join(parts))


class OutgoingBody:
    """One body being sent: a `BodySink`, and writable by hand (`write`, `drain`, `finish`).

    `on_end` is called when the last byte was handed to the transport, `on_abort` when the
    body cannot be finished; exactly one of them, once.
    """

    __slots__ = (
        "_drained",
        "_framing",
        "_held_head",
        "_left",
        "_on_abort",
        "_on_end",
        "_paused",
        "_source",
        "_transport",
        "ended",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        framing: Framing,
        head: bytes,
        *,
        on_end: Callable[[], None],
        on_abort: Callable[[], None],
        paused: bool = False,
    ) -> None:
        self._transport = transport
        self._framing = framing
        self._left = framing if isinstance(framing, int) else 0
        self._held_head = head
        self._on_end = on_end
        self._on_abort = on_abort
        self._paused = paused
        self._source: BodySource | None = None
        self._drained: asyncio.Future[None] | None = None
        self.ended = False

    # ---- for whoever sends

    def attached(self, source: BodySource) -> None:
        """See `BodySink`."""
        self._source = source
        if self._paused:
            source.pause()

    def write(self, data: bytes) -> None:
        """Send a piece now. Raises LocalProtocolError beyond the declared length."""
        if self.ended or not data:
            return
        head, self._held_head = self._held_head, b""
        if self._framing is Open.CHUNKED:
            size = len(data)
            write_parts(self._transport, (head, b"%x\r\n" % size, data, b"\r\n"), size)
        else:
            self._count(data)
            if head:
                write_parts(self._transport, (head, data), len(data))
            else:
                self._transport.write(data)
        if len(data) > _JOIN_BYTES and self._transport.is_closing() and self._source is not None:
            # What it broke on comes in a later turn; a source that is all there would go on now.
            self._source.pause()

    def flush(self) -> None:
        """Send the head now if it is still held back."""
        if self._held_head and not self.ended:
            head, self._held_head = self._held_head, b""
            self._transport.write(head)

    def finish(self, data: bytes = b"") -> None:
        """Send the last piece and the end in one write.

        Raises LocalProtocolError when less was written than declared, and cuts the connection.
        """
        if self.ended:
            return
        head, self._held_head = self._held_head, b""
        if self._framing is Open.CHUNKED:
            size = b"%x\r\n" % len(data)
            parts = (head, size, data, b"\r\n0\r\n\r\n") if data else (head, b"0\r\n\r\n")
        else:
            self._count(data)
            if self._left:
                self.abort()
                raise LocalProtocolError(f"body ended {self._left} bytes before its length")
            parts = (head, data)
        self.ended = True
        self._source = None
        write_parts(self._transport, parts, len(data))
        self._on_end()

    def fail(self, error: HttpError) -> None:  # noqa: ARG002 -- the cut says it all
        """See `BodySink`: the connection is cut, so that the truncation is seen."""
        self.abort()

    def abort(self) -> None:
        """Give the body up and cut the connection; idempotent."""
        if not self.ended:
            self.lost()
            self._on_abort()

    async def drain(self) -> None:
        """Wait until the transport wants more. Raises ConnectionClosed when it is lost."""
        self.flush()
        while self._paused and not self.ended:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)
        if self.ended:
            raise ConnectionClosed(request_sent=True)

    @property
    def is_paused(self) -> bool:
        """Say whether the transport holds as much as it should."""
        return self._paused

    # ---- for the connection

    def pause(self) -> None:
        """Take the transport's back-pressure and pass it to the source."""
        self._paused = True
        if self._source is not None:
            self._source.pause()

    def resume(self) -> None:
        """Take its end."""
        self._paused = False
        self._wake()
        if self._source is not None:
            self._source.resume()

    def lost(self) -> None:
        """Know that the connection is gone: forget the source, wake whoever drains."""
        self.ended = True
        source, self._source = self._source, None
        if source is not None:
            source.detach()
        self._wake()

    # ---- inside

    def _count(self, data: bytes) -> None:
        if isinstance(self._framing, int):
            left = self._left - len(data)
            if left < 0:
                self.abort()
                raise LocalProtocolError(f"body exceeds its length by {-left} bytes")
            self._left = left

    def _wake(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
