"""The client half: one exchange at a time over any asyncio transport.

The head of a response wakes the caller; its body goes by callback into a sink. A request body
may go out while the response already comes: an early answer (413) is delivered at once, also when
the server resets the connection behind it and sending the body fails.
Cancelling an exchange cuts the transport at once: that is what stops the model server's work.

It refuses: responses that RFC 9112 frames in no single way, more than a few 1xx, 101 (it never
asks for another protocol), bytes outside a response, and a body that just stops. A body that ends
with its connection (RFC 9112 section 6.3, rule 8) is accepted only from a caller that allows it,
and is complete only after an orderly end: a FIN, and over TLS a `close_notify` before it.
"""

import asyncio
import ssl
from collections.abc import Callable

from byoai_shared.http1.connection import HttpConnection
from byoai_shared.http1.errors import (
    ConnectionClosed,
    HeadTimeout,
    HttpError,
    LocalProtocolError,
    RemoteProtocolError,
    TruncatedMessage,
)
from byoai_shared.http1.framing import Open, outgoing_framing, response_framing
from byoai_shared.http1.head import (
    DEFAULT_LIMITS,
    HeadBuffer,
    Headers,
    HttpLimits,
    RequestHead,
    ResponseHead,
    parse_response_head,
    serialise_request,
    wants_keep_alive,
)
from byoai_shared.http1.incoming import BodySink, BodySource, IncomingBody
from byoai_shared.http1.outgoing import OutgoingBody, write_parts
from byoai_shared.http1.pieces import PIECE_BYTES, Pieces
from byoai_shared.unread import unread_bytes

_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Response:
    """A final response: its head has come, its body may still be coming.

    Whoever holds it either takes the body to its end or calls `abort`.
    """

    __slots__ = ("_abort", "body", "head")

    def __init__(
        self, head: ResponseHead, body: IncomingBody, connection: "ClientConnection"
    ) -> None:
        self.head = head
        self.body = body
        self._abort = connection.abort

    async def pipe(self, sink: BodySink) -> None:
        """Let the body go to `sink`; return when it is complete.

        Raises HttpError when it will not be. Cancelled, it cuts the connection.
        """
        try:
            await self.body.pipe(sink)
        except BaseException:
            self._abort()
            raise

    async def read(self, limit: int) -> bytes:
        """Return the whole body. Raises BodyTooLarge or TruncatedMessage.

        Failed or cancelled, it cuts the connection.
        """
        try:
            return await self.body.read(limit)
        except BaseException:
            self._abort()
            raise

    def abort(self) -> None:
        """Cut the connection, unless the body is complete; idempotent."""
        if not self.body.complete:
            self._abort()


class ClientConnection(HttpConnection):
    """A connection to a server, over TCP, TLS or a stream of a link."""

    def __init__(
        self, limits: HttpLimits = DEFAULT_LIMITS, *, allow_close_delimited: bool = False
    ) -> None:
        super().__init__()
        self._limits = limits
        self._allow_close_delimited = allow_close_delimited
        self._heads = HeadBuffer(limits.max_head_bytes)
        self._method = ""
        self._informational = 0
        self._waiter: asyncio.Future[Response] | None = None
        self._incoming: IncomingBody | None = None
        self._is_busy = False  # an exchange is not over
        self._awaits_response = False  # its response is not complete
        self._keep_alive = True
        self._lost: BaseException | None = None
        self.exchanges = 0  # begun on this connection
        self.idle_since = 0.0  # the pool's note
        self.on_lost: Callable[[], None] | None = None  # called once when it is lost

    # ---- for whoever sends requests

    @property
    def is_reusable(self) -> bool:
        """Say whether another request may be sent on it now."""
        transport = self._transport
        return (
            transport is not None
            and not self._is_busy
            and self._keep_alive
            and not transport.is_closing()
        )

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport, None before it is connected and after it is lost."""
        return self._transport

    async def request(
        self,
        head: RequestHead,
        body: bytes | BodySource = b"",
        *,
        head_timeout_s: float | None = None,
    ) -> Response:
        """Send a request and return its response as soon as the head of that has come.

        Content-Length or Transfer-Encoding are added when `head` has neither. Raises
        ConnectionClosed, HeadTimeout, TruncatedMessage or RemoteProtocolError; then, and when
        cancelled, the connection is cut.
        """
        if self._is_busy:
            raise LocalProtocolError("connection already has an exchange, which must end first")
        if not self.is_reusable or self._transport is None:
            raise ConnectionClosed(request_sent=False) from self._lost
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Response] = loop.create_future()
        self._waiter = waiter
        try:
            self._send(self._transport, head, body)
            if head_timeout_s is None:
                return await waiter
            timer = loop.call_later(head_timeout_s, self._head_late, head_timeout_s)
            try:
                return await waiter
            finally:
                timer.cancel()
        except BaseException:
            self.abort()
            raise
        finally:
            self._waiter = None
            del waiter  # an error that it holds holds this frame, and with it the connection

    def close(self) -> None:
        """Close it in order; a body still being sent goes out first. Idempotent."""
        self._keep_alive = False
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Cut it at once; idempotent."""
        self._keep_alive = False
        super().abort()

    # ---- the protocol that the transport sees

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes of the response; a view is copied, nothing else is."""
        piece = data if type(data) is bytes else bytes(data)
        try:
            if self._incoming is None:
                self._receive_head(piece)
            else:
                self._receive_body(self._incoming, piece)
        except HttpError as error:
            self._fail(error)

    def eof_received(self) -> None:
        """Take the end of the response's bytes; the transport then closes."""
        if self._incoming is not None:
            try:
                self._end_by_close(self._incoming)
            except TruncatedMessage as error:
                self._fail(error)
        self._keep_alive = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Take what had come before a reset; fail what is not complete, with `exc` as the cause."""
        if self._awaits_response and (unread := unread_bytes(self._transport, exc)):
            self.data_received(unread)
        super().connection_lost(exc)
        self._keep_alive = False
        self._lost = exc
        error: HttpError = ConnectionClosed(request_sent=True)
        if self._incoming is not None or len(self._heads):
            error = TruncatedMessage("connection was lost before the response was complete")
        error.__cause__ = exc
        self._fail(error)
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()

    # ---- inside

    def _send(
        self, transport: asyncio.Transport, head: RequestHead, body: bytes | BodySource
    ) -> None:
        framing = outgoing_framing(head.headers)
        extra: Headers = ()
        if isinstance(body, bytes):
            if framing is None and (body or head.method in _METHODS_WITH_BODY):
                extra = ((b"content-length", b"%d" % len(body)),)
            elif framing is not None and framing != len(body):
                raise LocalProtocolError("declared length is not that of the body")
        elif framing is None:
            framing = Open.CHUNKED
            extra = ((b"transfer-encoding", b"chunked"),)
        raw = serialise_request(head, extra)
        self._method = head.method
        self._informational = 0
        self._is_busy = True
        self._awaits_response = True
        self._keep_alive = wants_keep_alive(head)
        self.exchanges += 1
        if isinstance(body, bytes):
            if len(body) <= PIECE_BYTES:
                write_parts(transport, (raw, body), len(body))
                return
            framing, body = len(body), Pieces(body)
        assert framing is not None  # noqa: S101 -- set above for every source
        self._outgoing = OutgoingBody(
            transport,
            framing,
            raw,
            on_end=self._request_ended,
            on_abort=self.abort,
            paused=self._writing_paused,
        )
        body.attach(self._outgoing)

    def _request_ended(self) -> None:
        self._outgoing = None
        self._settle()

    def _receive_head(self, data: bytes) -> None:
        if not self._awaits_response:
            raise RemoteProtocolError("bytes from the server that nobody asked for")
        found = self._heads.feed(data)
        while found is not None:
            raw, rest = found
            head = parse_response_head(raw, self._limits)
            if head.status >= 200:
                self._begin_response(head, rest)
                return
            self._skip_informational(head)
            found = self._heads.feed(rest) if rest else None

    def _skip_informational(self, head: ResponseHead) -> None:
        if head.status == 101:
            raise RemoteProtocolError("server changes protocols, which was not asked for")
        self._informational += 1
        if self._informational > self._limits.max_informational:
            raise RemoteProtocolError(
                f"more than {self._limits.max_informational} informational responses"
            )

    def _begin_response(self, head: ResponseHead, rest: bytes) -> None:
        framing = response_framing(head, self._method)
        is_until_close = framing is Open.UNTIL_CLOSE
        if is_until_close and not self._allow_close_delimited:
            raise RemoteProtocolError("response without Content-Length or chunked coding")
        self._keep_alive = self._keep_alive and wants_keep_alive(head) and not is_until_close
        body = IncomingBody(
            self,
            framing,
            buffer_bytes=self._limits.buffer_bytes,
            max_overhead_bytes=self._limits.max_chunk_overhead_bytes,
        )
        self._incoming = body
        # The body's first bytes before the caller wakes: it then finds a small one complete.
        try:
            if body.complete:
                self._response_ended(rest)
            elif rest:
                self._receive_body(body, rest)
        except HttpError as error:
            self._fail(error)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(Response(head, body, self))

    def _receive_body(self, body: IncomingBody, data: bytes) -> None:
        rest = body.feed(data)
        if body.complete:
            self._response_ended(rest)

    def _end_by_close(self, body: IncomingBody) -> None:
        if body.framing is Open.UNTIL_CLOSE and not _ended_in_order(self._transport):
            raise TruncatedMessage("TLS connection ended without close_notify")
        body.end()

    def _response_ended(self, rest: bytes) -> None:
        self._incoming = None
        self._awaits_response = False
        self.resume_reading()
        if rest:
            # Complete all the same; but whose bytes are these?
            self._keep_alive = False
        self._settle()

    def _settle(self) -> None:
        """End the exchange when both its bodies have."""
        if not self._awaits_response and self._outgoing is None:
            self._is_busy = False
            if not self._keep_alive:
                self.close()

    def _fail(self, error: HttpError) -> None:
        self._keep_alive = False
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.fail(error)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.abort()

    def _head_late(self, limit_s: float) -> None:
        self._fail(HeadTimeout(limit_s))


def _ended_in_order(transport: asyncio.Transport | None) -> bool:
    """Say whether the end of a transport's bytes is the peer's word, not an attacker's FIN.

    asyncio reports the end of a TLS session with and without `close_notify` alike; only after one
    does a read find the end of the data. uvloop reports it with one only.
    """
    session = None if transport is None else transport.get_extra_info("ssl_object")
    if not isinstance(session, ssl.SSLObject):
        return True
    try:
        return not session.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:
        return False
