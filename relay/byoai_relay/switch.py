"""The blind switch: joins a stream on one link to a stream on another and forwards frames.

Theory of operation. A `Port` is the relay's end of one link. A route is two `Leg`s, one on
the gateway's port and one on the agent's, that know each other. Each leg counts

- `allowance`: what its side may still send. It grows only by credit that the other side
  granted and that the switch passed on; a sender that overruns it is reset.
- `held_credit`: what its side granted but the switch keeps back, because the link towards
  that side is congested (the sooner, the more the process holds). So what a link can make the relay
  hold is bounded by the credit that was passed on before it became congested; what the
  process holds is bounded by shedding the largest stream when all else failed.

A route is forgotten, and its slot free, when both sides have closed their half by FIN or
RESET. Each side answers a RESET with its own, so a thousand quick resets hold a thousand slots
until the agent has seen them.

A gateway's link is shared by all users: what one tenant can cause on it (streams that are reset
before an answer, small frames) is charged to the `TunnelAccount` of that tenant, whose streams
alone are refused or reset when it is used up.

Nothing here waits: no I/O, no clock, no logging. After each batch of input the owner calls
`Switch.settle`, which tells the ports that have something to send.
"""

from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from byoai_relay.accounts import Accounts, TunnelAccount
from byoai_relay.directory import Directory
from byoai_relay.port import RESET_FRAME_WORK, SMALL_FRAME_WORK, Leg, Port, SwitchLimits
from byoai_shared.protocol.budget import TokenBucket
from byoai_shared.protocol.control import Open, clamp_us, encode_control
from byoai_shared.protocol.credit import MAX_WINDOW, SMALL_CREDIT_BYTES
from byoai_shared.protocol.errors import CloseCode, RemoteProtocolError, ResetCode
from byoai_shared.protocol.frames import FIN, FrameType, decode_u32

_HEADER = Struct(">II")
_ONLY_ACCEPTED: Final = frozenset({FrameType.FIN, FrameType.CREDIT})
MAX_STREAMS_PER_LINK: Final = 100_000
OPEN_ADMISSION: Final = 0.8
"""Share of the memory budget above which no new stream is taken."""


@dataclass(slots=True)
class SwitchCounters:
    """What happened since the start, for the metrics."""

    opened: int = 0
    refused: int = 0
    shed: int = 0
    early_resets: int = 0
    throttled: int = 0
    credit_held: int = 0
    resets: dict[ResetCode, int] = field(default_factory=dict[ResetCode, int])


class Switch:
    """All routes of a relay."""

    def __init__(self, limits: SwitchLimits, directory: Directory) -> None:
        self.limits = limits
        self._directory = directory
        self.buffered_bytes = 0
        """Bytes of all frames that wait in outboxes."""
        self.counters = SwitchCounters()
        self.dirty: list[Port] = []
        self.accounts = Accounts(limits.for_accounts())
        self._streams_of: dict[str, int] = {}

    def stream_count(self, tunnel_id: str) -> int:
        """Slots a tunnel's streams hold."""
        return self._streams_of.get(tunnel_id, 0)

    def settle(self) -> None:
        """After a batch of input: count, shed if need be, wake the ports that have output."""
        while self.dirty:
            port = self.dirty.pop()
            port.is_dirty = False
            port.account()
            self._release(port)
            port.wake()
            if self.buffered_bytes > self.limits.memory_bytes:
                self._shed()

    def flushed(self, port: Port) -> None:
        """After bytes left a port: pass on the credit that was held back for it."""
        port.account()
        self._release(port)
        self.settle()

    def _release(self, port: Port) -> None:
        if port.held_legs and not self._holds_back(port):
            held, port.held_legs = port.held_legs, {}
            for leg in held.values():
                credit, leg.held_credit = leg.held_credit, 0
                self._pass_credit(leg, credit)

    def handle(self, leg: Leg, frame_type: int, payload: memoryview, now: float) -> None:
        """Act on a frame, other than DATA, of a stream that exists."""
        if leg.port.tunnel_id and not leg.is_accepted and frame_type in _ONLY_ACCEPTED:
            name = FrameType(frame_type).name
            raise RemoteProtocolError(f"{name} frame on stream {leg.stream_id} before ACCEPT")
        match frame_type:
            case FrameType.CREDIT:
                self._credit(leg, decode_u32(payload), now)
            case FrameType.FIN:
                self._finish(leg, len(payload))
            case FrameType.RESET:
                self._reset(leg, decode_u32(payload), now)
            case FrameType.ACCEPT:
                self._accept(leg, decode_u32(payload))
            case _:
                raise RemoteProtocolError(f"second OPEN of stream {leg.stream_id}")

    def open(self, dialer: Port, stream_id: int, opening: Open, now: float) -> None:
        """Join a new stream of a gateway to the agent that it names, or one of the tunnel's."""
        if len(dialer.legs) >= MAX_STREAMS_PER_LINK:
            # Refused ones stay until their RESET is answered: a peer may not leave it at that.
            raise RemoteProtocolError("too many streams on this link", CloseCode.ABUSE)
        leg = dialer.legs[stream_id] = Leg(dialer, stream_id)
        agent = self._directory.choose(opening.tunnel_id, opening.agent_id)
        refusal = self._refusal(agent, opening, now)
        if agent is None or refusal is not None:
            self.counters.refused += 1
            dialer.reset(leg, refusal or ResetCode.TUNNEL_OFFLINE)
            return
        tunnel_id = opening.tunnel_id
        far = Leg(agent, agent.new_stream_id())
        leg.other, far.other = far, leg
        far.opening_credit = opening.credit
        agent.legs[far.stream_id] = far
        self._streams_of[tunnel_id] = self._streams_of.get(tunnel_id, 0) + 1
        self.counters.opened += 1
        announced = Open(
            credit=opening.credit,
            dialer=dialer.peer.node if dialer.peer else "",
            round_trip_us=clamp_us(dialer.round_trip.base_s),
        )
        agent.outbox.put_urgent(FrameType.OPEN, far.stream_id, encode_control(announced))
        agent.mark_dirty()

    def abort(self, leg: Leg, code: ResetCode) -> None:
        """End a route from the inside: both sides are told."""
        self._count_reset(code)
        leg.port.reset(leg, code)
        if leg.other is not None:
            leg.other.port.reset(leg.other, code)

    def remove(self, port: Port, code: ResetCode = ResetCode.LINK_LOST) -> None:
        """Take a link out: the other sides of its streams are told, at once."""
        legs, port.legs = port.legs, {}
        port.held_legs.clear()
        port.outbox.clear()
        for leg in legs.values():
            leg.is_closed = leg.is_deaf = leg.is_told = True
            if leg.other is not None and not leg.other.is_told:
                leg.other.port.reset(leg.other, code)
                self._count_reset(code)
            self._forget_if_closed(leg)
        port.account()
        self.settle()

    def abort_all(self, port: Port, code: ResetCode) -> None:
        """Reset every stream of a link that is still there to hear it."""
        for leg in tuple(port.legs.values()):
            self.abort(leg, code)
        self.settle()

    def account_of(self, port: Port, now: float) -> TunnelAccount:
        """Return the account of the tunnel whose agent a port leads to."""
        if port.tunnel_account is None:
            port.tunnel_account = self.accounts.of(port.tunnel_id, now)
        return port.tunnel_account

    def take_small(self, leg: Leg, now: float) -> bool:
        """Charge a small DATA or CREDIT; False when its stream was reset for it."""
        if leg.port.tunnel_id:
            leg.port.work += SMALL_FRAME_WORK  # the link is slowed when that is too much
            return True
        other = leg.other
        if other is None:
            return False
        wait_s = self.account_of(other.port, now).charge_work(SMALL_FRAME_WORK, now)
        if wait_s <= 0:
            return True
        self.counters.throttled += 1
        self.abort(leg, ResetCode.THROTTLED)
        return False

    # -- one kind of frame each

    def _refusal(self, agent: Port | None, opening: Open, now: float) -> ResetCode | None:
        if agent is None:
            return ResetCode.TUNNEL_OFFLINE
        if self._is_full():
            # Or a few stalled readers could keep everyone else out for as long as they like.
            self._shed()
            return ResetCode.NOT_PROCESSED
        if opening.credit > MAX_WINDOW:
            return ResetCode.FLOW_CONTROL
        account = self.accounts.known(opening.tunnel_id)
        if account is not None and account.refuses_streams(now):
            self.counters.throttled += 1
            return ResetCode.THROTTLED
        limit = min(self.limits.streams_per_tunnel, agent.peer.max_streams if agent.peer else 0)
        if self.stream_count(opening.tunnel_id) >= limit:
            return ResetCode.LIMIT_EXCEEDED
        if agent.opens is None:
            agent.opens = TokenBucket(self.limits.opens_burst, self.limits.opens_per_s, now=now)
        return None if agent.opens.spend(1, now) else ResetCode.NOT_PROCESSED

    def _accept(self, leg: Leg, credit: int) -> None:
        other = leg.other
        if leg.is_accepted or other is None:
            raise RemoteProtocolError(f"second ACCEPT of stream {leg.stream_id}")
        leg.is_accepted = True
        leg.allowance += leg.opening_credit
        leg.opening_credit = 0
        if other.is_deaf:
            return
        if credit > MAX_WINDOW:
            self.abort(leg, ResetCode.FLOW_CONTROL)
            return
        other.allowance = credit
        other.port.outbox.put_number(FrameType.ACCEPT, other.stream_id, credit)
        other.port.mark_dirty()

    def _credit(self, leg: Leg, credit: int, now: float) -> None:
        other = leg.other
        if other is None or other.is_deaf or leg.is_deaf:
            leg.port.work += RESET_FRAME_WORK
            return
        if 0 < credit < SMALL_CREDIT_BYTES and not self.take_small(leg, now):
            return
        granted = other.opening_credit + other.allowance + leg.held_credit
        if credit == 0 or granted + credit > MAX_WINDOW:
            self.abort(leg, ResetCode.FLOW_CONTROL)
            leg.port.offend(20, now, "a zero or overflowing CREDIT")
        elif self._holds_back(leg.port):
            leg.held_credit += credit
            leg.port.held_legs[leg.stream_id] = leg
            self.counters.credit_held += 1
        else:
            self._pass_credit(leg, credit)

    def _pass_credit(self, leg: Leg, credit: int) -> None:
        other = leg.other
        if other is None or other.is_closed or other.is_deaf:
            return
        other.allowance += credit
        other.port.outbox.put_number(FrameType.CREDIT, other.stream_id, credit)
        other.port.mark_dirty()

    def _finish(self, leg: Leg, size: int) -> None:
        if size:
            raise RemoteProtocolError(f"FIN of {size} bytes")
        if leg.is_closed:
            raise RemoteProtocolError(f"second end of stream {leg.stream_id}")
        leg.is_closed = True
        other = leg.other
        if other is not None and not other.is_told:
            header = _HEADER.pack(FIN, other.stream_id)
            other.port.outbox.put_stream(other.stream_id, header, b"")
            other.port.mark_dirty()
        self._forget_if_closed(leg)

    def _reset(self, leg: Leg, number: int, now: float) -> None:
        if leg.is_closed and leg.is_deaf and not leg.is_told:
            raise RemoteProtocolError(f"second end of stream {leg.stream_id}")
        leg.is_closed = leg.is_deaf = True
        other = leg.other
        if leg.port.outbox.drop(leg.stream_id) and other is not None and other.is_closed:
            # The other side's FIN was among them, and this side still waits for an end.
            leg.port.reset(leg, ResetCode.CANCELLED)
        leg.port.mark_dirty()
        if other is not None and not other.is_told:
            is_answer = other.is_deaf
            code = ResetCode(number)
            other.port.reset(other, code)
            if not is_answer:
                self._count_reset(code)
                if not leg.port.tunnel_id and not other.has_data:
                    self.counters.early_resets += 1
                    self.account_of(other.port, now).charge_early_reset(now)
        self._forget_if_closed(leg)

    # -- bookkeeping

    def _forget_if_closed(self, leg: Leg) -> None:
        other = leg.other
        if other is None:
            leg.port.legs.pop(leg.stream_id, None)
        elif leg.is_closed and other.is_closed:
            for side in (leg, other):
                side.port.legs.pop(side.stream_id, None)
                side.port.held_legs.pop(side.stream_id, None)
            leg.other = other.other = None
            self._release_slot(leg.port.tunnel_id or other.port.tunnel_id)

    def _release_slot(self, tunnel_id: str) -> None:
        left = self._streams_of.get(tunnel_id, 0) - 1
        if left > 0:
            self._streams_of[tunnel_id] = left
        else:
            self._streams_of.pop(tunnel_id, None)

    def _holds_back(self, port: Port) -> bool:
        """Whether credit that this link grants must wait: its own way out is not clear.

        A link that takes its bytes is never slowed for those of others, even when the process
        holds too much; the process is short of memory because of links that do not.
        """
        if port.is_congested:
            return True
        return self._is_full() and port.outbox.queued_bytes > self.limits.link_low_bytes

    def _is_full(self) -> bool:
        return self.buffered_bytes > self.limits.memory_bytes * OPEN_ADMISSION

    def _shed(self) -> None:
        """Give up the stream with the most bytes waiting, on whichever link that is."""
        worst: tuple[int, int, Port] | None = None
        for port in self._directory.all_ports():
            largest = port.outbox.largest_stream()
            if largest is not None and (worst is None or largest[1] > worst[0]):
                worst = (largest[1], largest[0], port)
        if worst is None:
            return
        _, stream_id, port = worst
        self.counters.shed += 1
        leg = port.legs.get(stream_id)
        if leg is not None:
            self.abort(leg, ResetCode.OVERLOADED)
        else:
            # Both sides have closed it, and only its last bytes are still on their way.
            self._count_reset(ResetCode.OVERLOADED)
            port.outbox.put_number(FrameType.RESET, stream_id, ResetCode.OVERLOADED)
            port.mark_dirty()
        port.account()

    def _count_reset(self, code: ResetCode) -> None:
        self.counters.resets[code] = self.counters.resets.get(code, 0) + 1
