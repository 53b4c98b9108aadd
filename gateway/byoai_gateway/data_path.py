"""The data path put together: links to the relays, pinned connections, the public door.

Everything on it lives as long as `open_data_path` is entered, and is ended by it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.front import Front
from byoai_gateway.readiness import Readiness
from byoai_gateway.relay_links import GatewayName, RelayLinks
from byoai_gateway.routes import RegistryRoutes
from byoai_gateway.self_hosted import SelfHosted
from byoai_gateway.tally import RequestTally
from byoai_gateway.tunnel_client import TunnelClient
from byoai_shared.http1.head import HttpLimits
from byoai_shared.protocol.control import Presence, PresenceState
from byoai_shared.tls import client_context


@dataclass(frozen=True, slots=True)
class DataPath:
    """What serves `/v1` and knows who is online."""

    links: RelayLinks
    tunnels: TunnelClient
    self_hosted: SelfHosted
    requests: RequestTally
    readiness: Readiness
    _control: ControlPlane

    def front(self, web: Callable[[], asyncio.Protocol]) -> Front:
        """Make the public door; `web` makes the protocol of what is not `/v1`."""
        limits = HttpLimits(max_body_bytes=self._control.config.limits.max_body_bytes)
        return Front(self._control.users, self.self_hosted, web, limits, self.requests)


@asynccontextmanager
async def open_data_path(control: ControlPlane) -> AsyncGenerator[DataPath]:
    """Dial the relays and keep the links up while entered."""
    own = control.own_identity
    links = RelayLinks(
        [relay.gateway_address for relay in control.config.relays],
        GatewayName(
            own.identity.name,
            lambda: client_context(server_ca_pem=own.services_ca_pem, credentials=own.credentials),
        ),
        control.trust,
    )
    routes = RegistryRoutes(control.registry, links.presence)
    tunnels = TunnelClient(links, routes, lambda: own.credentials)

    def announced(presence: Presence) -> None:
        if presence.state is PresenceState.ONLINE:
            routes.forget_pins(presence.tunnel_id)

    links.on_presence = announced
    async with asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(links.keep())
        try:
            yield DataPath(
                links,
                tunnels,
                SelfHosted(routes, tunnels),
                RequestTally(),
                Readiness(control.database, links),
                control,
            )
        finally:
            tunnels.close()
            keeper.cancel()
