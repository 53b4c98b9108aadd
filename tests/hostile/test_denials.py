"""Denials in any number: the links stay up, others' streams go on, and the revoked stay out.

Small by default. With BYOAI_HOSTILE_FULL=1 there are a million of them, ten times what gateways
send one by one.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import func, insert, select, update

from byoai_gateway.clock import Clock
from byoai_gateway.config import TokensSection, TunnelsSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.database import Database
from byoai_gateway.refusals import Refusal
from byoai_gateway.revision import trust_revision
from byoai_gateway.schema import counters, denials
from byoai_gateway.trust import TrustSource
from byoai_relay.config import Limits
from byoai_shared.keys import new_key
from byoai_shared.link.errors import LinkLost
from byoai_shared.protocol.control import encode_control
from byoai_shared.protocol.trust import MAX_DENIALS, Trust, split_trust
from support.control import FakeAgent, FakeClock, gateway_config, joined_agent
from support.pipes import Pipe, Pipes
from support.relays import Rig, relaying
from support.trust_links import agent_of, is_agreed, linked, sent_trusts

FULL: Final = os.environ.get("BYOAI_HOSTILE_FULL") == "1"
MANY: Final = 1_000_000 if FULL else 3_000
MOST: Final = MAX_DENIALS if FULL else 500
AGE_S: Final = 600
"""How long ago the first of them was made; tokens live longer."""
BYTES_EACH: Final = 96
"""A denial on the wire: two ids and two times."""

pytestmark = pytest.mark.timeout(900 if FULL else 60)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def control(tmp_path: Path, clock: FakeClock) -> AsyncGenerator[ControlPlane]:
    rules = TunnelsSection() if FULL else TunnelsSection(max_revoked_per_user=8)
    async with open_control_plane(gateway_config(tmp_path, tunnels=rules), clock) as opened:
        yield opened


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    folder = tmp_path / "relay"
    folder.mkdir()
    # The other tenant's small messages are not what is limited here, and the relay's clock stands.
    async with relaying(folder, Limits(frames_per_s=1_000_000)) as made:
        yield made


class Echo(Pipe):
    """Another tenant's model: it sends back what comes."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


class Bystander:
    """Another tenant's stream, with a message going to and fro all the time."""

    def __init__(self, ours: Pipe) -> None:
        self.ours = ours
        self.sent = b""
        self.round_trips_s: list[float] = []

    async def talk(self) -> None:
        """Exchange messages until cancelled."""
        while True:
            message = b"%08d" % len(self.round_trips_s)
            began = time.perf_counter()
            self.sent += message
            self.ours.transport.write(message)
            await self.ours.until(lambda: len(self.ours.received) >= len(self.sent))
            self.round_trips_s.append(time.perf_counter() - began)

    def report(self, what: str) -> None:
        """Print how long messages took since the last report."""
        times = sorted(self.round_trips_s) or [0.0]
        p99_ms = times[len(times) * 99 // 100 - 1] * 1000
        print(f"{what}: {len(times)} messages of another tenant, p99 {p99_ms:.1f} ms")
        self.round_trips_s.clear()


@asynccontextmanager
async def bystanding(control: ControlPlane, rig: Rig) -> AsyncGenerator[Bystander]:
    """Run another tenant's stream beside what happens; it must lose no byte and no link."""
    victim = await joined_agent(control, "victim")
    session = await agent_of(control, rig, victim.identity, lambda _: Echo())
    async with linked(control, rig) as links:
        await rig.until(lambda: bool(links.sessions_for(victim.tunnel_id)))
        ours = Pipe()
        await links.sessions_for(victim.tunnel_id)[0].open_stream(victim.tunnel_id, ours)
        bystander = Bystander(ours)
        talking = asyncio.ensure_future(bystander.talk())
        try:
            yield bystander
        finally:
            talking.cancel()
            with suppress(asyncio.CancelledError):
                await talking
        await ours.until(lambda: len(ours.received) >= len(bystander.sent))
        assert ours.received == bystander.sent
        assert not ours.losses
        assert not session.closed.done()
        assert links.dials == {"connected": 1}


async def flood(control: ControlPlane, clock: FakeClock) -> None:
    """Store denials as a great many accounts would make them within some minutes."""
    now = int(clock())
    async with control.database.writing() as connection:
        revision = await trust_revision(connection) + 1
        for start in range(0, MANY, 50_000):
            rows = [
                {
                    "subject": f"flood{number:021}/a{number:020}",
                    "user_id": f"mallory{number // 64}",
                    "revision": revision,
                    "denied_at": now - AGE_S + 10 + number * (AGE_S - 10) // MANY,
                    "denied_until": now + 900,
                }
                for number in range(start, min(start + 50_000, MANY))
            ]
            await connection.execute(insert(denials), rows)
        await connection.execute(update(counters).values(value=revision))


async def stored(control: ControlPlane) -> int:
    async with control.database.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(denials)) or 0


def size(trust: Trust) -> tuple[int, int]:
    """Frames and bytes of what was sent at once."""
    parts = list(split_trust(trust))
    return len(parts), sum(len(encode_control(part)) for part in parts)


async def test_any_number_of_denials_ends_no_link_and_lets_no_one_in(
    tmp_path: Path, rig: Rig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byoai_gateway.control_plane.TrustSource", bounded_source)
    with sent_trusts() as sent:
        async with open_control_plane(gateway_config(tmp_path), clock) as control:
            revoked = await joined_agent(control, "mallory")
            await control.registry.revoke("mallory", revoked.tunnel_id)
            clock.advance(AGE_S)
            await rig_knows_keys(control, rig)
            async with bystanding(control, rig) as bystander:
                await some_messages(bystander)
                bystander.report("before")
                sent.clear()
                await flood(control, clock)
                await control.renew()
                await control.tidy()
                await rig.until(lambda: is_agreed(control, rig))
                await some_messages(bystander)
                bystander.report("during")
                # Rows, memory, frames and bytes are bounded, however many there were.
                assert await stored(control) <= MOST
                assert rig.service.relay.trust.denial_count <= MOST
                for trust in sent:
                    frames, sent_bytes = size(trust)
                    assert sent_bytes <= MOST * BYTES_EACH + 100_000
                    assert frames <= sent_bytes // 20_000 + 5
                # The one that was revoked first was dropped from the list, and stays out.
                assert not rig.service.relay.trust.denies(revoked.identity)
                await is_kept_out(control, rig, revoked, clock)
                # And all of it passes.
                clock.advance(3600)
                await control.renew()
                await control.tidy()
                await rig.until(lambda: rig.service.relay.trust.denial_count == 0)
                assert await stored(control) == 0


def bounded_source(database: Database, rules: TokensSection, clock: Clock) -> TrustSource:
    return TrustSource(database, rules, clock, max_denials=MOST)


async def some_messages(bystander: Bystander) -> None:
    """Wait until the other tenant has exchanged some messages."""
    target = len(bystander.sent) + 8 * 20
    await bystander.ours.until(lambda: len(bystander.ours.received) >= target)


async def rig_knows_keys(control: ControlPlane, rig: Rig) -> None:
    """Let the relay hear of the gateway once, so that agents may come before it links for good."""
    async with linked(control, rig):
        pass


async def is_kept_out(control: ControlPlane, rig: Rig, agent: FakeAgent, clock: FakeClock) -> None:
    """Check that the token that an agent had before it was revoked is of no use."""
    clock.advance(-AGE_S)
    try:
        with pytest.raises(LinkLost):
            await agent_of(control, rig, agent.identity, Pipes())
    finally:
        clock.advance(AGE_S)


async def test_an_account_cannot_make_denials_for_ever(
    control: ControlPlane, rig: Rig, clock: FakeClock
) -> None:
    """Register, join, renew, delete, as fast as it is allowed: 9 h of it once ended all links."""
    await rig_knows_keys(control, rig)
    limit = control.config.tunnels.max_revoked_per_user
    async with bystanding(control, rig):
        made = 0
        with suppress(Refusal):
            while made <= 2 * limit:
                agent = await joined_agent(control, "mallory")
                if made == 0:
                    await renew_often(agent)
                await control.registry.revoke("mallory", agent.tunnel_id)
                await control.trust.refresh()
                made += 1
        assert made == limit
        assert await stored(control) == limit
        await rig.until(lambda: is_agreed(control, rig))
        assert rig.service.relay.trust.denial_count == limit


async def renew_often(agent: FakeAgent) -> None:
    with suppress(Refusal):
        for _ in range(100):
            key = new_key()
            await agent.renew(key)
            agent.key = key
