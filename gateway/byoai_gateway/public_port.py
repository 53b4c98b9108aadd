"""What the public port bears of connections and of slow clients, from the settings."""

from byoai_gateway.config import GatewayConfig, LimitsSection
from byoai_shared.connection_room import ConnectionRoom, RoomLimits
from byoai_shared.http1.head import HttpLimits
from byoai_shared.link.accept import ConnectionRate
from byoai_shared.listener import ConnectionGuard
from byoai_shared.logs import get_logger
from byoai_shared.open_files import connections_that_fit, open_files_limit

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
        in_all=connections_that_fit(limits.connections, open_files_limit(), log),
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
