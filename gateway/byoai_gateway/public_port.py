"""What the public port bears of connections and of slow clients, from the settings."""

from typing import Final

from byoai_gateway.config import GatewayConfig, LimitsSection
from byoai_shared.connection_room import ConnectionRoom, RoomLimits
from byoai_shared.http1.head import HttpLimits
from byoai_shared.link.accept import ConnectionRate
from byoai_shared.listener import ConnectionGuard
from byoai_shared.logs import get_logger
from byoai_shared.open_files import open_files_limit

_OTHER_FILES: Final = 128
"""Descriptors for the database, the relays, the listeners and what is just being closed."""
_FEWEST: Final = 64

log = get_logger("gateway")


def public_guard(limits: LimitsSection) -> ConnectionGuard:
    """Make the guard of the public port, with no more room than there are descriptors."""
    proxies = limits.trusted_proxies
    rate = ConnectionRate(
        per_s=limits.connections_per_second,
        burst=limits.connections_burst,
        per_address_per_s=limits.address_connections_per_second,
        per_address_burst=limits.address_connections_burst,
        proxies=proxies,
    )
    room = RoomLimits(
        in_all=_room(limits.connections, open_files_limit()),
        waiting_per_address=limits.address_connections,
        waiting_per_proxy=limits.proxy_connections,
    )
    return ConnectionGuard(rate, ConnectionRoom(room, proxies))


def public_http_limits(config: GatewayConfig) -> HttpLimits:
    """Return what a client of the public port may send, and how slowly."""
    listen = config.listen
    return HttpLimits(
        max_body_bytes=config.limits.max_body_bytes,
        head_timeout_s=listen.head_timeout_s,
        body_timeout_s=listen.body_timeout_s,
        keep_alive_timeout_s=listen.keep_alive_s,
        stall_timeout_s=config.router.client_stall_s,
    )


def _room(wanted: int, files: int | None) -> int:
    """Fit the connections to the limit of open files: each may need one to a provider as well."""
    if files is None:
        return wanted
    fitting = max(_FEWEST, (files - _OTHER_FILES) // 2)
    if fitting < wanted:
        log.warning(
            "connections.limited",
            setting="limits.connections",
            count=fitting,
            reason=f"this process may open {files} files",
            next="raise its limit of open files (ulimit -n, LimitNOFILE), or lower the setting",
        )
    return min(wanted, fitting)
