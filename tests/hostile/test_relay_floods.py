"""One tenant floods a relay while another tenant's streams run beside it, byte for byte.

A relay with real sockets, a gateway's link that both tenants share, and an agent of each. The
relay's clock stands still unless a test moves it, so no verdict depends on the machine's speed.
`BYOAI_HOSTILE_FULL=1` runs the attacks in full size.
"""

import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from struct import pack
from typing import Final

import pytest

from byoai_relay.directory import MAX_TUNNEL_STATUS_BYTES, MIN_STATUS_BYTES
from byoai_relay.port import Leg
from byoai_relay.relay_link import RelayLink
from byoai_shared.identity import AgentIdentity
from byoai_shared.link import websocket
from byoai_shared.link.errors import StreamReset
from byoai_shared.link.session import LinkSession
from byoai_shared.protocol.control import Status
from byoai_shared.protocol.errors import ResetCode
from byoai_shared.protocol.frames import DATA, FrameType
from support.links import TUNNEL_ID
from support.pipes import Pipe, Pipes
from support.relays import Rig, relaying

IS_FULL: Final = bool(os.environ.get("BYOAI_HOSTILE_FULL"))
HANG_UPS: Final = 5_000 if IS_FULL else 250
FLOOD_FRAMES: Final = 1_500_000 if IS_FULL else 60_000
TUNNELS: Final = 7 if IS_FULL else 2
"""Of the attacker, each with as many agents as a gateway allows."""
AGENTS_PER_TUNNEL: Final = 16
STATUSES: Final = 47
"""As many as one link's error budget bears."""
MODELS: Final = tuple(f"{number:03}" + "m" * 200 for number in range(78))
"""As many as fit a STATUS."""
NEIGHBOUR: Final = AgentIdentity("bcdefghijklmnopqrstuvwxyza", "agent-2")
STREAMS: Final = 8


class Echo(Pipe):
    """Sends back what comes."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(bytes(data))


@dataclass
class Tenants:
    """The gateway's link, the attacker's agent, and the neighbor's streams."""

    rig: Rig
    gateway: LinkSession
    attacker: LinkSession
    taken: Pipes
    """Streams that the attacker took; it never answers by itself."""
    neighbours: list[Pipe]
    sent: bytearray = field(default_factory=bytearray)

    @property
    def attackers_link(self) -> RelayLink:
        """What the relay keeps for the attacker's link."""
        links = self.rig.service.relay.links()
        return next(link for link in links if link.port.tunnel_id == TUNNEL_ID)

    async def serve_neighbour(self, rounds: int = 5) -> None:
        """Carry the neighbor's bytes there and back, and compare all that ever came."""
        for number in range(rounds):
            piece = bytes((number + at) % 251 for at in range(3000))
            self.sent += piece
            for pipe in self.neighbours:
                pipe.transport.write(piece)
            for pipe in self.neighbours:
                await pipe.until(partial(self._has_all, pipe))
        assert all(pipe.received == self.sent for pipe in self.neighbours)

    def _has_all(self, pipe: Pipe) -> bool:
        return len(pipe.received) >= len(self.sent)

    async def hang_up(self) -> ResetCode | None:
        """Open a stream to the attacker, and leave before an answer; why it was refused."""
        try:
            stream = await self.gateway.open_stream(TUNNEL_ID, Pipe())
        except StreamReset as reset:
            return reset.code
        stream.abort()
        await self.rig.until(lambda: self.gateway.stream_count == STREAMS)
        return None

    def flood(self, frame: tuple[bytes, bytes], count: int) -> None:
        """Have the attacker send frames that its own endpoint would never make."""
        for _ in range(count):
            self.attacker.outbox.put_stream(1, *frame)
        self.attacker._flush()


@pytest.fixture
async def tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tenants]:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.05)
    async with relaying(tmp_path) as rig:
        gateway, _ = await rig.gateway()
        taken = Pipes()
        attacker = await rig.agent(taken)
        await rig.agent(lambda _stream: Echo(), identity=NEIGHBOUR)
        neighbours = [Pipe() for _ in range(STREAMS)]
        for pipe in neighbours:
            await gateway.open_stream(NEIGHBOUR.tunnel_id, pipe)
        made = Tenants(rig, gateway, attacker, taken, neighbours)
        await made.serve_neighbour()
        yield made


async def test_hang_ups_at_a_silent_agent_cost_that_tunnel_alone(tenants: Tenants) -> None:
    ends: Counter[ResetCode | None] = Counter()
    for number in range(HANG_UPS):
        tenants.rig.monotonic.now += 6.0 / 250
        ends[await tenants.hang_up()] += 1
        if number % 50 == 0:
            await tenants.serve_neighbour(1)
    assert set(ends) == {None, ResetCode.THROTTLED}
    await tenants.serve_neighbour()
    assert tenants.gateway.is_usable
    assert tenants.attacker.is_usable
    tenants.rig.monotonic.now += 11.0
    assert await tenants.hang_up() is None


SMALL_FRAMES = {
    "CREDIT of 1": (pack(">II", 4 << 8 | FrameType.CREDIT, 1), pack(">I", 1)),
    "DATA of 1": (pack(">II", 1 << 8 | DATA, 1), b"x"),
}


@pytest.mark.parametrize("kind", SMALL_FRAMES)
async def test_a_flood_of_small_frames_is_slowed_and_the_neighbor_is_not(
    tenants: Tenants, kind: str
) -> None:
    stream = await tenants.gateway.open_stream(TUNNEL_ID, Pipe())
    # Its receiver grants credit again, and its sender has used up some that can be granted.
    stream.write(bytes(200_000))
    await tenants.rig.until(lambda: bool(tenants.taken.made[0].received))
    tenants.flood(SMALL_FRAMES[kind], FLOOD_FRAMES)
    await assert_slowed(tenants)


@pytest.mark.parametrize("kind", SMALL_FRAMES)
async def test_a_flood_on_a_stream_that_was_reset_is_slowed_as_well(
    tenants: Tenants, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await tenants.gateway.open_stream(TUNNEL_ID, Pipe())
    # The attacker takes no notice of the RESET, and answers it never.
    monkeypatch.setattr(tenants.attacker, "message_received", ignore)
    stream.abort()
    await tenants.rig.until(lambda: all(leg.is_told for leg in attackers_legs(tenants)))
    tenants.flood(SMALL_FRAMES[kind], FLOOD_FRAMES)
    await assert_slowed(tenants)


def ignore(message: bytes) -> None:
    assert message


def attackers_legs(tenants: Tenants) -> list[Leg]:
    return list(tenants.attackers_link.port.legs.values())


async def assert_slowed(tenants: Tenants) -> None:
    """The link is read no more while the clock stands still; with time it is, and stays up."""
    link = tenants.attackers_link
    relay = tenants.rig.service.relay
    await tenants.rig.until(lambda: link.slowed_until is not None)
    await tenants.serve_neighbour()
    until = link.slowed_until
    await tenants.serve_neighbour()
    assert link.slowed_until == until  # nothing was read, and so nothing charged
    assert tenants.gateway.is_usable
    while tenants.attacker.outbox and not tenants.attacker.closed.done():
        tenants.rig.monotonic.now += 1.0
        relay.tick()
        await tenants.serve_neighbour(1)
    assert relay.links_slowed > 0
    assert tenants.gateway.is_usable


async def test_statuses_do_not_pile_up_on_a_gateways_link_that_is_slow(tenants: Tenants) -> None:
    relay = tenants.rig.service.relay
    gateways = next(it for it in relay.links() if not it.port.tunnel_id)
    identities = [
        AgentIdentity("a" * 25 + "abcdefg"[tunnel], f"agent-{number}")
        for tunnel in range(TUNNELS)
        for number in range(AGENTS_PER_TUNNEL)
    ]
    agents = [await tenants.rig.agent(identity=identity) for identity in identities]
    links = [it for it in relay.links() if it.identity in identities]
    assert tenants.gateway._link is not None
    tenants.gateway._link.pause_reading()
    for number in range(1, STATUSES + 1):
        for agent in agents:
            agent.send_status(Status(models=MODELS, queued=number))
    await tenants.rig.until(lambda: all(is_read_or_slowed(it) for it in links))
    assert gateways.port.outbox.urgent_bytes < (
        TUNNELS * (MAX_TUNNEL_STATUS_BYTES + AGENTS_PER_TUNNEL * MIN_STATUS_BYTES) + 100_000
    )
    assert relay.links_slowed >= TUNNELS
    relay.tick()
    tenants.gateway._link.resume_reading()
    await tenants.serve_neighbour()
    assert tenants.gateway.is_usable
    assert all(agent.is_usable for agent in agents)


def is_read_or_slowed(link: RelayLink) -> bool:
    return link.slowed_until is not None or link.status.queued == STATUSES
