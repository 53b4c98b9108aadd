"""What each of the relay's two listeners bears of connections and of links, from the settings."""

from dataclasses import dataclass

from byoai_relay.config import Limits
from byoai_shared.connection_room import ConnectionRoom, RoomLimits
from byoai_shared.link.accept import ConnectionRate
from byoai_shared.listener import ConnectionGuard
from byoai_shared.logs import get_logger
from byoai_shared.open_files import connections_that_fit, open_files_limit

log = get_logger("relay")


@dataclass(frozen=True, slots=True)
class LinkGuards:
    """The guards of the two listeners.

    Each has its own: a flood of connections to the agents' listener, which is open to the
    internet, must not keep the gateways out.
    """

    agents: ConnectionGuard
    gateways: ConnectionGuard


def link_guards(limits: Limits) -> LinkGuards:
    """Make the guards, with no more room than there are descriptors."""
    room = RoomLimits(
        in_all=connections_that_fit(limits.connections, open_files_limit(), log),
        waiting_per_address=limits.address_connections,
        waiting_per_proxy=limits.proxy_connections,
        established_per_address=limits.address_links,
    )
    return LinkGuards(_guard(limits, room), _guard(limits, room))


def _guard(limits: Limits, room: RoomLimits) -> ConnectionGuard:
    rate = ConnectionRate(
        per_s=limits.connections_per_s,
        burst=limits.connections_burst,
        per_address_per_s=limits.address_connections_per_s,
        per_address_burst=limits.address_connections_burst,
        proxies=limits.trusted_proxies,
    )
    return ConnectionGuard(rate, ConnectionRoom(room, limits.trusted_proxies))
