"""The data path put together: links to the relays, ways to the providers, the public door.

Everything on it lives as long as `open_data_path` is entered, and is ended by it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from byoai_gateway.availability import Availability
from byoai_gateway.choosing import Choices
from byoai_gateway.config_warnings import config_warnings
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.front import Front
from byoai_gateway.public_port import public_guard, public_http_limits
from byoai_gateway.readiness import Readiness
from byoai_gateway.relay_links import GatewayName, RelayLinks
from byoai_gateway.router.keeping import Budget
from byoai_gateway.router.router import Router
from byoai_gateway.routes import RegistryRoutes
from byoai_gateway.serving import Serving
from byoai_gateway.tally import RequestTally
from byoai_gateway.ways import Ways, open_ways
from byoai_shared.http1.head import HttpLimits
from byoai_shared.listener import ConnectionGuard
from byoai_shared.protocol.control import Presence, PresenceState


@dataclass(frozen=True, slots=True)
class DataPath:
    """What serves `/v1` and knows who is online."""

    links: RelayLinks
    ways: Ways
    choices: Choices
    serving: Serving
    requests: RequestTally
    readiness: Readiness
    http: HttpLimits
    availability: Availability
    """Of the database."""
    guard: ConnectionGuard
    """Of the public port."""

    def front(self, web: Callable[[], asyncio.Protocol]) -> Front:
        """Make the public door; `web` makes the protocol of what is not `/v1`."""
        return Front(self.serving, web, self.http, self.requests, self.guard)


@asynccontextmanager
async def open_data_path(control: ControlPlane) -> AsyncGenerator[DataPath]:
    """Dial the relays and keep the links up while entered."""
    own = control.own_identity
    links = RelayLinks(
        [relay.gateway_address for relay in control.config.relays],
        GatewayName(own.identity.name, own.dialing_context, lambda: own.life.expires_at),
        control.trust,
        control.services,
    )
    routes = RegistryRoutes(
        control.lookup, links.presence, stale_s=control.config.database.tunnels_stale_s
    )

    def announced(presence: Presence) -> None:
        if presence.state is PresenceState.ONLINE:
            routes.forget_pins(presence.tunnel_id)

    links.on_presence = announced
    async with asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(links.keep())
        try:
            async with open_ways(control, links, routes) as ways:
                choices = Choices(control.config, control.preferences, ways)
                serving = _serving(control, choices)
                try:
                    yield DataPath(
                        links,
                        ways,
                        choices,
                        serving,
                        RequestTally(),
                        _readiness(control, links),
                        public_http_limits(control.config),
                        control.database.availability,
                        public_guard(control.config.limits),
                    )
                finally:
                    await serving.router.settle()
        finally:
            await routes.close()
            keeper.cancel()


def _readiness(control: ControlPlane, links: RelayLinks) -> Readiness:
    of_settings = tuple(map(str, config_warnings(control.config)))
    jwks = control.jwks

    def warnings() -> tuple[str, ...]:
        of_name = control.name_claim.warning
        of_clocks = links.clocks.warnings()
        of_keys = () if jwks is None else jwks.warnings()
        return (*of_settings, *filter(None, (of_name,)), *of_clocks, *of_keys)

    conditions = (
        (control.limits.why_not,) if jwks is None else (control.limits.why_not, jwks.why_not)
    )
    return Readiness(
        control.database,
        links,
        conditions,
        warnings,
        rules=control.config.database,
        degradations=(control.limits.shared.degraded,),
    )


def _serving(control: ControlPlane, choices: Choices) -> Serving:
    config = control.config
    return Serving(
        users=control.users,
        limits=control.limits,
        choices=choices,
        router=Router(config.router),
        usage=control.usage,
        budget=Budget(config.router.buffered_bytes),
        clock=control.clock,
    )
