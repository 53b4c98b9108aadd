"""What the settings say of all ways to providers holds for each of them."""

import asyncio
from datetime import timedelta
from typing import cast

import msgspec
import pytest

from byoai_gateway.config import GatewayConfig
from byoai_gateway.control_plane import open_control_plane
from byoai_gateway.presence import PresenceMap
from byoai_gateway.provider_config import RouterSection
from byoai_gateway.relay_links import RelayLinks
from byoai_gateway.routes import RegistryRoutes
from byoai_gateway.tunnel_client import TunnelLost
from byoai_gateway.ways import open_ways
from byoai_shared.identity import tunnel_hostname
from byoai_shared.keys import new_key, self_signed_certificate
from byoai_shared.link.stream import StreamTransport
from support.control import FakeClock
from support.links import TUNNEL_ID


class MuteLinks:
    """Two relays that let nothing be heard of any agent."""

    presence = PresenceMap()

    def sessions_for(self, tunnel_id: str, agent_id: str) -> list["MuteLinks"]:
        assert (tunnel_id, agent_id) == (TUNNEL_ID, "")
        return [self, self]

    async def open_stream(
        self, tunnel_id: str, protocol: asyncio.Protocol, *, agent_id: str, timeout_s: float
    ) -> StreamTransport:
        del tunnel_id, protocol, agent_id, timeout_s
        opened: asyncio.Future[StreamTransport] = asyncio.get_running_loop().create_future()
        return await opened


class OneTunnel:
    """A registry in which there is one tunnel."""

    async def pins(self, tunnel_id: str) -> tuple[bytes, ...]:
        hostname = tunnel_hostname(tunnel_id)
        return (self_signed_certificate(new_key(), hostname, timedelta(days=1)),)


async def test_the_time_to_connect_is_that_of_the_settings_for_tunnels_too(
    config: GatewayConfig, clock: FakeClock
) -> None:
    changed = msgspec.structs.replace(config, router=RouterSection(connect_s=0.06))
    links, routes = cast("RelayLinks", MuteLinks()), cast("RegistryRoutes", OneTunnel())
    async with (
        open_control_plane(changed, clock) as control,
        open_ways(control, links, routes) as ways,
        asyncio.timeout(50),
    ):
        with pytest.raises(TunnelLost, match=r"did not answer within 0\.06 s"):
            await ways.tunnels.acquire(TUNNEL_ID)
