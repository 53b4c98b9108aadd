"""What gateways hear of agents. Each report is at the expense of the agent's tunnel."""

from collections.abc import Callable
from typing import Final

from byoai_relay.directory import MAX_TUNNEL_STATUS_BYTES, AgentEntry, Directory
from byoai_relay.port import BYTES_PER_WORK, Port
from byoai_relay.relay_link import RelayLink
from byoai_shared.logs import get_logger
from byoai_shared.protocol.control import GoneReason, PresenceState, encode_control
from byoai_shared.protocol.frames import FrameType

STATUS_CUT: Final = f"the agents of this tunnel report more than {MAX_TUNNEL_STATUS_BYTES} bytes"

log = get_logger("relay")


class PresenceReports:
    """Reports the agents of a directory to the gateways in it."""

    def __init__(self, directory: Directory, settle: Callable[[], None]) -> None:
        self._directory = directory
        self._settle = settle

    def note_status(self, relay_link: RelayLink, entry: AgentEntry) -> None:
        """Take over what an agent said of itself, as much of it as gateways are to hear."""
        if self._directory.set_status(entry, relay_link.status) or relay_link.has_status_cut:
            return
        relay_link.has_status_cut = True
        log.warning(
            "agent.status_cut",
            tunnel_id=entry.tunnel_id,
            node=entry.agent_id,
            reason=STATUS_CUT,
            next="the last models of its list are left out for gateways",
        )

    def list_agents(self, gateway: Port) -> None:
        """Report all agents to a gateway that has just come."""
        for entry in self._directory.agents():
            self._tell(gateway, entry, PresenceState.ONLINE)

    def delist(self, port: Port, reason: GoneReason) -> None:
        """Send an agent no more streams, and report it gone, if it is listed."""
        entry = self._directory.delist(port)
        if entry is not None:
            self.announce_gone(entry, reason)

    def announce_gone(self, entry: AgentEntry, reason: GoneReason) -> None:
        """Report to all gateways that an agent is gone."""
        entry.gone_reason = reason
        self.announce(entry, PresenceState.GONE)

    def announce(self, entry: AgentEntry, state: PresenceState) -> None:
        """Report an agent to all gateways."""
        for gateway in self._directory.gateways():
            entry.port.work += self._tell(gateway, entry, state) // BYTES_PER_WORK
        self._settle()

    def _tell(self, gateway: Port, entry: AgentEntry, state: PresenceState) -> int:
        """Report an agent to one gateway; return the size of the report."""
        key = (entry.tunnel_id, entry.agent_id)
        if state is PresenceState.CHANGED and gateway.outbox.has_latest(key):
            # What it replaces may be the report that the agent came.
            state = PresenceState.ONLINE
        presence = encode_control(entry.presence(state))
        gateway.outbox.put_latest(FrameType.PRESENCE, key, presence)
        gateway.mark_dirty()
        return len(presence)
