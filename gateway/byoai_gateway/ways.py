"""The ways to providers, put together: tunnels, the internet, and OpenRouter's own calls.

Everything here lives as long as `open_ways` is entered, and is ended by it. Who may go which way
is decided by whoever holds them.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from byoai_gateway.asked_models import AskedModels
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.presence import PresenceMap
from byoai_gateway.providers.compatible import DefaultProvider
from byoai_gateway.providers.openrouter import OpenRouter
from byoai_gateway.providers.openrouter_account import (
    OpenRouterAccounts,
    open_openrouter_accounts,
)
from byoai_gateway.providers.outbound import Outbound
from byoai_gateway.providers.tunnel import Route
from byoai_gateway.relay_links import RelayLinks
from byoai_gateway.routes import RegistryRoutes
from byoai_gateway.tunnel_client import TunnelClient


class Routes(Protocol):
    """What the registry says of users' tunnels."""

    async def route(self, user_id: str, tunnel_id: str | None) -> Route | None:
        """The user's tunnel of that id, or the one to use when none is named."""
        ...


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways to providers."""

    routes: Routes
    tunnels: TunnelClient
    outbound: Outbound
    default: DefaultProvider
    openrouter: OpenRouter
    accounts: OpenRouterAccounts
    lists: AskedModels
    presence: PresenceMap


@asynccontextmanager
async def open_ways(
    control: ControlPlane, links: RelayLinks, routes: RegistryRoutes
) -> AsyncGenerator[Ways]:
    """Open the ways; every connection and fetch of theirs ends with the block.

    Raises:
        ConfigError: a provider's address in the settings is none.
    """
    config = control.config
    own = control.own_identity
    outbound = Outbound(config.router.connect_s)
    tunnels = TunnelClient(
        links, routes, lambda: own.credentials, connect_s=config.router.connect_s
    )
    openrouter = OpenRouter(config.openrouter, config.router, config.public_url, outbound)
    default = DefaultProvider(config.default_provider, config.router, outbound)
    try:
        async with open_openrouter_accounts(
            openrouter, config.openrouter.models_fresh_s, control.clock
        ) as accounts:
            lists = AskedModels(control.clock)
            yield Ways(
                routes, tunnels, outbound, default, openrouter, accounts, lists, links.presence
            )
    finally:
        outbound.close()
        tunnels.close()
