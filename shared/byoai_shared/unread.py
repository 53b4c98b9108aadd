"""Reads what a peer sent before it reset the connection, after writing to it has failed.

A server may answer a request early and close with unread bytes of it: the answer is then followed
by a reset. When the reset meets a write of ours, the event loop gives the connection up at once,
although the answer still lies in the socket. Between that moment and the loop's closing of the
socket, during `connection_lost`, the bytes can be read.

It reads from sockets only, never waits, and takes no more than `LIMIT_BYTES`: an early answer is
small, and a reset must not make room for more than back-pressure had allowed.
"""

import asyncio
import socket
from typing import Final

LIMIT_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 64 * 1024


def unread_bytes(transport: asyncio.BaseTransport | None, error: BaseException | None) -> bytes:
    """Return what lies in the socket of a transport that was lost because of `error`.

    To be called during `connection_lost`. Nothing is read after a loss without an error: that
    was an orderly end, or a cut of our own.
    """
    if transport is None or not isinstance(error, OSError):
        return b""
    found: socket.socket | None = transport.get_extra_info("socket")
    if found is None or found.fileno() < 0:
        return b""
    with socket.fromfd(found.fileno(), found.family, found.type) as ours:
        ours.setblocking(False)
        return _drained(ours)


def _drained(connected: socket.socket) -> bytes:
    pieces: list[bytes] = []
    room = LIMIT_BYTES
    while room > 0:
        try:
            piece = connected.recv(min(_READ_BYTES, room))
        except OSError:  # nothing more, or the reset itself
            break
        if not piece:
            break
        pieces.append(piece)
        room -= len(piece)
    return b"".join(pieces)
