"""A tunnel without relays: its far end is a scripted agent, and a test says what that reports."""

import asyncio

import pytest

from byoai_gateway.tunnel_client import TunnelError
from byoai_shared.http1.client import ClientConnection
from byoai_shared.protocol.control import Presence, PresenceState, Status
from support.gateway import Gateway
from support.provider import Provider

RELAY = "relay-1"


class Tunnel:
    """Stands for a tunnel: its far end is a scripted agent, or there is no way there."""

    def __init__(self, agent: Provider, error: TunnelError | None = None) -> None:
        self.agent = agent
        self.error = error
        self.given_back: list[ClientConnection] = []

    def take_fresh(self, tunnel_id: str, agent_id: str = "") -> None:
        del agent_id
        assert tunnel_id

    async def acquire(self, tunnel_id: str, agent_id: str = "") -> ClientConnection:
        del agent_id
        assert tunnel_id
        if self.error is not None:
            raise self.error
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(ClientConnection, "127.0.0.1", self.agent.port)
        return made

    def release(self, tunnel_id: str, connection: ClientConnection, agent_id: str = "") -> None:
        del agent_id
        assert tunnel_id
        self.given_back.append(connection)
        connection.close()


def through(
    gateway: Gateway,
    agent: Provider,
    monkeypatch: pytest.MonkeyPatch,
    error: TunnelError | None = None,
) -> Tunnel:
    """Let all tunnels of a gateway lead to one agent."""
    tunnel = Tunnel(agent, error)
    monkeypatch.setattr(gateway.data_path.ways.tunnels, "acquire", tunnel.acquire)
    monkeypatch.setattr(gateway.data_path.ways.tunnels, "release", tunnel.release)
    return tunnel


def report(gateway: Gateway, tunnel_id: str, *models: str, agent: str = "a1") -> None:
    """Let an agent of a tunnel be online and report these models."""
    presence = Presence(
        tunnel_id=tunnel_id,
        agent_id=agent,
        instance="i",
        epoch=1,
        state=PresenceState.ONLINE,
        status=Status(models=models),
    )
    gateway.data_path.links.presence.update(RELAY, presence)
