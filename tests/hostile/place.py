"""Where the attacks happen: one gateway, one relay and agents, in processes of their own.

The bystander's and the attackers' streams go through the same gateway, the same link of it and the
same relay. The attackers' own connections come from another address.
"""

import asyncio
import resource
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest
import trustme

from demo.processes import Process
from demo.settings import Settings
from demo.stack import HOST, Stack, Tunnel, port_of
from support.internet import trusted_authority

from .account import Account
from .bystander import Bystander, bystanding

ATTACKER: Final = "127.0.0.66"
"""Where attackers' connections come from."""
MALLORY: Final = "mallory"
"""An attacker with an agent of his own making; see `HostileAgent`."""
TRUDY: Final = "trudy"
"""An attacker with our agent, and a model server that never answers."""
ANSWER_S: Final = 30.0
LOOK_S: Final = 0.05
BUFFERED_BYTES: Final = 64 * 1024 * 1024
GATEWAY: Final[Settings] = {
    "self_hosted.url_networks": [f"{HOST}/32"],
    "router.buffered_bytes": BUFFERED_BYTES,
    # A user's requests are attacks here, and it is not their number that is to stop them.
    "limits.requests_per_minute": 1_000_000,
    "limits.concurrent_requests": 1_000,
}
AGENT: Final[Settings] = {"limits.concurrent_requests": 64}


class NotRefused(AssertionError):
    """An attacker got what the documents say that he does not get."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of each attack there is."""

    streams: int
    chunks: int
    """Of each of the bystander's streams before an attack, and at least as many beside it."""
    hang_ups: int
    sockets: int
    frames: int
    denials: int
    assertions: int
    status_links: int
    """Links on which an agent reports too much."""


SMALL: Final = Size(
    streams=4,
    chunks=6,
    hang_ups=250,
    sockets=1_100,
    frames=60_000,
    denials=2_000,
    assertions=64,
    status_links=3,
)
FULL: Final = Size(
    streams=32,
    chunks=100,
    hang_ups=2_500,
    sockets=6_000,
    frames=1_500_000,
    denials=1_000_000,
    assertions=2_000,
    status_links=60,
)


@dataclass(frozen=True, slots=True)
class Place:
    """The processes, the bystander, and the attackers' accounts."""

    stack: Stack
    server_port: int
    """Of the model server that bystander and attackers share; its own pages are on it, too."""
    bystander: Bystander
    mallory: Tunnel
    account: Account
    """Of mallory's agent."""
    trudy: Tunnel
    internet: trustme.CA
    """Signs certificates of servers that the gateway takes for servers on the internet."""

    @property
    def gateway_port(self) -> int:
        """The gateway's public port."""
        return port_of(self.stack.gateway_url)

    def address(self, listener: str) -> tuple[str, int]:
        """Where a listener is: `gateway.ops`, `relay.agents`, `relay.gateways`, `relay.ops`."""
        program, _, name = listener.partition(".")
        part = self.stack.gateway if program == "gateway" else self.stack.relays[0]
        ready = next(event for event in part.events if event["event"] == f"{program}.ready")
        return HOST, port_of(str(ready[name]))

    def gateway_cpu_s(self) -> float:
        """Return the processor time that the gateway has used."""
        times = psutil.Process(self.stack.gateway.pid).cpu_times()
        return times.user + times.system

    async def metric(self, program: str, name: str) -> float:
        """Return a metric of the gateway or the relay; 0 if there is none of the name."""
        answer = await self.page(f"{program}.ops", "/metrics")
        for line in answer.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    async def reaches(self, program: str, name: str, least: float, most_s: float) -> None:
        """Wait until a metric is at least so high."""
        async with asyncio.timeout(most_s):
            # The page has no push.
            while await self.metric(program, name) < least:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)

    async def page(self, listener: str, path: str, host: str = HOST) -> str:
        """Return a whole answer, head and body, to a plain GET."""
        request = f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        return await said(self.address(listener), request.encode())


async def said(address: tuple[str, int], request: bytes, source: str = HOST) -> str:
    """Send a request and return all that comes until the connection is closed."""
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection(*address, local_addr=(source, 0))
        try:
            writer.write(request)
            return (await reader.read()).decode(errors="replace")
        finally:
            writer.close()


@asynccontextmanager
async def opened(directory: Path, size: Size) -> AsyncGenerator[Place]:
    """Start everything; what the bystander got is checked to the end when it is left in order."""
    _allow_many_files()
    async with AsyncExitStack() as parts:
        internet = trusted_authority(directory, parts.enter_context(pytest.MonkeyPatch.context()))
        stack = Stack(directory, gateway=GATEWAY, agent=AGENT)
        command = [sys.executable, "-m", "hostile.model_server"]
        path = str(Path(__file__).parents[1])
        server = Process("model-server", command, directory=directory, environ={"PYTHONPATH": path})
        await parts.enter_async_context(server)
        await parts.enter_async_context(stack)
        port = int((await server.ready())["port"])
        trudy = await stack.open_tunnel(TRUDY, [f"http://{HOST}:{port}"])
        mallory = await stack.register(MALLORY)
        await stack.choose(
            mallory.token, {"aiProvider": "self-hosted", "tunnelId": mallory.tunnel_id}
        )
        await stack.join(mallory.join_code, MALLORY, ["http://127.0.0.1:9"])
        bystander = await parts.enter_async_context(bystanding(stack, port, size.streams))
        account = Account(stack.state_directory(MALLORY))
        yield Place(stack, port, bystander, mallory, account, trudy, internet)


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 2 * FULL.sockets)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
