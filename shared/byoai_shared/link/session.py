"""Drives the gateway's or the agent's end of a link: protocol, WebSocket, timers, streams.

Everything here runs in callbacks of the event loop. Nothing on the reading path awaits: a
stream is attached in the very call that opened it, because the bytes that follow OPEN may
stand in the same message.
"""

import asyncio
import contextlib
import math
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from byoai_shared.certificate_life import CertificateLife, read_life
from byoai_shared.errors import ByoaiError
from byoai_shared.identity import RelayIdentity, certificate_identity
from byoai_shared.link import websocket
from byoai_shared.link.errors import LinkLost, LinkRefused, StreamReset, TokenNotRenewed
from byoai_shared.link.stream import StreamTransport
from byoai_shared.link.websocket import WebSocketLink
from byoai_shared.protocol import events as ev
from byoai_shared.protocol.control import Goaway, Hello, Presence, Services, Status
from byoai_shared.protocol.endpoint import Endpoint
from byoai_shared.protocol.errors import CloseCode, ResetCode
from byoai_shared.protocol.link_protocol import HELLO_TIMEOUT_S, TICK_S
from byoai_shared.protocol.outbox import Outbox
from byoai_shared.protocol.trust import Trust, TrustHeld, split_trust

OPEN_TIMEOUT_S: Final = 10.0
AUTH_TIMEOUT_S: Final = 10.0
LINGER_S: Final = 5.0
"""How long a peer may take to finish a stream that we closed, once it has all of it."""
REPLACED_AFTER_S: Final = 5.0
"""The shortest life of a link whose relay's certificate is about to expire."""
SLOW_READER_S: Final = 60.0
"""How long it may take none of what we wrote before that."""

_Result = TypeVar("_Result")

AcceptStream = Callable[[StreamTransport], asyncio.Protocol]
"""Agent: makes the protocol of a stream that the gateway opened; must not block."""


class LinkSession:
    """One end of a link to a relay. Made by `connect`; ended by `drain`, `close` or `abort`."""

    def __init__(
        self,
        hello: Hello,
        address: str,
        *,
        accept: AcceptStream | None = None,
        on_presence: Callable[[Presence], None] | None = None,
        on_trust_held: Callable[[TrustHeld], None] | None = None,
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._endpoint = Endpoint(hello, now=time.monotonic())
        self._link: WebSocketLink | None = None
        self.peer_certificate = b""
        """The relay's certificate, DER; kept when the link has ended."""
        self._accept = accept
        self._on_presence = on_presence
        self._on_trust_held = on_trust_held
        self._unix_now = unix_now
        self._expires_at = math.inf
        self._replace_at = math.inf
        self._streams: dict[int, StreamTransport] = {}
        self._opening: dict[int, tuple[asyncio.Future[StreamTransport], asyncio.Protocol]] = {}
        self._lingering: dict[int, asyncio.TimerHandle] = {}
        self._paused_writers: set[StreamTransport] = set()
        self._introduced: asyncio.Future[None] = self._loop.create_future()
        self._accepted: deque[asyncio.Future[ev.TokenAccepted]] = deque()
        """One for each AUTH, in order; one that nobody waits for any more still has its turn."""
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._trusts: deque[Iterator[Trust]] = deque()
        """What is still to be sent of TRUST, in parts."""
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self.address = address
        self.closed: asyncio.Future[LinkLost] = self._loop.create_future()
        """Done when the link is over; its result says why."""
        self.goaway: asyncio.Future[Goaway] = self._loop.create_future()
        """Done when the relay asks to connect elsewhere."""
        self.aged: asyncio.Future[None] = self._loop.create_future()
        """Done when a new link should take this one's place, long before a certificate expires."""
        self._handlers: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.DataReceived: self._on_data,
            ev.StreamOpened: self._on_opened,
            ev.StreamAccepted: self._on_accepted,
            ev.StreamFinished: self._on_finished,
            ev.StreamAborted: self._on_aborted,
            ev.PeerIntroduced: self._on_introduced,
            ev.TokenAccepted: self._on_token_accepted,
            ev.GoawayReceived: self._on_goaway,
            ev.PresenceReported: self._on_presence_reported,
            ev.TrustReported: self._on_trust_reported,
            ev.LinkFailed: self._on_failed,
        }

    # -- for the owner

    @property
    def outbox(self) -> Outbox:
        """The frames that wait to be sent."""
        return self._endpoint.outbox

    @property
    def peer(self) -> Hello | None:
        """The relay's HELLO."""
        return self._endpoint.peer

    @property
    def round_trip_s(self) -> float | None:
        """Smoothed round trip to the relay."""
        return self._endpoint.round_trip_s

    @property
    def stream_count(self) -> int:
        """Streams that still hold a slot."""
        return self._endpoint.stream_count

    @property
    def is_usable(self) -> bool:
        """New streams may be opened."""
        return not self.closed.done() and not self.goaway.done() and self.peer is not None

    async def authenticate(self, token: str) -> int:
        """Present a tunnel token; return until when it was accepted, in Unix seconds.

        Raises:
            TokenNotRenewed: the relay refused it and goes on with the one before it.
            LinkLost: the relay refused it (`code` says so) or the link went.
        """
        accepted: asyncio.Future[ev.TokenAccepted] = self._loop.create_future()
        self._accepted.append(accepted)
        self._endpoint.authenticate(token)
        self._flush()
        try:
            async with asyncio.timeout(AUTH_TIMEOUT_S):
                answer = await self._or_lost(accepted)
        except TimeoutError:
            self.abort()
            raise LinkLost(self.address, None, "no answer to AUTH") from None
        if answer.refusal:
            raise TokenNotRenewed(self.address, answer.refusal, answer.accepted_until)
        return answer.accepted_until

    def send_status(self, status: Status) -> None:
        """Agent: describe the upstreams and the load."""
        self._endpoint.report_status(status)
        self._flush()

    def send_trust(self, trust: Trust) -> None:
        """Gateway: send the relay what it is to believe, or what changed.

        It goes part by part, each when the one before it has left, so that a long one delays no
        stream. What is sent later comes after it. A whole takes the place of all that has not left:
        a relay that asks again and again fills no memory, and a change that it cannot use, of which
        it may complain part by part, is not sent to its end.
        """
        if not trust.base:
            self._trusts.clear()
        self._trusts.append(split_trust(trust))
        self._send_trust_part()

    def _send_trust_part(self) -> None:
        """Send the next part of TRUST, unless the one before it has not left yet."""
        if self.outbox.urgent_bytes:
            return
        while self._trusts:
            part = next(self._trusts[0], None)
            if part is not None:
                self._endpoint.give_trust(part)
                self._flush()
                return
            self._trusts.popleft()

    def send_services(self, services: Services) -> None:
        """Gateway: tell the relay of revocations, or give it a certificate."""
        self._endpoint.give_services(services)
        self._flush()

    def retire(self, reason: str) -> None:
        """Let no new stream come to this link, as if the relay had said GOAWAY."""
        if not self.goaway.done():
            self.goaway.set_result(Goaway(code=CloseCode.GOING_AWAY, reason=reason))

    async def open_stream(
        self,
        tunnel_id: str,
        protocol: asyncio.Protocol,
        *,
        agent_id: str = "",
        timeout_s: float = OPEN_TIMEOUT_S,
    ) -> StreamTransport:
        """Gateway: open a stream; `protocol.connection_made` runs when the agent takes it.

        The relay chooses an agent of the tunnel unless `agent_id` names one. Cancelling resets
        the stream.

        Raises:
            StreamReset: the relay or the agent refused it.
            LinkLost: the link went first, or may not be used.
            TimeoutError: no answer within `timeout_s`.
        """
        if not self.is_usable:
            raise LinkLost(self.address, None, "the link takes no new streams")
        stream_id = self._endpoint.open(tunnel_id, time.monotonic(), agent_id)
        opened: asyncio.Future[StreamTransport] = self._loop.create_future()
        self._opening[stream_id] = (opened, protocol)
        self._flush()
        try:
            async with asyncio.timeout(timeout_s):
                return await opened
        except (TimeoutError, asyncio.CancelledError):
            self._opening.pop(stream_id, None)
            stream = self._streams.get(stream_id)
            if stream is not None:
                stream.abort()
            else:
                self.reset(stream_id, ResetCode.CANCELLED)
            raise
        finally:
            del opened  # an error that it holds holds this frame, and with it the protocol

    async def drain(self, timeout_s: float) -> None:
        """Ask for no new streams, let the open ones finish, then close."""
        self._endpoint.go_away(CloseCode.GOING_AWAY, "draining")
        self._flush()
        if not self._is_idle and not self.closed.done():
            idle: asyncio.Future[None] = self._loop.create_future()
            self._idle_waiters.append(idle)
            with contextlib.suppress(TimeoutError, LinkLost):
                async with asyncio.timeout(timeout_s):
                    await self._or_lost(idle)
        await self.close()

    async def close(self, code: CloseCode = CloseCode.NORMAL, reason: str = "") -> None:
        """Close the link and wait until it is gone; streams still open are lost."""
        if self._link is not None:
            self._link.close(code, reason)
            await asyncio.shield(self.closed)

    def abort(self) -> None:
        """Cut the link at once."""
        if self._link is not None:
            self._link.abort()

    # -- StreamCarrier, for the streams

    def send(self, stream_id: int, data: bytes) -> None:
        """Queue bytes of a stream."""
        self._endpoint.send(stream_id, data)
        self._flush()

    def finish(self, stream_id: int) -> None:
        """Half-close a stream after the queued bytes."""
        self._endpoint.finish(stream_id)
        self._flush()

    def reset(self, stream_id: int, code: ResetCode) -> None:
        """Abort a stream."""
        self._endpoint.reset(stream_id, code)
        self._forget(stream_id)
        self._flush()

    def consume(self, stream_id: int, size: int) -> None:
        """Let the peer send `size` more bytes."""
        self._endpoint.consume(stream_id, size, time.monotonic())
        self._flush()

    def unsent_bytes(self, stream_id: int) -> int:
        """Bytes of a stream that have not left yet."""
        return self._endpoint.unsent_bytes(stream_id)

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Run a callback in the loop's next turn."""
        self._loop.call_soon(callback, *args)

    def report(self, error: Exception) -> None:
        """Tell the event loop of an exception of a protocol; the link goes on."""
        context = {"message": "a stream's protocol failed", "exception": error}
        self._loop.call_exception_handler(context)

    def watch_writer(self, stream: StreamTransport) -> None:
        """Tell a paused writer of every flush."""
        self._paused_writers.add(stream)

    def linger(self, stream_id: int) -> None:
        """Let a closed stream flush, and its peer finish, as long as something moves."""
        if not self._endpoint.holds(stream_id):
            self._forget(stream_id)
        elif stream_id in self._streams:
            self._await_finish(stream_id)

    def _await_finish(
        self, stream_id: int, unsent_bytes: int | None = None, stalled_s: float = 0.0
    ) -> None:
        now_unsent = self.unsent_bytes(stream_id)
        if unsent_bytes is None or now_unsent < unsent_bytes:
            stalled_s = 0.0
        # A reader may be slow to take what was written; to finish afterwards is quick.
        patience_s = SLOW_READER_S if now_unsent else LINGER_S
        if not self._endpoint.holds(stream_id):
            self._forget(stream_id)
        elif stalled_s >= patience_s:
            self.reset(stream_id, ResetCode.CANCELLED)
        else:
            self._lingering[stream_id] = self._loop.call_later(
                LINGER_S, self._await_finish, stream_id, now_unsent, stalled_s + LINGER_S
            )

    # -- LinkDriver, for the WebSocket

    def attach(self, link: WebSocketLink) -> "LinkSession":
        """Start on a WebSocket that stands."""
        self._link = link
        return self

    def message_received(self, message: bytes) -> None:
        """Take one message off the link."""
        handlers = self._handlers
        for event in self._endpoint.receive(message, time.monotonic()):
            handler = handlers.get(type(event))
            if handler is not None:
                handler(event)
        self._flush()

    def flushed(self) -> None:
        """Resume the writers that have room again; send the next part of TRUST."""
        if self._trusts:
            self._send_trust_part()
        if self._paused_writers:
            for stream in tuple(self._paused_writers):
                if not stream.writing_progressed():
                    self._paused_writers.discard(stream)
        self._tell_if_idle()

    def link_closed(self, code: int | None, reason: str) -> None:
        """End every stream and everyone who waits."""
        self._ticker.cancel()
        failure = self._endpoint.failure
        if failure is not None:
            lost = LinkLost(self.address, failure.code, failure.reason)
        else:
            lost = LinkLost(self.address, _known(code), reason)
        if self.goaway.done() and self.goaway.result().retry_after_ms:
            lost.retry_after_s = self.goaway.result().retry_after_ms / 1000
        for handle in self._lingering.values():
            handle.cancel()
        for opened, _ in self._opening.values():
            if not opened.done():
                opened.set_exception(lost.copied())
        self._opening.clear()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.lost(lost)
        self._paused_writers.clear()
        # Both hold methods of this session, and would keep it and all that its end has told.
        self._link = None
        self._handlers = {}
        self._trusts.clear()
        if not self.closed.done():
            self.closed.set_result(lost)

    # -- events

    def _on_data(self, event: ev.DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.data_received(event.data)

    def _on_opened(self, event: ev.StreamOpened) -> None:
        stream_id = event.stream_id
        if self._accept is None:
            self._endpoint.reset(stream_id, ResetCode.REFUSED)
            return
        if not self._endpoint.holds(stream_id):
            return  # its RESET stood in the same message
        stream = StreamTransport(self, stream_id, {"byoai.peer": event.dialer})
        try:
            protocol = self._accept(stream)
        except Exception as error:  # noqa: BLE001 - it costs its stream, never the link
            self.report(error)
            self._endpoint.reset(stream_id, ResetCode.INTERNAL_ERROR)
            return
        self._streams[stream_id] = stream
        self._endpoint.accept(stream_id)
        stream.start(protocol)

    def _on_accepted(self, event: ev.StreamAccepted) -> None:
        waiting = self._opening.pop(event.stream_id, None)
        if waiting is None or waiting[0].done():
            self._endpoint.reset(event.stream_id, ResetCode.CANCELLED)
            return
        opened, protocol = waiting
        stream = self._streams[event.stream_id] = StreamTransport(self, event.stream_id)
        opened.set_result(stream)
        stream.start(protocol)

    def _on_finished(self, event: ev.StreamFinished) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        stream.eof_received()
        if not self._endpoint.holds(event.stream_id):
            self._forget(event.stream_id)

    def _on_aborted(self, event: ev.StreamAborted) -> None:
        waiting = self._opening.pop(event.stream_id, None)
        if waiting is not None and not waiting[0].done():
            waiting[0].set_exception(StreamReset(event.code))
        stream = self._streams.get(event.stream_id)
        self._forget(event.stream_id)
        if stream is not None:
            stream.lost(StreamReset(event.code))

    def _on_introduced(self, _event: ev.PeerIntroduced) -> None:
        if not self._introduced.done():
            self._introduced.set_result(None)

    def _on_token_accepted(self, event: ev.TokenAccepted) -> None:
        if self._accepted:
            accepted = self._accepted.popleft()
            if not accepted.done():
                accepted.set_result(event)

    def _on_goaway(self, event: ev.GoawayReceived) -> None:
        if not self.goaway.done():
            self.goaway.set_result(event.goaway)

    def _on_presence_reported(self, event: ev.PresenceReported) -> None:
        if self._on_presence is None:
            return
        try:
            self._on_presence(event.presence)
        except Exception as error:  # noqa: BLE001 - what it does is no business of the link's
            self.report(error)

    def _on_trust_reported(self, event: ev.TrustReported) -> None:
        if self._on_trust_held is not None:
            self._on_trust_held(event.held)

    def _on_failed(self, event: ev.LinkFailed) -> None:
        if self._link is None:
            return
        if event.code is CloseCode.IDLE:
            # A peer that is silent will not answer a CLOSE either.
            self._link.abort()
        else:
            self._link.close(event.code, event.reason)

    # -- inner workings

    async def introduce(self) -> None:
        """Wait for the relay's HELLO.

        Raises:
            LinkLost: the link went first.
        """
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            await self._or_lost(self._introduced)

    async def _or_lost(self, awaited: "asyncio.Future[_Result]") -> _Result:
        """Wait for a future, or raise what ended the link."""
        waiting: tuple[asyncio.Future[Any], ...] = (awaited, self.closed)
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if awaited.done():
            return awaited.result()
        raise self.closed.result().copied()

    def _forget(self, stream_id: int) -> None:
        handle = self._lingering.pop(stream_id, None)
        if handle is not None:
            handle.cancel()
        self._streams.pop(stream_id, None)
        self._tell_if_idle()

    @property
    def _is_idle(self) -> bool:
        # The last bytes of streams that both sides have closed may still wait to leave.
        return not (self._streams or self._opening or self.outbox)

    def _tell_if_idle(self) -> None:
        if self._idle_waiters and self._is_idle:
            for waiter in self._idle_waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle_waiters.clear()

    def _flush(self) -> None:
        if self._link is not None and self._endpoint.outbox:
            self._link.flush_soon()

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        for event in self._endpoint.tick(time.monotonic()):
            if isinstance(event, ev.LinkFailed):
                self._on_failed(event)
        self._watch_certificate()
        self._flush()

    def end_with(self, relays: CertificateLife, own_expires_at: float) -> None:
        """End the link with the relay's certificate, and age before either certificate expires.

        It ages at a random moment, so that many links are not replaced at once, and early enough
        for the streams on the old one to finish.
        """
        self._expires_at = relays.expires_at
        now = self._unix_now()
        expires_at = min(relays.expires_at, own_expires_at)
        left_s = (expires_at - now) * random.uniform(0.5, 0.66)  # noqa: S311 -- spreads load only
        self._replace_at = now + max(left_s, REPLACED_AFTER_S)

    def _watch_certificate(self) -> None:
        """End the link with the relay's certificate; ask for another one long before."""
        now = self._unix_now()
        if now >= self._replace_at and not self.aged.done():
            self.aged.set_result(None)
        if now >= self._expires_at:
            expired = ev.LinkFailed(
                CloseCode.CERTIFICATE_EXPIRED, "the relay's certificate expired"
            )
            self._endpoint.fail(expired.code, expired.reason, [])
            self._on_failed(expired)


def _known(code: int | None) -> CloseCode | None:
    try:
        return CloseCode(code) if code is not None else None
    except ValueError:
        return None


async def connect(
    url: str,
    *,
    ssl_context: ssl.SSLContext,
    hello: Hello,
    accept: AcceptStream | None = None,
    on_presence: Callable[[Presence], None] | None = None,
    on_trust_held: Callable[[TrustHeld], None] | None = None,
    proxy: str | None = None,
    own_expires_at: float = math.inf,
    unix_now: Callable[[], float] = time.time,
) -> LinkSession:
    """Dial a relay at `wss://host:port` and wait until it has introduced itself.

    `own_expires_at` is when the certificate of `ssl_context` expires.

    Raises:
        LinkRefused: it could not be reached, is no relay, or turned us away.
    """
    session = LinkSession(
        hello,
        url,
        accept=accept,
        on_presence=on_presence,
        on_trust_held=on_trust_held,
        unix_now=unix_now,
    )
    try:
        link = await websocket.connect(url, session.attach, ssl_context=ssl_context, proxy=proxy)
    except BaseException:
        session.link_closed(None, "")
        raise
    try:
        session.peer_certificate = link.peer_certificate
        _require_relay(link.peer_certificate)
        session.end_with(read_life(link.peer_certificate), own_expires_at)
        await session.introduce()
    except LinkLost as lost:
        refused = LinkRefused(url, str(lost), lost.code, retry_after_s=lost.retry_after_s)
        raise refused from lost
    except (ByoaiError, TimeoutError) as error:
        session.abort()
        raise LinkRefused(url, str(error) or "no HELLO in time") from error
    except BaseException:
        session.abort()
        raise
    return session


def _require_relay(certificate: bytes) -> None:
    """Take only a relay at the other end: the services CA signs gateways as well."""
    identity = certificate_identity(certificate)
    if not isinstance(identity, RelayIdentity):
        raise ByoaiError(f"the certificate there names {identity}, not a relay")
