"""Writes a long body that is there already no faster than it is taken.

A transport that encrypts keeps all that it is given in one go and does not say that it is too
much: neither who waits until it was taken nor who counts what is kept would know.
"""

from typing import Final

from byoai_shared.http1.incoming import BodySink

PIECE_BYTES: Final = 256 * 1024


class Pieces:
    """A `BodySource` of bytes."""

    __slots__ = ("_at", "_body", "_is_paused", "_sink")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0
        self._sink: BodySink | None = None
        self._is_paused = False

    def attach(self, sink: BodySink) -> None:
        """See `BodySource`."""
        self._sink = sink
        sink.attached(self)
        self._pour()

    def detach(self) -> None:
        """See `BodySource`."""
        self._sink = None

    def pause(self) -> None:
        """See `BodySource`."""
        self._is_paused = True

    def resume(self) -> None:
        """See `BodySource`."""
        self._is_paused = False
        self._pour()

    def _pour(self) -> None:
        while self._sink is not None and not self._is_paused:
            piece = self._body[self._at : self._at + PIECE_BYTES]
            self._at += len(piece)
            if self._at < len(self._body):
                self._sink.write(piece)
                continue
            sink, self._sink = self._sink, None
            sink.finish(piece)
