"""Which agents are here: who serves which tunnel, what they last said, who must be told.

An agent is listed from the moment its token was accepted until its link ends, it says GOAWAY,
or a newer link of the same agent takes its place. Pure: the caller sends what is decided.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from byoai_relay.port import Port
from byoai_shared.protocol.control import (
    Presence,
    PresenceState,
    Status,
    clamp_us,
    encode_control,
    fit_status,
)

MAX_TUNNEL_STATUS_BYTES: Final = 128 * 1024
"""All that the agents of one tunnel may report of themselves, as it waits on a gateway's link."""
MIN_STATUS_BYTES: Final = 1024
"""What an agent may report also when others of its tunnel have used up the rest."""


@dataclass(slots=True)
class AgentEntry:
    """A listed agent and the link it is reached by."""

    port: Port
    tunnel_id: str
    agent_id: str
    instance: str
    epoch: int
    accepted_until: int
    """The end of its token, Unix seconds."""
    status: Status
    """What gateways learn of it; see `Directory.set_status`."""
    status_bytes: int = 0
    token_refusal: str = ""
    """Why its newest token was refused, when its link goes on with an older one."""
    gone_reason: str = ""
    """Why it went, once it has."""

    def presence(self, state: PresenceState) -> Presence:
        """Say what gateways are told of it."""
        round_trip_s = self.port.round_trip_s
        return Presence(
            tunnel_id=self.tunnel_id,
            agent_id=self.agent_id,
            instance=self.instance,
            epoch=self.epoch,
            state=state,
            status=Status() if state is PresenceState.GONE else self.status,
            round_trip_us=None if round_trip_s is None else clamp_us(round_trip_s),
            accepted_until=self.accepted_until,
            token_refusal=self.token_refusal,
            gone_reason=self.gone_reason,
        )


class Directory:
    """The ports of a relay, and the agents among them."""

    def __init__(self) -> None:
        self._ports: set[Port] = set()
        self._gateways: set[Port] = set()
        """Those of gateways: a few beside thousands of agents, and each report goes to all."""
        self._by_tunnel: dict[str, dict[str, AgentEntry]] = {}
        self._by_port: dict[Port, AgentEntry] = {}

    def all_ports(self) -> Iterable[Port]:
        """Every link, agents' and gateways'."""
        return self._ports

    def gateways(self) -> Iterator[Port]:
        """The gateways' links that have introduced themselves."""
        return (port for port in self._gateways if port.peer is not None)

    def agents(self) -> Iterable[AgentEntry]:
        """Every listed agent."""
        return self._by_port.values()

    def add_port(self, port: Port) -> None:
        """Take note of a new link."""
        self._ports.add(port)
        if not port.tunnel_id:
            self._gateways.add(port)

    def remove_port(self, port: Port) -> AgentEntry | None:
        """Forget a link; the entry of its agent if that was listed."""
        self._ports.discard(port)
        self._gateways.discard(port)
        return self.delist(port)

    def entry(self, port: Port) -> AgentEntry | None:
        """The agent listed for a link."""
        return self._by_port.get(port)

    def current(self, tunnel_id: str, agent_id: str) -> AgentEntry | None:
        """The listed entry of an agent, whichever link it came by."""
        return self._by_tunnel.get(tunnel_id, {}).get(agent_id)

    def set_status(self, entry: AgentEntry, status: Status) -> bool:
        """Note what an agent reported, within what its tunnel may report; False if that is less."""
        others = sum(
            other.status_bytes
            for other in self._by_tunnel.get(entry.tunnel_id, {}).values()
            if other is not entry
        )
        limit = max(MIN_STATUS_BYTES, MAX_TUNNEL_STATUS_BYTES - others)
        entry.status = fit_status(status, limit)
        entry.status_bytes = len(encode_control(entry.status))
        return entry.status is status

    def enlist(self, entry: AgentEntry) -> AgentEntry | None:
        """List an agent; the entry that it replaced, if there was one on another link."""
        replaced = self.current(entry.tunnel_id, entry.agent_id)
        if replaced is not None:
            del self._by_port[replaced.port]
        self._by_tunnel.setdefault(entry.tunnel_id, {})[entry.agent_id] = entry
        self._by_port[entry.port] = entry
        return replaced if replaced is not None and replaced.port is not entry.port else None

    def delist(self, port: Port) -> AgentEntry | None:
        """Send no more streams by this link; the entry it had."""
        entry = self._by_port.pop(port, None)
        if entry is not None:
            agents = self._by_tunnel[entry.tunnel_id]
            del agents[entry.agent_id]
            if not agents:
                del self._by_tunnel[entry.tunnel_id]
        return entry

    def choose(self, tunnel_id: str, agent_id: str = "") -> Port | None:
        """Return the named agent of a tunnel, or the least busy one where none is named."""
        if agent_id:
            named = self.current(tunnel_id, agent_id)
            return None if named is None else named.port
        agents = self._by_tunnel.get(tunnel_id)
        if not agents:
            return None
        if len(agents) == 1:
            return next(iter(agents.values())).port
        return min(agents.values(), key=lambda entry: len(entry.port.legs)).port
