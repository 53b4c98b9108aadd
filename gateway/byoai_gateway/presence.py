"""Which tunnel is online, and by which relay: what the relays say, kept per relay.

Pure. What a relay said is forgotten when the link to it is gone: nobody knows better then. How the
last agent of a tunnel went is remembered, so that a user learns why it cannot be reached.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from byoai_gateway.absence import (
    Absence,
    Departure,
    left,
    no_relay,
    not_connected,
    out_of_reach,
)
from byoai_shared.protocol.control import GoneReason, Presence, PresenceState, Status

MAX_DEPARTURES: Final = 10_000
"""Tunnels whose last agent's going is remembered."""
RETURN_S: Final = 15.0
"""How long agents may take to come back by a relay that was started again."""

_FINAL: Final = frozenset({GoneReason.STOPPED, GoneReason.REVOKED, GoneReason.REPLACED})
"""After these an agent has no link to another relay; after the others it may have one."""


class PresenceMap:
    """The agents of all tunnels, by the relay that announced them."""

    def __init__(
        self, addresses: Sequence[str] = (), now: Callable[[], float] = time.monotonic
    ) -> None:
        self._addresses = tuple(addresses)
        self._now = now
        self._connected: dict[str, float] = {}
        """Since when there is a link to a relay."""
        self._departures: OrderedDict[str, Departure] = OrderedDict()
        self._relays: dict[str, dict[tuple[str, str], Presence]] = {}
        self._tunnels: dict[str, dict[tuple[str, str], Presence]] = {}
        self._statuses: dict[str, Mapping[str, Status]] = {}
        """Made from `_tunnels` when it is asked for: each request does, and it changes seldom."""

    @property
    def tunnel_count(self) -> int:
        """How many tunnels can be reached by some relay."""
        return len(self._tunnels)

    def update(self, relay: str, presence: Presence) -> None:
        """Take note of what a relay announced."""
        agent = (presence.tunnel_id, presence.agent_id)
        if presence.state is PresenceState.GONE:
            self._remove(relay, agent, _reason(presence.gone_reason))
            return
        self._departures.pop(presence.tunnel_id, None)
        self._statuses.pop(presence.tunnel_id, None)
        self._relays.setdefault(relay, {})[agent] = presence
        by_place = self._tunnels.setdefault(presence.tunnel_id, {})
        by_place[relay, presence.agent_id] = presence

    def connected(self, relay: str) -> None:
        """Take note that there is a link to a relay."""
        self._connected[relay] = self._now()

    def forget_relay(self, relay: str) -> None:
        """Drop all that a relay said: the link to it is gone."""
        self._connected.pop(relay, None)
        for agent in tuple(self._relays.get(relay, ())):
            self._remove(relay, agent, None)
        self._relays.pop(relay, None)

    def absence(self, tunnel_id: str) -> Absence:
        """Say why no agent of a tunnel can be reached."""
        if not self._connected:
            return no_relay(len(self._addresses))
        if tunnel_id in self._tunnels:  # by a relay that is being drained, or that thinks otherwise
            return out_of_reach(len(self._connected), len(self._addresses))
        departure = self._departures.get(tunnel_id)
        if departure is not None and departure.reason in _FINAL:
            return left(departure, self._now())
        is_late = self._now() >= max(self._connected.values()) + RETURN_S
        if not is_late or len(self._connected) < len(self._addresses):
            return out_of_reach(len(self._connected), len(self._addresses))
        return not_connected() if departure is None else left(departure, self._now())

    def relays_of(self, tunnel_id: str, agent_id: str = "") -> list[str]:
        """Return the relays by which a tunnel, or one agent of it, is reached, least busy first."""
        places = self._tunnels.get(tunnel_id, {})
        if agent_id:
            return [relay for relay, listed in places if listed == agent_id]
        by_load = sorted(places.items(), key=lambda item: item[1].status.in_flight)
        return list(dict.fromkeys(relay for (relay, _), _ in by_load))

    def of(self, relay: str, tunnel_id: str, agent_id: str) -> Presence | None:
        """What a relay said of an agent last."""
        return self._relays.get(relay, {}).get((tunnel_id, agent_id))

    def agents_of(self, tunnel_id: str) -> Iterator[tuple[str, Presence]]:
        """What each relay says of each agent of a tunnel, as (relay, presence)."""
        for (relay, _), presence in self._tunnels.get(tunnel_id, {}).items():
            yield relay, presence

    def statuses_of(self, tunnel_id: str) -> Mapping[str, Status]:
        """Return what each agent of a tunnel said of itself last, by agent."""
        known = self._statuses.get(tunnel_id)
        if known is None:
            places = self._tunnels.get(tunnel_id)
            if places is None:
                return {}
            known = {agent_id: it.status for (_, agent_id), it in places.items()}
            self._statuses[tunnel_id] = known
        return known

    def _remove(self, relay: str, agent: tuple[str, str], reason: GoneReason | None) -> None:
        self._relays.get(relay, {}).pop(agent, None)
        tunnel_id, agent_id = agent
        self._statuses.pop(tunnel_id, None)
        places = self._tunnels.get(tunnel_id)
        if places is not None:
            places.pop((relay, agent_id), None)
            if not places:
                del self._tunnels[tunnel_id]
                self._departures[tunnel_id] = Departure(self._now(), reason)
                if len(self._departures) > MAX_DEPARTURES:
                    self._departures.popitem(last=False)


def _reason(text: str) -> GoneReason:
    try:
        return GoneReason(text)
    except ValueError:  # an older relay gives none, a newer one another
        return GoneReason.NETWORK_LOST
