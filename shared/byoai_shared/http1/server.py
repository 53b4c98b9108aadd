"""The server half: keep-alive, one request at a time, one task per request.

The next request is not read before the current one is answered; until then a bounded number of
its bytes is kept and the connection is paused. The handler's task belongs to the connection:
a client that goes away cancels it. A request whose body breaks (malformed, too large, cut off)
also cancels it, and the connection itself answers, if nothing was answered yet.

It refuses what `head`, `framing` and `decoding` refuse, with the status that fits, and closes.
A response that was begun and cannot be finished cuts the connection: never an orderly end.
A half-closed client counts as gone: it cannot be told from one that closed.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any

from byoai_shared.http1.connection import HttpConnection
from byoai_shared.http1.date import DATE, http_date
from byoai_shared.http1.deadline import Deadline
from byoai_shared.http1.errors import (
    BodyTooLarge,
    HeadTimeout,
    HttpError,
    LocalProtocolError,
    RemoteProtocolError,
    TruncatedMessage,
)
from byoai_shared.http1.framing import Open, outgoing_framing, request_framing
from byoai_shared.http1.head import (
    DEFAULT_LIMITS,
    HeadBuffer,
    Headers,
    HttpLimits,
    RequestHead,
    ResponseHead,
    parse_request_head,
    serialise_response,
    wants_keep_alive,
)
from byoai_shared.http1.incoming import IncomingBody
from byoai_shared.http1.outgoing import OutgoingBody, write_parts
from byoai_shared.http1.refusal import INTERNAL, Refusal, openai_refusal
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.stall import StallWatch

Handler = Callable[[ServerRequest], Coroutine[Any, Any, None]]
Divert = Callable[[RequestHead], asyncio.Protocol | None]

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Phase(Enum):
    IDLE = auto()  # between requests, or with a part of a head
    BUSY = auto()  # a handler runs
    LINGER = auto()  # refused; reading on for a while so that the client sees the answer
    OVER = auto()  # closed, or handed over to another protocol


class ServerConnection(HttpConnection):
    """A connection from a client, over TCP, TLS or a stream of a link.

    `divert` is asked about each request's head before anything else happens: if it returns a
    protocol, that one gets the transport and every byte from this head on, for good.

    `busy_of` returns, for a new connection, what is called when a request begins to be answered
    (true), and when no more is to be done for it (false), before the connection is lost or waits
    for the next request.

    Every answer has a `Date`, its own or the time by `clock` (Unix seconds).
    """

    def __init__(
        self,
        handler: Handler,
        limits: HttpLimits = DEFAULT_LIMITS,
        *,
        divert: Divert | None = None,
        render_refusal: Callable[[Refusal], tuple[Headers, bytes]] = openai_refusal,
        on_lost: Callable[["ServerConnection"], None] | None = None,
        busy_of: Callable[[asyncio.BaseTransport], Callable[[bool], None]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._handler = handler
        self._limits = limits
        self._divert = divert
        self._render_refusal = render_refusal
        self._on_lost = on_lost
        self._busy_of = busy_of
        self._set_busy: Callable[[bool], None] | None = None
        self._clock = clock
        self._phase = _Phase.IDLE
        self._loop = asyncio.get_running_loop()
        self._heads = HeadBuffer(limits.max_head_bytes)
        self._pipelined = b""
        self._head: RequestHead | None = None
        self._incoming: IncomingBody | None = None  # while its body is not complete
        self._task: asyncio.Task[None] | None = None
        self._keep_alive = True
        self._is_draining = False
        self._received = 0  # bytes of a body, since the deadline was last set
        self._stall: StallWatch | None = None
        self._drained: asyncio.Future[None] | None = None
        self.is_answered = False

    # ---- for the owner

    @property
    def transport(self) -> asyncio.Transport:
        """The transport. Raises RuntimeError before it is connected and after it is lost."""
        if self._transport is None:
            raise RuntimeError("connection has no transport")
        return self._transport

    @property
    def is_idle(self) -> bool:
        """Say whether no request is being received or answered."""
        return self._phase is _Phase.IDLE and not len(self._heads)

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The handler's task while there is one, so that an owner may wait for its end."""
        return self._task

    def drain(self) -> None:
        """Take no request after the current one; close now if there is none. Idempotent."""
        self._is_draining = True
        self._keep_alive = False
        if self.is_idle and self._transport is not None:
            self._transport.close()

    # ---- the protocol that the transport sees

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport and give the first head its time."""
        super().connection_made(transport)
        if self._busy_of is not None:
            self._set_busy = self._busy_of(transport)
        # Not before: a connection that never comes to be, as its TLS handshake failed, is not
        # told that it is lost either, and would be kept by its deadline.
        self._deadline = Deadline(self._loop, self._deadline_reached)
        self._deadline.set(self._limits.head_timeout_s)

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes of requests; a view is copied, nothing else is."""
        piece = data if type(data) is bytes else bytes(data)
        try:
            if self._incoming is not None:
                self._receive_body(self._incoming, piece)
            elif self._phase is _Phase.IDLE:
                self._receive_head(piece)
            elif self._phase is _Phase.BUSY:
                self._keep_pipelined(piece)
        except HttpError as error:
            self._refuse(error)

    def eof_received(self) -> None:
        """Take the client's leaving; the transport then closes, which ends the handler."""
        if self._incoming is not None:
            self._incoming.fail(TruncatedMessage("client left in the middle of its request"))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the handler and everything that waits."""
        super().connection_lost(exc)
        self._phase = _Phase.OVER
        self._stop_watching()
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.fail(TruncatedMessage("client left in the middle of its request"))
        if self._task is not None:
            self._task.cancel()
        if self._on_lost is not None:
            self._on_lost(self)

    def pause_writing(self) -> None:
        """Pass the transport's back-pressure on, and see that it does not last for ever."""
        super().pause_writing()
        limit_s = self._limits.stall_timeout_s
        if limit_s is None or self._transport is None:
            return
        if self._stall is None:
            self._stall = StallWatch(self._loop, limit_s, self.abort)
        self._stall.paused(self._transport)

    def _watch_closing(self, transport: asyncio.Transport) -> None:
        """See that a client takes the last bytes too, of which the transport does not complain."""
        limit_s = self._limits.stall_timeout_s
        if limit_s is None or self._transport is None or not transport.get_write_buffer_size():
            return
        if self._stall is None:
            self._stall = StallWatch(self._loop, limit_s, self.abort)
        self._stall.paused(transport)

    def resume_writing(self) -> None:
        """Pass its end on."""
        if self._stall is not None and self._phase is not _Phase.OVER:
            self._stall.resumed()
        super().resume_writing()
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # ---- answering; called by the request

    def respond(self, head: ResponseHead, body: bytes) -> None:
        """See `ServerRequest`."""
        declared = outgoing_framing(head.headers)
        is_bodiless = head.status in (204, 304) or (
            self._head is not None and self._head.method == "HEAD"
        )
        extra: Headers = ()
        if declared is None and head.status not in (204, 304):
            extra = ((b"content-length", b"%d" % len(body)),)
        elif not is_bodiless and declared != len(body):
            raise LocalProtocolError("declared length is not that of the body")
        raw = self._begin_answer(head, extra)
        if is_bodiless:
            body = b""
        write_parts(self.transport, (raw, body), len(body))
        self._answered()

    def start_response(self, head: ResponseHead, *, hold_head: bool) -> OutgoingBody:
        """See `ServerRequest`."""
        request = self._head
        framing = outgoing_framing(head.headers)
        extra: Headers = ()
        if head.status in (204, 304) or (request is not None and request.method == "HEAD"):
            framing = 0
        elif framing is None and request is not None and request.minor_version == 1:
            framing = Open.CHUNKED
            extra = ((b"transfer-encoding", b"chunked"),)
        elif framing is None:
            framing = Open.UNTIL_CLOSE
            self._keep_alive = False
        body = OutgoingBody(
            self.transport,
            framing,
            self._begin_answer(head, extra),
            on_end=self._answered,
            on_abort=self.truncate,
            paused=self._writing_paused,
        )
        self._outgoing = body
        if not hold_head:
            body.flush()
        return body

    async def drained(self) -> None:
        """See `ServerRequest`."""
        while self._writing_paused:
            self._drained = self._loop.create_future()
            await self._drained

    def _begin_answer(self, head: ResponseHead, extra: Headers) -> bytes:
        if self.is_answered:
            raise LocalProtocolError("request is answered already")
        if self._incoming is not None:
            self._keep_alive = False  # what is left of its body would stand in the way
        if not self._keep_alive:
            extra = (*extra, (b"connection", b"close"))
        elif self._head is not None and self._head.minor_version == 0:
            extra = (*extra, (b"connection", b"keep-alive"))
        if head.header(DATE) is None:
            extra = (*extra, (DATE, http_date(int(self._clock()))))
        raw = serialise_response(head, extra)
        self.is_answered = True
        return raw

    def _answered(self) -> None:
        self._outgoing = None

    # ---- receiving

    def _receive_head(self, data: bytes) -> None:
        was_idle = not len(self._heads)
        found = self._heads.feed(data)
        if found is None:
            if was_idle:
                self._deadline.set(self._limits.head_timeout_s)
            return
        raw, rest = found
        head = parse_request_head(raw, self._limits)
        if self._divert is not None:
            protocol = self._divert(head)
            if protocol is not None:
                self._hand_over(protocol, raw + rest)
                return
        self._begin(head, rest)

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        limits = self._limits
        framing = request_framing(head)
        if isinstance(framing, int) and framing > limits.max_body_bytes:
            raise BodyTooLarge(limits.max_body_bytes, framing)
        expects_continue = _expects_continue(head)
        self._head = head
        self._keep_alive = wants_keep_alive(head) and not self._is_draining
        self._phase = _Phase.BUSY
        if self._set_busy is not None:
            self._set_busy(True)
        body = IncomingBody(
            self,
            framing,
            buffer_bytes=limits.buffer_bytes,
            max_overhead_bytes=limits.max_chunk_overhead_bytes,
            max_bytes=limits.max_body_bytes,
            on_wanted=self._send_continue if expects_continue else None,
        )
        if body.complete:
            self._body_ended(rest)
        else:
            self._incoming = body
            self._received = 0
            self._deadline.set(limits.body_timeout_s)
            if rest:
                self._receive_body(body, rest)
        self._task = self._loop.create_task(self._handle(ServerRequest(head, body, self)))

    def _receive_body(self, body: IncomingBody, data: bytes) -> None:
        self._received += len(data)
        rest = body.feed(data)
        if body.complete:
            self._body_ended(rest)

    def _body_ended(self, rest: bytes) -> None:
        self._incoming = None
        self._deadline.clear()
        # So that the client's leaving is seen while the handler works.
        self.resume_reading()
        if rest:
            self._keep_pipelined(rest)

    def _keep_pipelined(self, data: bytes) -> None:
        self._pipelined += data
        if len(self._pipelined) > self._limits.buffer_bytes:
            self.pause_reading()

    def _send_continue(self) -> None:
        if self._incoming is not None and not self.is_answered:
            self.transport.write(_CONTINUE)

    def _hand_over(self, protocol: asyncio.Protocol, data: bytes) -> None:
        transport = self.transport
        self._phase = _Phase.OVER
        self._transport = None
        self._stop_watching()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)
        if self._on_lost is not None:
            self._on_lost(self)

    # ---- the handler and what follows it

    async def _handle(self, request: ServerRequest) -> None:
        try:
            await self._handler(request)
        except asyncio.CancelledError:
            self._task = None
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it was, the client gets an answer
            self._task = None
            if isinstance(error, HttpError) and not isinstance(error, LocalProtocolError):
                is_clients = request.body.error is not None and error.kept is request.body.error
                refusal = Refusal.of(error) if is_clients else Refusal.of_upstream(error)
            else:
                self._report(error)
                refusal = INTERNAL
            self._answer_instead(refusal)
        else:
            self._task = None
            self._handled()

    def _handled(self) -> None:
        if self._phase is not _Phase.BUSY:
            return
        if not self.is_answered:
            self._report(LocalProtocolError("handler returned without an answer"))
            self._answer_instead(INTERNAL)
        elif self._outgoing is not None:
            self.truncate()
        elif self._keep_alive:
            self._next()
        else:
            self._leave(is_unread=self._incoming is not None)

    def _next(self) -> None:
        self._phase = _Phase.IDLE
        if self._set_busy is not None:
            self._set_busy(False)
        self._head = None
        self.is_answered = False
        self._deadline.set(self._limits.keep_alive_timeout_s)
        pipelined, self._pipelined = self._pipelined, b""
        self.resume_reading()
        if pipelined:
            self.data_received(pipelined)

    def _leave(self, *, is_unread: bool) -> None:
        """Close; but where the client may still be sending, only after the answer is read.

        Closing TCP with unread bytes resets it, and the reset can overtake the answer.
        """
        self._incoming = None
        if self._set_busy is not None:
            self._set_busy(False)
        transport = self.transport
        if not is_unread:
            self._phase = _Phase.OVER
            transport.close()
            self._watch_closing(transport)
            return
        self._phase = _Phase.LINGER
        self._deadline.set(self._limits.linger_s)
        if transport.can_write_eof():
            transport.write_eof()
        self.resume_reading()

    def _refuse(self, error: HttpError) -> None:
        """Let the client's own fault end the request, and its handler with it."""
        if self._phase not in (_Phase.IDLE, _Phase.BUSY) or self._transport is None:
            return
        if self._incoming is not None:
            self._incoming.fail(error)
        if self._task is not None:
            self._task.cancel()
        self._answer_instead(Refusal.of(error))

    def _answer_instead(self, refusal: Refusal) -> None:
        """Answer in the handler's place if nothing was answered yet, and leave."""
        if self._phase not in (_Phase.IDLE, _Phase.BUSY) or self._transport is None:
            return
        if self._outgoing is not None:
            self.truncate()
            return
        self._keep_alive = False
        if not self.is_answered:
            headers, body = self._render_refusal(refusal)
            self.respond(ResponseHead(refusal.status, headers), body)
        self._leave(is_unread=self._head is None or self._incoming is not None)

    def _report(self, error: Exception) -> None:
        self._loop.call_exception_handler(
            {"message": "request handler failed", "exception": error, "protocol": self}
        )

    # ---- time

    def _stop_watching(self) -> None:
        """Let go of what calls back at some time: it keeps this connection, and this one it."""
        self._deadline.stop()
        stall, self._stall = self._stall, None
        if stall is not None:
            stall.stop()

    def _deadline_reached(self) -> None:
        if self._phase is _Phase.IDLE and len(self._heads):
            self._refuse(HeadTimeout(self._limits.head_timeout_s))
        elif self._phase is not _Phase.BUSY:
            self.abort()
        elif self._received >= self._limits.least_body_bytes or self._reading_paused:
            self._received = 0
            self._deadline.set(self._limits.body_timeout_s)
        else:
            self._refuse(RemoteProtocolError("body came too slowly", status=408))


def _expects_continue(head: RequestHead) -> bool:
    expect = head.header(b"expect")
    if expect is None:
        return False
    if expect.lower() != b"100-continue":
        raise RemoteProtocolError("expectation other than 100-continue", status=417)
    return head.minor_version == 1
