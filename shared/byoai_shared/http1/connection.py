"""What both halves of HTTP/1.1 have in common: a transport, held back in both directions."""

import asyncio
from typing import Protocol, cast, runtime_checkable

from byoai_shared.http1.outgoing import OutgoingBody


@runtime_checkable
class TruncatingTransport(Protocol):
    """A transport that can end without an orderly end, and still deliver what was written."""

    def truncate(self) -> None:
        """End after what was written, so that the peer sees that more should have come."""


class HttpConnection(asyncio.Protocol):
    """One end of a connection. At most one body goes out at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._outgoing: OutgoingBody | None = None
        self._reading_paused = False
        self._writing_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # A cast, not a check: uvloop's transports have no base class of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's
        """Let go of the transport, and of the body that was being sent."""
        self._transport = None
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.lost()

    def pause_writing(self) -> None:
        """Pass the transport's back-pressure to the body being sent."""
        self._writing_paused = True
        if self._outgoing is not None:
            self._outgoing.pause()

    def resume_writing(self) -> None:
        """Pass its end."""
        self._writing_paused = False
        if self._outgoing is not None:
            self._outgoing.resume()

    def pause_reading(self) -> None:
        """Stop reading; idempotent."""
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on; idempotent."""
        if self._reading_paused:
            self._reading_paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection at once; idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def truncate(self) -> None:
        """Cut the connection, after what was written where the transport can; idempotent."""
        truncating = _as_truncating(self._transport)
        if truncating is None:
            self.abort()
        else:
            truncating.truncate()


def _as_truncating(transport: object) -> TruncatingTransport | None:
    return transport if isinstance(transport, TruncatingTransport) else None
