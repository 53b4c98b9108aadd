"""One end of a link: handshake, liveness, control frames, and the link's end.

Theory of operation. Each side sends HELLO first and reads nothing else before the peer's.
Then each pair of roles may say what `_MAY_RECEIVE` lists and nothing more; a frame that is
absent there closes the link. Streams are left to the subclasses: `Endpoint` for the two ends,
the relay's `Port` for the switch between them.

The owner of a `LinkProtocol` feeds it messages with `receive`, calls `tick` at least every
`TICK_S`, acts on the events both return, and sends what `outbox.take` gives. After a
`LinkFailed` event the object is dead: nothing more is read or sent.
"""

from abc import ABC, abstractmethod
from struct import Struct
from typing import Final

from byoai_shared.protocol import events as ev
from byoai_shared.protocol.budget import TokenBucket
from byoai_shared.protocol.control import (
    MAX_STATUS_BYTES,
    PROTOCOL_VERSION,
    Auth,
    AuthOk,
    Control,
    Goaway,
    Hello,
    Presence,
    Role,
    Services,
    Status,
    decode_control,
    encode_control,
)
from byoai_shared.protocol.errors import CloseCode, RemoteProtocolError
from byoai_shared.protocol.frames import Frame, FrameType, decode
from byoai_shared.protocol.outbox import Outbox
from byoai_shared.protocol.round_trip import RoundTrip
from byoai_shared.protocol.trust import Trust, TrustHeld

PING_INTERVAL_S: Final = 10.0
DEAD_AFTER_S: Final = 25.0
HELLO_TIMEOUT_S: Final = 5.0
TICK_S: Final = 1.0
MAX_OPEN_PINGS: Final = 64
"""PINGs that may wait for their PONG: on a slow line it can take longer than the link may be
silent, as long as other bytes come."""

ERROR_BUDGET: Final = 200.0
ERROR_BUDGET_REFILL_PER_S: Final = 5.0

_BOTH_WAYS: Final = frozenset(
    {
        FrameType.PING,
        FrameType.PONG,
        FrameType.GOAWAY,
        FrameType.DATA,
        FrameType.FIN,
        FrameType.RESET,
        FrameType.CREDIT,
    }
)
_MAY_RECEIVE: Final[dict[tuple[Role, Role], frozenset[int]]] = {
    (Role.RELAY, Role.AGENT): _BOTH_WAYS | {FrameType.AUTH, FrameType.STATUS, FrameType.ACCEPT},
    (Role.RELAY, Role.GATEWAY): _BOTH_WAYS | {FrameType.TRUST, FrameType.SERVICES, FrameType.OPEN},
    (Role.AGENT, Role.RELAY): _BOTH_WAYS | {FrameType.AUTH_OK, FrameType.OPEN},
    (Role.GATEWAY, Role.RELAY): _BOTH_WAYS
    | {FrameType.PRESENCE, FrameType.TRUST_HELD, FrameType.ACCEPT},
}
_FIRST_STREAM_TYPE: Final = int(FrameType.OPEN)
_PING_PAYLOAD = Struct(">d")


class LinkProtocol(ABC):
    """The part of a link that relay, agent and gateway share."""

    __slots__ = (
        "_budget",
        "_last_ping",
        "_last_received",
        "_may_receive",
        "_open_pings",
        "_opened_at",
        "failure",
        "hello",
        "outbox",
        "peer",
        "round_trip",
    )

    def __init__(self, hello: Hello, *, now: float) -> None:
        self.hello = hello
        self.outbox = Outbox()
        self.peer: Hello | None = None
        self.round_trip = RoundTrip()
        """Over this link alone."""
        self.failure: ev.LinkFailed | None = None
        self._may_receive: frozenset[int] = frozenset()
        self._opened_at = now
        self._last_received = now
        self._last_ping = now
        self._open_pings: list[float] = []
        self._budget = TokenBucket(ERROR_BUDGET, ERROR_BUDGET_REFILL_PER_S, now=now)
        self._send(FrameType.HELLO, hello)

    @property
    def round_trip_s(self) -> float | None:
        """The present round trip over this link, smoothed."""
        return self.round_trip.smoothed_s

    def receive(self, message: bytes, now: float) -> list[ev.Event]:
        """Take one WebSocket message and say what it meant, in order. Never raises."""
        if self.failure is not None:
            return []
        self._last_received = now
        events: list[ev.Event] = []
        try:
            for frame in decode(message):
                frame_type = frame[0]
                if frame_type not in self._may_receive:
                    self._greet(frame, events, now)
                elif frame_type >= _FIRST_STREAM_TYPE:
                    self._stream_frame(frame, events, now)
                else:
                    self._control_frame(frame, events, now)
        except RemoteProtocolError as error:
            self.fail(error.close_code, str(error), events)
        return events

    def tick(self, now: float) -> list[ev.Event]:
        """Let time pass: PING when it is due, give up on a silent peer."""
        events: list[ev.Event] = []
        if self.failure is not None:
            return events
        if self.peer is None and now - self._opened_at >= HELLO_TIMEOUT_S:
            self.fail(CloseCode.HANDSHAKE_TIMEOUT, "no HELLO within 5 s", events)
        elif now - self._last_received >= DEAD_AFTER_S:
            self.fail(CloseCode.IDLE, f"no byte received for {DEAD_AFTER_S:.0f} s", events)
        elif self.peer is not None and now - self._last_ping >= PING_INTERVAL_S:
            self.ping(now)
        return events

    def ping(self, now: float) -> None:
        """Ask for a PONG now."""
        self._last_ping = now
        self._open_pings.append(now)
        del self._open_pings[:-MAX_OPEN_PINGS]
        self.outbox.put_urgent(FrameType.PING, 0, _PING_PAYLOAD.pack(now))

    def go_away(self, code: CloseCode, reason: str, retry_after_s: float = 0.0) -> None:
        """Ask the peer to open no more streams here and to connect elsewhere."""
        retry_after_ms = round(retry_after_s * 1000)
        goaway = Goaway(code=code, reason=reason, retry_after_ms=retry_after_ms)
        self._send(FrameType.GOAWAY, goaway)

    def fail(self, code: CloseCode, reason: str, events: list[ev.Event]) -> None:
        """End the link for a reason; only the first one counts."""
        if self.failure is None:
            self.failure = ev.LinkFailed(code, reason)
            events.append(self.failure)

    def _admit(self, peer: Hello) -> None:  # noqa: B027 - whoever is not picky admits all
        """Raise `RemoteProtocolError` when the peer is not whom this link is meant for.

        Asked before anything else of the peer is heard: its next frames may stand in the
        same message as its HELLO.
        """

    @abstractmethod
    def _stream_frame(self, frame: Frame, events: list[ev.Event], now: float) -> None:
        """Handle a frame of a stream (OPEN to CREDIT) that this peer may send."""

    def _send(self, frame_type: FrameType, payload: Control) -> None:
        self.outbox.put_urgent(frame_type, 0, encode_control(payload))

    def _offend(self, cost: float, now: float, what: str) -> None:
        """Charge the peer for something that is tolerated only in small numbers."""
        if not self._budget.spend(cost, now):
            raise RemoteProtocolError(f"too many faults on this link, last {what}", CloseCode.ABUSE)

    def _greet(self, frame: Frame, events: list[ev.Event], now: float) -> None:
        frame_type, _, payload = frame
        name = FrameType(frame_type).name
        if self.peer is not None:
            raise RemoteProtocolError(f"{name} frame from {self.peer.role}")
        if frame_type != FrameType.HELLO:
            raise RemoteProtocolError(f"{name} frame before HELLO")
        peer = decode_control(Hello, payload)
        allowed = _MAY_RECEIVE.get((self.hello.role, peer.role))
        if allowed is None:
            raise RemoteProtocolError(
                f"a link between {self.hello.role} and {peer.role}", CloseCode.WRONG_ROLE
            )
        if PROTOCOL_VERSION not in peer.versions:
            raise RemoteProtocolError(
                f"peer speaks versions {list(peer.versions)}, we speak {PROTOCOL_VERSION}",
                CloseCode.UNSUPPORTED_VERSION,
            )
        self._admit(peer)
        self.peer = peer
        self._may_receive = allowed
        events.append(ev.PeerIntroduced(peer))
        self.ping(now)

    def _control_frame(self, frame: Frame, events: list[ev.Event], now: float) -> None:
        frame_type, _, payload = frame
        match frame_type:
            case FrameType.PING:
                self._answer_ping(payload, now)
            case FrameType.PONG:
                self._measure(payload, now)
            case FrameType.GOAWAY:
                self._offend(1, now, "GOAWAY")
                events.append(ev.GoawayReceived(decode_control(Goaway, payload)))
            case FrameType.AUTH:
                self._offend(1, now, "AUTH")
                events.append(ev.TokenPresented(decode_control(Auth, payload).token))
            case FrameType.AUTH_OK:
                answer = decode_control(AuthOk, payload)
                events.append(ev.TokenAccepted(answer.accepted_until, answer.refusal))
            case FrameType.STATUS:
                # Each makes a PRESENCE on the links of all gateways; an agent sends one in 5 s.
                self._offend(4, now, "STATUS")
                if len(payload) > MAX_STATUS_BYTES:
                    raise RemoteProtocolError(
                        f"STATUS of {len(payload)} bytes exceeds the limit of {MAX_STATUS_BYTES}"
                    )
                events.append(ev.StatusReported(decode_control(Status, payload)))
            case FrameType.SERVICES:
                self._offend(1, now, "SERVICES")
                events.append(ev.ServicesGiven(decode_control(Services, payload)))
            case _:
                events.append(_between_services(frame_type, payload))

    def _answer_ping(self, payload: memoryview, now: float) -> None:
        if len(payload) != _PING_PAYLOAD.size:
            raise RemoteProtocolError(f"PING of {len(payload)} bytes")
        self._offend(0.2, now, "PING")
        self.outbox.put_urgent(FrameType.PONG, 0, bytes(payload))

    def _measure(self, payload: memoryview, now: float) -> None:
        if len(payload) != _PING_PAYLOAD.size:
            raise RemoteProtocolError(f"PONG of {len(payload)} bytes")
        sent_at: float = _PING_PAYLOAD.unpack(payload)[0]
        if sent_at not in self._open_pings:
            raise RemoteProtocolError("PONG that answers no PING of ours")
        # PONGs come in order: the earlier ones will never be answered.
        del self._open_pings[: self._open_pings.index(sent_at) + 1]
        self.round_trip.add(now - sent_at, now)


def _between_services(frame_type: int, payload: memoryview) -> ev.Event:
    """Read what a gateway and a relay tell each other."""
    match frame_type:
        case FrameType.TRUST:
            return ev.TrustGiven(decode_control(Trust, payload))
        case FrameType.TRUST_HELD:
            return ev.TrustReported(decode_control(TrustHeld, payload))
        case _:
            return ev.PresenceReported(decode_control(Presence, payload))
