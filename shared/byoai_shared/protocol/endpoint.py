"""Streams at the two ends of the tunnel: the gateway opens them, the agent takes them.

Theory of operation. Each side closes its half of a stream exactly once, by FIN or by RESET,
and answers a RESET that finds its half open with a RESET of its own. A stream is forgotten,
and its slot free, when both halves are closed: so a peer cannot open and reset its way past
the limit (CVE-2023-44487), and no frame arrives for a stream that was properly forgotten.

    opened ──ACCEPT──► open ──FIN either way──► half closed ──FIN──► forgotten
       └────────RESET sent: bytes that still arrive are dropped──RESET──► forgotten
"""

from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import ClassVar, Final

from byoai_shared.protocol import events as ev
from byoai_shared.protocol.budget import TokenBucket
from byoai_shared.protocol.control import (
    Auth,
    Hello,
    Open,
    Role,
    Services,
    Status,
    decode_control,
    encode_control,
    fit_status,
)
from byoai_shared.protocol.credit import SMALL_CREDIT_BYTES, ReceiveWindow, SendWindow
from byoai_shared.protocol.errors import LocalProtocolError, RemoteProtocolError, ResetCode
from byoai_shared.protocol.frames import (
    DATA,
    FIN,
    MAX_PAYLOAD_BYTES,
    MAX_STREAM_ID,
    SMALL_DATA_BYTES,
    Frame,
    FrameType,
    decode_u32,
)
from byoai_shared.protocol.link_protocol import LinkProtocol
from byoai_shared.protocol.round_trip import RoundTrip
from byoai_shared.protocol.trust import Trust

_HEADER = Struct(">II")
MAX_TRIPS: Final = 10_000
_FIN_WORD: Final = int(FIN)
_ONLY_ACCEPTED: Final = frozenset({FrameType.DATA, FrameType.FIN, FrameType.CREDIT})
MAY_CROSS_AN_END: Final = frozenset({FrameType.RESET, FrameType.CREDIT})
CROSSING_COST: Final = 0.1
"""A RESET or a CREDIT may have left before our FIN arrived: cheap, but not for nothing."""
_PREMATURE_RESET_COST: Final = 0.25
"""A relay refuses streams of the tunnel before these can cost the agent its link: it bears as
many as 200, and 5 per second."""
SMALL_FRAMES_PER_S: Final = 20_000.0
SMALL_FRAMES_BURST: Final = 50_000.0
"""Small DATA and CREDIT frames of one stream, which a relay bounds far below: beyond that the
stream is reset. Its link is charged nothing, for it may carry the streams of other users."""


class _Stream:
    """What one end knows of a stream."""

    __slots__ = (
        "finishing",
        "has_received",
        "is_aborted",
        "is_accepted",
        "is_local_closed",
        "is_remote_closed",
        "opened_at",
        "pending",
        "pending_bytes",
        "receive_window",
        "send_window",
        "small_frames",
        "stream_id",
        "tunnel_id",
    )

    def __init__(
        self, stream_id: int, tunnel_id: str, send_credit: int, window_bytes: int, now: float
    ) -> None:
        self.stream_id = stream_id
        self.tunnel_id = tunnel_id
        """At the gateway; empty at the agent."""
        self.opened_at = now
        self.send_window = SendWindow(send_credit)
        self.receive_window = ReceiveWindow(window_bytes)
        self.pending: deque[bytes | memoryview] = deque()
        self.pending_bytes = 0
        """Bytes written that no credit covers yet."""
        self.small_frames: TokenBucket | None = None
        """Made at the first small frame from the peer."""
        self.is_accepted = False
        self.has_received = False
        self.finishing = False
        """FIN follows once `pending` is empty."""
        self.is_local_closed = False
        self.is_remote_closed = False
        self.is_aborted = False
        """We sent RESET: what still arrives is dropped."""


class Endpoint(LinkProtocol):
    """The gateway's or the agent's end of a link."""

    __slots__ = ("_last_stream_id", "_streams", "_trips")

    def __init__(self, hello: Hello, *, now: float) -> None:
        super().__init__(hello, now=now)
        self._streams: dict[int, _Stream] = {}
        self._last_stream_id = 0
        self._trips: dict[str, RoundTrip] = {}
        """Gateway: from OPEN to ACCEPT, by tunnel, the latest last."""

    @property
    def stream_count(self) -> int:
        """Streams that still hold a slot."""
        return len(self._streams)

    def authenticate(self, token: str) -> None:
        """Agent: present a tunnel token; `TokenAccepted` or the link's end follows."""
        self._send(FrameType.AUTH, Auth(token=token))

    def report_status(self, status: Status) -> None:
        """Agent: describe the upstreams and the load; models that do not fit are left out."""
        self._send(FrameType.STATUS, fit_status(status))

    def give_trust(self, part: Trust) -> None:
        """Gateway: send the relay what it is to believe, or what changed: a part of `split_trust`.

        The next part waits until this one has left, as TRUST overtakes what streams have to send.
        """
        self._send(FrameType.TRUST, part)

    def give_services(self, services: Services) -> None:
        """Gateway: tell a relay that takes it of revocations, or give it a certificate."""
        if self.peer is not None and self.peer.takes_services:
            self._send(FrameType.SERVICES, services)

    def open(self, tunnel_id: str, now: float, agent_id: str = "") -> int:
        """Gateway: open a stream to a tunnel, or to one of its agents, and return its id.

        Raises:
            LocalProtocolError: the link is not ready, or has used up its stream ids.
        """
        if self.peer is None or self.hello.role is not Role.GATEWAY:
            raise LocalProtocolError("opening a stream on a link that is not ready for it")
        if self._last_stream_id >= MAX_STREAM_ID:
            raise LocalProtocolError("the link has used up its stream ids")
        self._last_stream_id = stream_id = self._last_stream_id + 1
        # Nothing may be sent before ACCEPT brings the agent's credit.
        credit = self.hello.initial_credit
        self._streams[stream_id] = _Stream(stream_id, tunnel_id, 0, credit, now)
        opening = Open(tunnel_id=tunnel_id, agent_id=agent_id, credit=credit)
        self.outbox.put_urgent(FrameType.OPEN, stream_id, encode_control(opening))
        return stream_id

    def accept(self, stream_id: int) -> None:
        """Agent: take a stream that the peer opened; nothing to do if it is over already."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_aborted:
            return
        stream.is_accepted = True
        self.outbox.put_number(FrameType.ACCEPT, stream_id, self.hello.initial_credit)

    def send(self, stream_id: int, data: bytes) -> None:
        """Queue bytes; what no credit covers waits inside. Dropped once the half is closed."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_local_closed or stream.finishing or not data:
            return
        if stream.pending or len(data) > stream.send_window.available:
            stream.pending.append(data)
            stream.pending_bytes += len(data)
            self._send_pending(stream)
        else:
            self._send_covered(stream, data)

    def finish(self, stream_id: int) -> None:
        """Close our half once everything written has left."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.is_local_closed and not stream.finishing:
            stream.finishing = True
            self._finish_if_drained(stream)

    def reset(self, stream_id: int, code: ResetCode) -> None:
        """Abort a stream in both directions; nothing to do if it is already forgotten."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_aborted:
            return
        stream.is_aborted = True
        stream.pending.clear()
        stream.pending_bytes = 0
        self.outbox.put_number(FrameType.RESET, stream_id, code)
        stream.is_local_closed = True
        self._forget_if_closed(stream)

    def consume(self, stream_id: int, size: int, now: float) -> None:
        """Report received bytes as used up, so that the peer may send more."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_remote_closed or stream.is_aborted:
            return
        credit = stream.receive_window.consume(size, now)
        if credit:
            self.outbox.put_number(FrameType.CREDIT, stream_id, credit)

    def holds(self, stream_id: int) -> bool:
        """Whether a stream still takes a slot: one of its halves is open."""
        return stream_id in self._streams

    def unsent_bytes(self, stream_id: int) -> int:
        """Bytes of a stream that wait for credit or for their turn on the link."""
        stream = self._streams.get(stream_id)
        pending = stream.pending_bytes if stream is not None else 0
        return pending + self.outbox.stream_bytes(stream_id)

    def _trip_to(self, tunnel_id: str) -> RoundTrip:
        trip = self._trips.pop(tunnel_id, None) or RoundTrip()
        self._trips[tunnel_id] = trip
        if len(self._trips) > MAX_TRIPS:
            del self._trips[next(iter(self._trips))]
        return trip

    # -- frames from the peer

    def _stream_frame(self, frame: Frame, events: list[ev.Event], now: float) -> None:
        frame_type, stream_id, payload = frame
        stream = self._streams.get(stream_id)
        if stream is not None and frame_type != FrameType.OPEN:
            if not stream.is_accepted and frame_type in _ONLY_ACCEPTED:
                self._require_accepted(stream, frame_type)
            self._HANDLERS[frame_type](self, stream, payload, events, now)
        elif frame_type == FrameType.OPEN:
            self._on_open(stream_id, payload, events, now)
        elif stream_id > self._last_stream_id:
            name = FrameType(frame_type).name
            raise RemoteProtocolError(f"{name} frame on stream {stream_id}, never opened")
        elif frame_type not in MAY_CROSS_AN_END:
            self._offend(1, now, "a frame on a stream already closed")
        elif self.hello.role is Role.AGENT:
            # A gateway does not charge its relay: an agent makes such frames cross at will, and
            # the link is that of all users.
            self._offend(CROSSING_COST, now, "a frame on a stream already closed")

    def _require_accepted(self, stream: _Stream, frame_type: int) -> None:
        # At the agent it may be: the application takes a stream when it hears of it, and what
        # follows OPEN can stand in the same message. And a relay passes no ACCEPT on to us
        # when we have reset the stream, only its end.
        if self.hello.role is Role.GATEWAY and not stream.is_aborted:
            name = FrameType(frame_type).name
            raise RemoteProtocolError(f"{name} frame on stream {stream.stream_id} before ACCEPT")

    def _on_open(
        self, stream_id: int, payload: memoryview, events: list[ev.Event], now: float
    ) -> None:
        if stream_id <= self._last_stream_id:
            raise RemoteProtocolError(f"OPEN of stream {stream_id} after {self._last_stream_id}")
        self._last_stream_id = stream_id
        opening = decode_control(Open, payload)
        stream = _Stream(stream_id, "", opening.credit, self.hello.initial_credit, now)
        stream.receive_window.round_trip_s = self.round_trip.base_s + opening.round_trip_us / 1e6
        self._streams[stream_id] = stream
        if self._is_over_limit():
            self.reset(stream_id, ResetCode.LIMIT_EXCEEDED)
            self._offend(1, now, "an OPEN over the limit of streams")
        else:
            events.append(ev.StreamOpened(stream_id, opening.dialer))

    def _is_over_limit(self) -> bool:
        limit = self.hello.max_streams
        if len(self._streams) <= limit:
            return False
        # The relay holds a slot to be free once both ends have closed their half, and its next
        # OPEN overtakes the FIN that would tell us so.
        open_here = sum(not stream.is_local_closed for stream in self._streams.values())
        return open_here > limit or len(self._streams) > 2 * limit

    def _on_accept(
        self, stream: _Stream, payload: memoryview, events: list[ev.Event], now: float
    ) -> None:
        if stream.is_accepted:
            raise RemoteProtocolError(f"second ACCEPT of stream {stream.stream_id}")
        stream.is_accepted = True
        trip = self._trip_to(stream.tunnel_id)
        trip.add(now - stream.opened_at, now)
        stream.receive_window.round_trip_s = trip.base_s
        credit = decode_u32(payload)
        if stream.is_aborted:
            return
        if not stream.send_window.grant(credit):
            self._abort(stream, ResetCode.FLOW_CONTROL, events)
            return
        events.append(ev.StreamAccepted(stream.stream_id))
        self._send_pending(stream)

    def _on_data(
        self, stream: _Stream, payload: memoryview, events: list[ev.Event], now: float
    ) -> None:
        if stream.is_remote_closed:
            if stream.is_aborted:
                return
            raise RemoteProtocolError(f"DATA after FIN on stream {stream.stream_id}")
        size = len(payload)
        if size < SMALL_DATA_BYTES and not self._bears_small(stream, size, events, now):
            return
        if not stream.receive_window.receive(size):
            if not stream.is_aborted:
                self._abort(stream, ResetCode.FLOW_CONTROL, events)
            self._offend(20, now, "DATA over its credit")
        elif not stream.is_aborted:
            stream.has_received = True
            events.append(ev.DataReceived(stream.stream_id, payload))

    def _bears_small(self, stream: _Stream, size: int, events: list[ev.Event], now: float) -> bool:
        """Charge the stream for a DATA or CREDIT that is hardly worth its frame."""
        if size == 0:
            self._offend(1, now, "an empty DATA")
            return False
        if stream.small_frames is None:
            stream.small_frames = TokenBucket(SMALL_FRAMES_BURST, SMALL_FRAMES_PER_S, now=now)
        if stream.small_frames.spend(1, now):
            return True
        if not stream.is_aborted:
            self._abort(stream, ResetCode.THROTTLED, events)
        return False

    def _on_fin(
        self, stream: _Stream, payload: memoryview, events: list[ev.Event], _now: float
    ) -> None:
        if payload:
            raise RemoteProtocolError(f"FIN of {len(payload)} bytes")
        if stream.is_remote_closed:
            raise RemoteProtocolError(f"second FIN of stream {stream.stream_id}")
        stream.is_remote_closed = True
        if not stream.is_aborted:
            events.append(ev.StreamFinished(stream.stream_id))
        self._forget_if_closed(stream)

    def _on_reset(
        self, stream: _Stream, payload: memoryview, events: list[ev.Event], now: float
    ) -> None:
        code = ResetCode(decode_u32(payload))
        is_answer = stream.is_aborted
        if not (is_answer or stream.has_received) and self.hello.role is Role.AGENT:
            self._offend(_PREMATURE_RESET_COST, now, "a stream opened and reset without a byte")
        stream.is_remote_closed = True
        if not stream.is_local_closed:
            self.reset(stream.stream_id, ResetCode.CANCELLED)
        else:
            if self.outbox.drop(stream.stream_id):
                # Our FIN was among them: the peer still waits for an end of our half.
                self.outbox.put_number(FrameType.RESET, stream.stream_id, ResetCode.CANCELLED)
            self._forget_if_closed(stream)
        if not is_answer:
            events.append(ev.StreamAborted(stream.stream_id, code))

    def _on_credit(
        self, stream: _Stream, payload: memoryview, events: list[ev.Event], now: float
    ) -> None:
        credit = decode_u32(payload)
        if 0 < credit < SMALL_CREDIT_BYTES and not self._bears_small(stream, credit, events, now):
            return
        if not stream.send_window.grant(credit):
            if not stream.is_aborted:
                self._abort(stream, ResetCode.FLOW_CONTROL, events)
            self._offend(20, now, "a zero or overflowing CREDIT")
        elif stream.pending:
            self._send_pending(stream)

    # -- our own half

    def _abort(self, stream: _Stream, code: ResetCode, events: list[ev.Event]) -> None:
        self.reset(stream.stream_id, code)
        events.append(ev.StreamAborted(stream.stream_id, code))

    def _send_pending(self, stream: _Stream) -> None:
        while stream.pending and stream.send_window.available:
            data = stream.pending.popleft()
            available = stream.send_window.available
            if len(data) > available:
                view = memoryview(data)
                stream.pending.appendleft(view[available:])
                data = view[:available]
            stream.pending_bytes -= len(data)
            self._send_covered(stream, data)
        self._finish_if_drained(stream)

    def _send_covered(self, stream: _Stream, data: bytes | memoryview) -> None:
        size = len(data)
        stream.send_window.spend(size)
        stream_id = stream.stream_id
        if size <= MAX_PAYLOAD_BYTES:
            self.outbox.put_stream(stream_id, _HEADER.pack(size << 8 | DATA, stream_id), data)
            return
        view = memoryview(data)
        for at in range(0, size, MAX_PAYLOAD_BYTES):
            part = view[at : at + MAX_PAYLOAD_BYTES]
            header = _HEADER.pack(len(part) << 8 | DATA, stream_id)
            self.outbox.put_stream(stream_id, header, part)

    def _finish_if_drained(self, stream: _Stream) -> None:
        if stream.finishing and not stream.pending and not stream.is_local_closed:
            stream.is_local_closed = True
            header = _HEADER.pack(_FIN_WORD, stream.stream_id)
            self.outbox.put_stream(stream.stream_id, header, b"")
            self._forget_if_closed(stream)

    def _forget_if_closed(self, stream: _Stream) -> None:
        if stream.is_local_closed and stream.is_remote_closed:
            self._streams.pop(stream.stream_id, None)

    # Functions, not methods of one endpoint: those would keep it in a reference cycle.
    _HANDLERS: ClassVar[
        dict[int, Callable[["Endpoint", _Stream, memoryview, list[ev.Event], float], None]]
    ] = {
        FrameType.ACCEPT: _on_accept,
        FrameType.DATA: _on_data,
        FrameType.FIN: _on_fin,
        FrameType.RESET: _on_reset,
        FrameType.CREDIT: _on_credit,
    }
