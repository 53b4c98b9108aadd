"""Gateways, a relay's switch and agents, joined in memory: no sockets, no clock.

Each end is a real `Endpoint`; what is carried, and when, is for the test to say.
"""

from collections import defaultdict
from collections.abc import Iterator

from byoai_relay.directory import AgentEntry, Directory
from byoai_relay.port import Port, SwitchLimits
from byoai_relay.switch import Switch
from byoai_shared.protocol import events as ev
from byoai_shared.protocol.control import Role, Status
from byoai_shared.protocol.endpoint import Endpoint
from byoai_shared.protocol.errors import ResetCode
from byoai_shared.protocol.frames import MAX_MESSAGE_BYTES
from support.transcript import hello


class End:
    """An end of a link, the relay's port for it, and what its application saw."""

    def __init__(self, endpoint: Endpoint, port: Port) -> None:
        self.endpoint = endpoint
        self.port = port
        self.is_up = True
        self.takes_streams = True
        self.reads = True
        self.received: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.unread: defaultdict[int, int] = defaultdict(int)
        self.opened: list[int] = []
        self.accepted: list[int] = []
        self.finished: list[int] = []
        self.aborted: dict[int, ResetCode] = {}

    def hear(self, message: bytes, now: float) -> None:
        """Act on one message as an application would."""
        for event in self.endpoint.receive(message, now):
            match event:
                case ev.StreamOpened(stream_id):
                    self.opened.append(stream_id)
                    if self.takes_streams:
                        self.endpoint.accept(stream_id)
                case ev.StreamAccepted(stream_id):
                    self.accepted.append(stream_id)
                case ev.DataReceived(stream_id, payload):
                    self.received[stream_id] += payload
                    self.unread[stream_id] += len(payload)
                    if self.reads:
                        self.read(stream_id, len(payload), now)
                case ev.StreamFinished(stream_id):
                    self.finished.append(stream_id)
                case ev.StreamAborted(stream_id, code):
                    assert stream_id not in self.aborted
                    self.aborted[stream_id] = code
                case _:
                    pass

    def read(self, stream_id: int, size: int, now: float) -> None:
        """Use up received bytes."""
        size = min(size, self.unread[stream_id])
        self.unread[stream_id] -= size
        self.endpoint.consume(stream_id, size, now)


class Switchboard:
    """A switch and the ends that are linked to it."""

    def __init__(self, limits: SwitchLimits | None = None) -> None:
        self.now = 0.0
        self.directory = Directory()
        self.switch = Switch(limits or SwitchLimits(), self.directory)
        self.ends: list[End] = []

    def gateway(self, name: str = "g", *, initial_credit: int = 256 * 1024) -> End:
        """Link a gateway."""
        return self._link(Role.GATEWAY, name, initial_credit, 64, "")

    def agent(
        self,
        tunnel_id: str = "t",
        name: str = "a",
        *,
        initial_credit: int = 256 * 1024,
        max_streams: int = 64,
    ) -> End:
        """Link an agent and list it, as if its token had been accepted."""
        end = self._link(Role.AGENT, name, initial_credit, max_streams, tunnel_id)
        self.directory.enlist(
            AgentEntry(
                port=end.port,
                tunnel_id=tunnel_id,
                agent_id=name,
                instance="run-1",
                epoch=0,
                accepted_until=0,
                status=Status(),
            )
        )
        return end

    def _link(
        self, role: Role, name: str, initial_credit: int, max_streams: int, tunnel_id: str
    ) -> End:
        port = Port(
            self.switch,
            hello(Role.RELAY),
            wake=lambda: None,
            now=self.now,
            expected=(role, name),
            tunnel_id=tunnel_id,
        )
        ours = hello(role, name, initial_credit=initial_credit, max_streams=max_streams)
        end = End(Endpoint(ours, now=self.now), port)
        self.directory.add_port(port)
        self.ends.append(end)
        self.carry_in(end)
        self.carry_out(end)
        self.carry_in(end)
        self.carry_out(end)
        return end

    # -- one message at a time

    def carry_in(self, end: End, limit: int = MAX_MESSAGE_BYTES) -> bool:
        """Carry one message from an end to the relay; whether there was one."""
        message = end.endpoint.outbox.take(limit) if end.is_up else b""
        return bool(message) and self.say(end, message)

    def say(self, end: End, message: bytes) -> bool:
        """Have the relay hear a message of an end, whoever made it."""
        end.port.receive(message, self.now)
        if end.port.outbox:
            end.port.mark_dirty()
        self.switch.settle()
        if end.port.failure is not None:
            self.cut(end)
        return True

    def carry_out(self, end: End, limit: int = MAX_MESSAGE_BYTES) -> bool:
        """Carry one message from the relay to an end; whether there was one."""
        message = end.port.outbox.take(limit) if end.is_up else b""
        if not message:
            return False
        self.switch.flushed(end.port)
        end.hear(message, self.now)
        return True

    def cut(self, end: End) -> None:
        """Lose a link."""
        if end.is_up:
            end.is_up = False
            self.directory.remove_port(end.port)
            self.switch.remove(end.port)

    def carry_all(self, *, but: End | None = None) -> None:
        """Carry messages until none waits, except to `but`, which takes none."""
        moved = True
        while moved:
            moved = False
            for end in self.ends:
                moved |= self.carry_in(end)
                moved |= end is not but and self.carry_out(end)

    def live(self) -> Iterator[End]:
        """The ends whose links are up."""
        return (end for end in self.ends if end.is_up)

    def buffered_in_truth(self) -> int:
        """Count the waiting bytes frame by frame."""
        return sum(
            sum(len(frame) for queue in end.port.outbox._urgent for frame in queue)
            + 12 * len(end.port.outbox._credits)
            + sum(
                len(header) + len(payload)
                for queue in end.port.outbox._streams.values()
                for header, payload in queue
            )
            for end in self.ends
        )
