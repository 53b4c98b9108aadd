"""The relay's end of one link, and one side of a stream that passes through it.

A port reads frames and moves DATA itself; every other frame of a stream is for the switch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final, Protocol

from byoai_relay.accounts import AccountLimits, TunnelAccount
from byoai_shared.protocol import events as ev
from byoai_shared.protocol.budget import TokenBucket
from byoai_shared.protocol.control import Hello, Open, Role, decode_control
from byoai_shared.protocol.endpoint import CROSSING_COST, MAY_CROSS_AN_END
from byoai_shared.protocol.errors import CloseCode, RemoteProtocolError, ResetCode
from byoai_shared.protocol.frames import DATA, MAX_STREAM_ID, SMALL_DATA_BYTES, Frame, FrameType
from byoai_shared.protocol.link_protocol import LinkProtocol

_HEADER = Struct(">II")
SMALL_FRAME_WORK: Final = 16
"""What a small DATA or CREDIT costs besides the one unit of work of each frame."""
RESET_FRAME_WORK: Final = 4
"""What a frame on a stream that was sent RESET costs besides. It may have left before."""
BYTES_PER_WORK: Final = 16
"""A control frame from an agent, and a PRESENCE to a gateway, cost a unit for so many bytes."""
WORK_BATCH: Final = 1000
"""An agent's link charges its work to its tunnel in batches, so that a frame costs an addition."""


@dataclass(frozen=True, slots=True)
class SwitchLimits:
    """What the switch bears. Bytes count frames with their headers."""

    streams_per_tunnel: int = 64
    opens_per_s: float = 100.0
    opens_burst: float = 200.0
    early_resets_per_s: float = 5.0
    """Streams of a tunnel that a gateway resets before the agent has sent a byte."""
    early_resets_burst: float = 200.0
    early_resets_refuse_s: float = 10.0
    frames_per_s: float = 1000.0
    """Frames from a tunnel's agents, for each stream that it may have."""
    link_high_bytes: int = 1024 * 1024
    """Above this, credit towards a link's senders is held back."""
    link_low_bytes: int = 256 * 1024
    memory_bytes: int = 512 * 1024 * 1024
    """Above this, the largest waiting stream is reset."""

    def for_accounts(self) -> AccountLimits:
        """The part that is counted per tunnel."""
        return AccountLimits(
            early_resets_burst=self.early_resets_burst,
            early_resets_per_s=self.early_resets_per_s,
            refuse_s=self.early_resets_refuse_s,
            work_per_s=self.frames_per_s * max(1, self.streams_per_tunnel),
        )


class Leg:
    """One side of a route."""

    __slots__ = (
        "allowance",
        "has_data",
        "held_credit",
        "is_accepted",
        "is_closed",
        "is_deaf",
        "is_told",
        "opening_credit",
        "other",
        "port",
        "stream_id",
    )

    def __init__(self, port: "Port", stream_id: int) -> None:
        self.port = port
        self.stream_id = stream_id
        self.other: Leg | None = None
        """None when the stream was refused: then only the peer's RESET is awaited."""
        self.allowance = 0
        self.opening_credit = 0
        """Agent's side: the dialer's credit, its own from ACCEPT on."""
        self.held_credit = 0
        self.has_data = False
        self.is_accepted = False
        self.is_closed = False
        """This side sent FIN or RESET: nothing more comes from it."""
        self.is_deaf = False
        """This side sent or was sent RESET: no data goes to it any more."""
        self.is_told = False
        """This side was sent RESET: nothing at all goes to it any more."""


class StreamSwitch(Protocol):
    """What a port needs of the switch it belongs to."""

    buffered_bytes: int
    dirty: "list[Port]"

    @property
    def limits(self) -> SwitchLimits:
        """What is borne."""
        ...

    def open(self, dialer: "Port", stream_id: int, opening: Open, now: float) -> None:
        """Join a new stream to an agent, or refuse it."""

    def handle(self, leg: Leg, frame_type: int, payload: memoryview, now: float) -> None:
        """Act on a frame, other than DATA, of a stream that exists."""

    def abort(self, leg: Leg, code: ResetCode) -> None:
        """End a route from the inside."""

    def take_small(self, leg: Leg, now: float) -> bool:
        """Charge a small DATA or CREDIT; False when its stream was reset for it."""
        ...

    def account_of(self, port: "Port", now: float) -> TunnelAccount:
        """Return the account of the tunnel whose agent a port leads to."""
        ...


class Port(LinkProtocol):
    """The relay's end of one link."""

    __slots__ = (
        "_accounted",
        "_expected",
        "_is_congested",
        "_last_stream_id",
        "_switch",
        "held_legs",
        "is_dirty",
        "legs",
        "opens",
        "tunnel_account",
        "tunnel_id",
        "wake",
        "work",
    )

    def __init__(
        self,
        switch: "StreamSwitch",
        hello: Hello,
        *,
        wake: Callable[[], None],
        now: float,
        expected: tuple[Role, str] | None,
        tunnel_id: str = "",
    ) -> None:
        """Stand ready for a peer; `expected` is the role and name its certificate proves."""
        super().__init__(hello, now=now)
        self._switch = switch
        self._expected = expected
        self._last_stream_id = 0
        self._accounted = 0
        self._is_congested = False
        self.tunnel_id = tunnel_id
        """Whose agent this is; empty on a gateway's link."""
        self.wake = wake
        """Called by `Switch.settle` when the outbox has something to send."""
        self.is_dirty = False
        self.legs: dict[int, Leg] = {}
        self.held_legs: dict[int, Leg] = {}
        self.opens: TokenBucket | None = None
        self.tunnel_account: TunnelAccount | None = None
        """Agent's port: what its tunnel has used up; made at the first charge."""
        self.work = 0
        """Units of work that the peer caused and that were not charged yet."""

    @property
    def is_congested(self) -> bool:
        """More than the high mark waits to leave, and not yet less than the low one."""
        return self._is_congested

    def mark_dirty(self) -> None:
        """Have `Switch.settle` look at this port."""
        if not self.is_dirty:
            self.is_dirty = True
            self._switch.dirty.append(self)

    def account(self) -> None:
        """Bring the switch's count of waiting bytes up to date, and the congestion mark."""
        queued = self.outbox.queued_bytes
        self._switch.buffered_bytes += queued - self._accounted
        self._accounted = queued
        if queued > self._switch.limits.link_high_bytes:
            self._is_congested = True
        elif self._is_congested and queued <= self._switch.limits.link_low_bytes:
            self._is_congested = False

    def new_stream_id(self) -> int:
        """Agent's port: the id of the next stream to it.

        Raises:
            RemoteProtocolError: the ids are used up; a new link has new ones.
        """
        if self._last_stream_id >= MAX_STREAM_ID:
            raise RemoteProtocolError("the link has used up its stream ids")
        self._last_stream_id += 1
        return self._last_stream_id

    def reset(self, leg: Leg, code: ResetCode) -> None:
        """Tell this side of a route that it is over; its answer is awaited."""
        if not leg.is_told:
            leg.is_told = leg.is_deaf = True
            self.outbox.put_number(FrameType.RESET, leg.stream_id, code)
            self.mark_dirty()

    # -- frames from the peer

    def _admit(self, peer: Hello) -> None:
        # An agent that says it is a gateway would be believed what only gateways may say.
        if (peer.role, peer.node) != self._expected:
            proved = " ".join(self._expected) if self._expected else "nobody"
            raise RemoteProtocolError(
                f"HELLO of {peer.role} {peer.node}, certificate of {proved}", CloseCode.WRONG_ROLE
            )

    def _control_frame(self, frame: Frame, events: list[ev.Event], now: float) -> None:
        self.work += 1 + len(frame[2]) // BYTES_PER_WORK
        super()._control_frame(frame, events, now)

    def _stream_frame(
        self,
        frame: Frame,
        events: list[ev.Event],  # noqa: ARG002 - frames are switched at once, not told of
        now: float,
    ) -> None:
        frame_type, stream_id, payload = frame
        leg = self.legs.get(stream_id)
        self.work += 1
        if leg is None:
            self._frame_of_unknown_stream(frame, now)
        elif frame_type == DATA:
            # The hot path: every byte of every answer passes here.
            size = len(payload)
            leg.allowance -= size
            other = leg.other
            is_odd = leg.is_closed or leg.is_told or leg.allowance < 0 or size < SMALL_DATA_BYTES
            if is_odd and not self._takes_data(leg, size, now):
                return
            if other is not None and not other.is_deaf:
                leg.has_data = True
                target = other.port
                header = _HEADER.pack(size << 8 | DATA, other.stream_id)
                target.outbox.put_stream(other.stream_id, header, payload)
                if not target.is_dirty:
                    target.mark_dirty()
        else:
            self._switch.handle(leg, frame_type, payload, now)

    def _frame_of_unknown_stream(self, frame: Frame, now: float) -> None:
        frame_type, stream_id, payload = frame
        if frame_type == FrameType.OPEN and stream_id > self._last_stream_id:
            self._last_stream_id = stream_id
            self._switch.open(self, stream_id, decode_control(Open, payload), now)
        elif frame_type == FrameType.OPEN or stream_id > self._last_stream_id:
            name = FrameType(frame_type).name
            raise RemoteProtocolError(f"{name} frame on stream {stream_id}, out of order")
        elif frame_type not in MAY_CROSS_AN_END:
            self._offend(1, now, "a frame on a stream already closed")
        elif self.tunnel_id:
            # Not from a gateway: an agent can choose when a stream ends, and so how often a
            # frame of the link that all users share crosses an end.
            self._offend(CROSSING_COST, now, "a frame on a stream already closed")

    def _takes_data(self, leg: Leg, size: int, now: float) -> bool:
        """Say whether DATA that is not like most is passed on, and charge for it."""
        if leg.is_closed:
            raise RemoteProtocolError(f"DATA after the end of stream {leg.stream_id}")
        if size == 0:
            self.offend(1, now, "an empty DATA")
            return False
        if leg.allowance < 0:
            if not leg.is_told:
                self._switch.abort(leg, ResetCode.FLOW_CONTROL)
            self.offend(20, now, "DATA over its credit")
            return False
        if leg.is_told:  # it may have left before our RESET arrived
            self.work += RESET_FRAME_WORK
            return False
        return self._switch.take_small(leg, now)

    def charge_work(self, now: float) -> float:
        """Agent's port: charge the work since the last time; return for how long to wait."""
        work, self.work = self.work, 0
        return self._switch.account_of(self, now).charge_work(work, now)

    def offend(self, cost: float, now: float, what: str) -> None:
        """Charge the peer for a fault that is borne in small numbers."""
        self._offend(cost, now, what)
