"""Which tunnel is online, and by which relay: what the relays say, kept per relay.

Pure. What a relay said is forgotten when the link to it is gone: nobody knows better then.
"""

from collections.abc import Iterator

from byoai_shared.protocol.control import Presence, PresenceState


class PresenceMap:
    """The agents of all tunnels, by the relay that announced them."""

    def __init__(self) -> None:
        self._relays: dict[str, dict[tuple[str, str], Presence]] = {}
        self._tunnels: dict[str, dict[tuple[str, str], Presence]] = {}

    @property
    def tunnel_count(self) -> int:
        """How many tunnels can be reached by some relay."""
        return len(self._tunnels)

    def update(self, relay: str, presence: Presence) -> None:
        """Take note of what a relay announced."""
        agent = (presence.tunnel_id, presence.agent_id)
        if presence.state is PresenceState.GONE:
            self._remove(relay, agent)
            return
        self._relays.setdefault(relay, {})[agent] = presence
        by_place = self._tunnels.setdefault(presence.tunnel_id, {})
        by_place[relay, presence.agent_id] = presence

    def forget_relay(self, relay: str) -> None:
        """Drop all that a relay said."""
        for agent in tuple(self._relays.get(relay, ())):
            self._remove(relay, agent)
        self._relays.pop(relay, None)

    def relays_of(self, tunnel_id: str) -> list[str]:
        """The relays by which a tunnel can be reached, the least busy first."""
        places = self._tunnels.get(tunnel_id, {})
        by_load = sorted(places.items(), key=lambda item: item[1].status.in_flight)
        return list(dict.fromkeys(relay for (relay, _), _ in by_load))

    def of(self, relay: str, tunnel_id: str, agent_id: str) -> Presence | None:
        """What a relay said of an agent last."""
        return self._relays.get(relay, {}).get((tunnel_id, agent_id))

    def agents_of(self, tunnel_id: str) -> Iterator[tuple[str, Presence]]:
        """What each relay says of each agent of a tunnel, as (relay, presence)."""
        for (relay, _), presence in self._tunnels.get(tunnel_id, {}).items():
            yield relay, presence

    def _remove(self, relay: str, agent: tuple[str, str]) -> None:
        self._relays.get(relay, {}).pop(agent, None)
        tunnel_id, agent_id = agent
        places = self._tunnels.get(tunnel_id)
        if places is not None:
            places.pop((relay, agent_id), None)
            if not places:
                del self._tunnels[tunnel_id]
