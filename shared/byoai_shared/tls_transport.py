"""TLS over any asyncio transport, as an asyncio transport: the end-to-end session of a stream.

Below is a stream of a link (or a TCP connection); above is an ordinary `asyncio.Protocol`
that sees plain bytes once the handshake is done. Built on `ssl.MemoryBIO` alone, public API
only, and measured against a socketpair and the loops' own TLS protocols: this is the cheapest.

One write above is one write below: all records of it are joined. Nothing is buffered here but
ciphertext that arrived while the reader above had paused, which is at most what the transport
below hands over in one call, because it is paused too.

It refuses to pass an end of stream off as an end of data: only `close_notify` is one. A peer
that just stops is `TlsTruncated`, and nobody above sees an orderly end.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum, auto
from typing import Any, cast

from byoai_shared.tls_errors import (
    TlsError,
    TlsHandshakeFailed,
    TlsPeerRefusedCertificate,
    TlsTruncated,
    handshake_error,
    session_error,
)
from byoai_shared.unread import unread_bytes

__all__ = [
    "TlsError",
    "TlsHandshakeFailed",
    "TlsPeerRefusedCertificate",
    "TlsTransport",
    "TlsTruncated",
]

# One record; asking for more makes a larger allocation, and no more comes.
_RECORD_BYTES = 16 * 1024
# Decrypted bytes are joined up to here for one call above: fewer calls for what follows. Beyond
# it allocations go back to the system at once and fault in anew (256 KiB: 205 instead of 75 µs).
_DELIVERY_BYTES = 64 * 1024 - _RECORD_BYTES + 1
# How long a failed session may take to tell the peer why before the stream is cut.
_FAREWELL_S = 1.0


class _Phase(Enum):
    HANDSHAKE = auto()
    OPEN = auto()
    CLOSED = auto()  # by us or by a failure; waiting for `connection_lost` from below


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """A TLS session: an `asyncio.Protocol` to the transport below, a transport to `protocol`.

    `protocol.connection_made` is called when the handshake is done, right after
    `on_handshake(None)`. If the handshake fails, `protocol` is never called at all and
    `on_handshake` gets the error. `connection_lost` above gets what the transport below gave
    (a reset keeps its code), a `TlsError`, or None after an orderly end.
    """

    def __init__(
        self,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        on_handshake: Callable[[BaseException | None], None] | None = None,
        handshake_timeout_s: float = 5.0,
    ) -> None:
        super().__init__()
        self._protocol: asyncio.Protocol = protocol
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self._on_handshake = on_handshake
        self._handshake_timeout_s = handshake_timeout_s
        self._phase = _Phase.HANDSHAKE
        self._below: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: Exception | None = None
        self._early: list[bytes] = []  # decrypted before it was asked for, see `write_eof`
        self._paused = False  # by the protocol above
        self._below_paused = False  # by the transport below, before there was anyone to tell
        self._settled = asyncio.Event()  # the handshake is done, or has failed
        self._failure: BaseException | None = None  # of the handshake
        self._announced = False
        self._read_ended = False  # close_notify has come
        self._eof_told = False  # and the protocol above knows
        self._write_ended = False  # close_notify has gone

    async def established(self) -> None:
        """Wait until the handshake is done; cancelled, it cuts the transport below.

        Raises what the handshake, or the transport below meanwhile, failed with; awaited again,
        it raises a `TlsHandshakeFailed` that says the same.
        """
        try:
            await self._settled.wait()
        except BaseException:
            self.abort()
            raise
        if self._failure is not None:
            raise self._taken_failure()

    # ---- the protocol that the transport below sees

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake and its clock."""
        # A cast, not a check: uvloop's transports are registered with no base class of ours.
        self._below = cast("asyncio.Transport", transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._handshake_timeout_s, self._handshake_late)
        self._shake_hands()

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        """Take ciphertext; `data` may be a view that is valid only during this call."""
        if self._phase is _Phase.OPEN:
            self._incoming.write(data)
            if not self._paused:
                self._decrypt()
        elif self._phase is _Phase.HANDSHAKE:
            self._incoming.write(data)
            self._shake_hands()

    def eof_received(self) -> bool:
        """Take the end of the stream, and keep it open: this side says when it is over."""
        self._incoming.write_eof()
        if self._phase is _Phase.OPEN:
            if not self._paused:
                self._decrypt()
        elif self._phase is _Phase.HANDSHAKE:
            self._shake_hands()
        elif self._below is not None:
            self._below.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the loss up; without `close_notify` it is a truncation."""
        if self._phase is _Phase.OPEN and (unread := unread_bytes(self._below, exc)):
            self._incoming.write(unread)
            self._paused = False  # there is no later: nothing more is read below
            self._decrypt()
        was, self._phase = self._phase, _Phase.CLOSED
        self._stop_timer()
        self._below = None
        error, self._error = self._error or exc, None
        if error is None and was is _Phase.OPEN and not self._read_ended:
            error = TlsTruncated("stream closed without the close_notify of TLS")
        # Let go of the protocol: it holds this transport, and the pair would wait for the
        # garbage collector, which runs seldom here.
        protocol, self._protocol = self._protocol, _NOBODY
        if was is _Phase.HANDSHAKE:
            self._report(error or TlsHandshakeFailed("stream closed during the TLS handshake"))
        elif self._announced:
            protocol.connection_lost(error)

    def pause_writing(self) -> None:
        """Pass the back-pressure of the transport below up."""
        self._below_paused = True
        if self._announced:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass its end up."""
        self._below_paused = False
        if self._announced:
            self._protocol.resume_writing()

    # ---- the transport that the protocol above sees

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and hand everything to the transport below in one write."""
        if self._encrypt(data):
            self._flush()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Encrypt all, without joining the plain bytes, into one write below."""
        for data in list_of_data:
            self._encrypt(data)
        self._flush()

    def can_write_eof(self) -> bool:
        """Say yes: `close_notify` in one direction is TLS 1.3's half close."""
        return True

    def write_eof(self) -> None:
        """Send `close_notify`; what the peer still sends is delivered."""
        if self._phase is not _Phase.OPEN or self._write_ended:
            return
        # OpenSSL looks for the peer's close_notify at once and gives the session up when it
        # finds data instead: take what is there out first.
        while self._incoming.pending or self._tls.pending():
            error = self._read_into(self._early)
            if error is not None:
                self._give_up(error)
                return
        self._say_goodbye()
        if self._eof_told:
            self.close()

    def close(self) -> None:
        """Send `close_notify`, let the transport below flush, and close it."""
        if self._phase is _Phase.CLOSED:
            return
        if self._phase is _Phase.HANDSHAKE:
            self.abort()
            return
        self._say_goodbye()
        self._phase = _Phase.CLOSED
        if self._below is not None:
            self._below.close()

    def abort(self) -> None:
        """Cut the transport below at once; the peer sees a truncation, as it should."""
        if self._phase is not _Phase.HANDSHAKE:  # else `connection_lost` reports the failure
            self._phase = _Phase.CLOSED
        if self._below is not None:
            self._below.abort()

    def truncate(self) -> None:
        """Close without `close_notify`: the peer gets all that was written, and an error.

        For an answer that broke off. `abort` would overtake what has not left yet.
        """
        if self._phase is _Phase.CLOSED:
            return
        if self._phase is _Phase.HANDSHAKE or self._write_ended:
            self.abort()
            return
        self._phase = _Phase.CLOSED
        if self._below is not None:
            self._below.close()

    def is_closing(self) -> bool:
        """Say whether it is closed or about to be."""
        return self._phase is _Phase.CLOSED or self._below is None or self._below.is_closing()

    def pause_reading(self) -> None:
        """Stop decrypting, and pause below: at most one more piece of ciphertext is kept."""
        if not self._paused:
            self._paused = True
            if self._below is not None and not self._below.is_closing():
                self._below.pause_reading()

    def resume_reading(self) -> None:
        """Deliver what was kept, soon, and then read on."""
        if self._paused:
            self._paused = False
            # Not from inside this call: a protocol expects no data while it resumes.
            asyncio.get_running_loop().call_soon(self._read_on)

    def is_reading(self) -> bool:
        """Say whether the protocol above gets data."""
        return not self._paused and self._phase is _Phase.OPEN

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the session over to another protocol."""
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol above."""
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks of the transport below: there is no other buffer."""
        if self._below is not None:
            self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how much the transport below has not sent."""
        return 0 if self._below is None else self._below.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Answer for the session (`ssl_object`, `peercert_der`), else ask below.

        `socket` is always None: a caller would set options on what is not its own.
        """
        if name == "ssl_object":
            return self._tls
        if name == "peercert_der":
            return self._tls.getpeercert(binary_form=True)
        if name == "socket" or self._below is None:
            return default
        return self._below.get_extra_info(name, default)

    # ---- inside

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except (ssl.SSLError, ssl.CertificateError) as error:
            self._give_up(handshake_error(error))
            return
        self._flush()
        self._stop_timer()
        self._phase = _Phase.OPEN
        self._report(None)
        if not self.is_closing():  # `on_handshake` may have refused the peer
            self._announce()

    def _announce(self) -> None:
        self._announced = True
        self._protocol.connection_made(self)
        if self._below_paused:
            self._protocol.pause_writing()
        # The first request may have come with the last bytes of the handshake.
        if (self._incoming.pending or self._incoming.eof) and self.is_reading():
            self._decrypt()

    def _read_on(self) -> None:
        if self.is_reading():
            self._decrypt()
        if self.is_reading() and self._below is not None and not self._below.is_closing():
            self._below.resume_reading()

    def _decrypt(self) -> None:
        """Deliver what is readable, in pieces worth a call, then the end if it has come."""
        error: TlsError | None = None
        while self.is_reading():
            pieces, self._early = self._early, []
            error = self._read_into(pieces)
            if pieces:
                data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                self._protocol.data_received(data)
            if error is not None or not self._has_readable():
                break
        if error is not None:
            self._give_up(error)
        elif self._read_ended and not self._eof_told and self.is_reading():
            self._eof_told = True
            if not self._protocol.eof_received() or self._write_ended:
                self.close()

    def _has_readable(self) -> bool:
        # At the end of the stream there is one more try: it tells an end from a truncation.
        incoming = self._incoming
        return bool(
            incoming.pending
            or self._tls.pending()
            or (incoming.eof and not self._read_ended)
            or self._early
        )

    def _read_into(self, pieces: list[bytes]) -> TlsError | None:
        """Decrypt up to about `_DELIVERY_BYTES` into `pieces`."""
        tls, incoming = self._tls, self._incoming
        room = _DELIVERY_BYTES
        try:
            while room > 0 and (
                incoming.pending or tls.pending() or (incoming.eof and not self._read_ended)
            ):
                piece = tls.read(_RECORD_BYTES)
                if not piece:
                    self._read_ended = True
                    break
                pieces.append(piece)
                room -= len(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._read_ended = True
        except ssl.SSLError as error:
            return session_error(error)
        if self._outgoing.pending:  # a key update is answered while reading
            self._flush()
        return None

    def _encrypt(self, data: bytes | bytearray | memoryview) -> bool:
        size = len(data)
        if not size or self._phase is not _Phase.OPEN or self._write_ended:
            return False
        # OpenSSL takes one record at a time.
        done = self._tls.write(data)
        if done < size:
            rest = memoryview(data)
            while done < size:
                done += self._tls.write(rest[done:])
        return True

    def _flush(self) -> None:
        if self._below is not None:
            out = self._outgoing.read()
            if out:
                self._below.write(out)

    def _say_goodbye(self) -> None:
        if self._write_ended:
            return
        self._write_ended = True
        # "Want read" says that the peer has not said goodbye yet, and it need not.
        with suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        self._flush()

    def _give_up(self, error: TlsError) -> None:
        """End the session because of `error`, telling the peer the alert if there is one."""
        below = self._below
        if below is None:
            return
        if self._phase is _Phase.OPEN:
            self._phase = _Phase.CLOSED
        self._error = error
        self._stop_timer()
        if self._outgoing.pending:
            self._flush()
            below.close()
            self._timer = asyncio.get_running_loop().call_later(_FAREWELL_S, below.abort)
        else:
            below.abort()

    def _handshake_late(self) -> None:
        self._error = TlsHandshakeFailed(
            f"TLS handshake not done after the limit of {self._handshake_timeout_s} s"
        )
        if self._below is not None:
            self._below.abort()

    def _report(self, error: BaseException | None) -> None:
        self._failure = error
        self._settled.set()
        report, self._on_handshake = self._on_handshake, None
        if report is not None:
            report(error)

    def _taken_failure(self) -> BaseException:
        """Return the failure and keep another: a raised one holds frames that hold us."""
        failure, self._failure = self._failure, TlsHandshakeFailed(str(self._failure))
        assert failure is not None  # noqa: S101 -- the caller has looked
        return failure

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_NOBODY = asyncio.Protocol()
