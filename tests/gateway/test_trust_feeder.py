"""A gateway's trust on a real relay: only what it lacks, and never silenced by another."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from byoai_gateway import trust_feeder
from byoai_gateway.config import GatewayConfig
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.schema import denials, metadata
from byoai_gateway.trust_feeder import RelayOutdated, TrustFeeder
from byoai_shared.backoff import Backoff
from byoai_shared.link import websocket
from byoai_shared.link.errors import LinkLost
from byoai_shared.protocol.errors import CloseCode
from byoai_shared.protocol.trust import (
    MAX_ADVANCE_MS,
    MAX_OVERTAKEN_MS,
    MAX_REVISION,
    Trust,
    TrustHeld,
)
from support.control import FakeClock, joined_agent
from support.gateway_links import Feed
from support.pipes import Pipe, Pipes
from support.relays import Rig, relaying
from support.trust_links import agent_of, is_agreed, linked, sent_trusts
from support.trusts import whole


def soon(_: Backoff) -> float:
    return 0.01


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(Backoff, "next_delay_s", soon)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    folder = tmp_path / "relay"
    folder.mkdir()
    async with relaying(folder) as made:
        yield made


def cut_gateways(rig: Rig) -> None:
    """End every gateway's link, as a network does."""
    gateways = set(rig.service.relay.directory.gateways())
    for link in rig.service.relay.links():
        if link.port in gateways:
            link.link.abort()


# -- only what is lacking


async def test_a_relay_that_is_back_gets_only_what_it_lacks(
    control: ControlPlane, rig: Rig
) -> None:
    known, later = await joined_agent(control), await joined_agent(control)
    await control.registry.revoke("alice", known.tunnel_id)
    await control.trust.refresh()
    with sent_trusts() as sent:
        async with linked(control, rig) as links:
            assert [len(trust.denials) for trust in sent] == [1]
            sent.clear()
            cut_gateways(rig)
            await rig.until(lambda: links.dials["connected"] == 2 and bool(links.connected))
        async with linked(control, rig):
            # It has everything: nothing is sent.
            assert sent == []
        await control.registry.revoke("alice", later.tunnel_id)
        await control.trust.refresh()
        async with linked(control, rig):
            (trust,) = sent
            assert trust.base > 0
            assert [denial.subject for denial in trust.denials] == [later.tunnel_id]


async def test_a_relay_whose_state_differs_gets_the_whole_by_itself(
    config: GatewayConfig, rig: Rig, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock) as control:
        agent = await joined_agent(control)
        await control.registry.revoke("alice", agent.tunnel_id)
        await control.trust.refresh()
        async with linked(control, rig):
            assert rig.service.relay.trust.denial_count == 1
        async with control.database.writing() as connection:
            await connection.execute(denials.delete())
    with sent_trusts() as sent:
        async with open_control_plane(config, clock) as control, linked(control, rig):
            assert rig.service.relay.trust.denial_count == 0
    assert [trust.base > 0 for trust in sent] == [True, False]


async def test_a_denial_ends_at_the_relay_when_it_ends_at_the_gateway(
    control: ControlPlane, rig: Rig, clock: FakeClock
) -> None:
    agent = await joined_agent(control)
    async with linked(control, rig):
        await control.registry.revoke("alice", agent.tunnel_id)
        await control.trust.refresh()
        await rig.until(lambda: rig.service.relay.trust.denial_count == 1)
        clock.advance(3600)
        await control.renew()
        await rig.until(lambda: rig.service.relay.trust.denial_count == 0)
        assert is_agreed(control, rig)


async def test_a_relay_that_reports_nothing_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_feeder, "REPORT_S", 0.001)
    feeder = TrustFeeder(Feed(whole(1)), "wss://relay")
    with pytest.raises(RelayOutdated, match="upgrade it"):
        await feeder.feed(lambda _: None)


async def test_a_request_for_the_whole_is_not_lost_to_a_later_report() -> None:
    sent: list[Trust] = []
    feeder = TrustFeeder(Feed(whole(5)), "wss://relay")
    feeder.report(TrustHeld(revision=5, digest="differs", wanted=True))
    feeder.report(TrustHeld(revision=5, digest="differs"))
    feeding = asyncio.ensure_future(feeder.feed(sent.append))
    while not sent:  # noqa: ASYNC110 -- a list wakes no one
        await asyncio.sleep(0)
    feeding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await feeding
    assert sent == [whole(5)]


# -- several gateways


async def test_another_gateways_change_is_heard_from_the_relay_and_sent_once(
    config: GatewayConfig, control: ControlPlane, rig: Rig, clock: FakeClock
) -> None:
    agent = await joined_agent(control)
    with sent_trusts() as sent:
        async with (
            open_control_plane(config, clock) as other,
            linked(control, rig),
            linked(other, rig),
        ):
            sent.clear()
            await control.registry.revoke("alice", agent.tunnel_id)
            await control.trust.refresh()
            await rig.until(lambda: other.trust.held == control.trust.held)
            await rig.until(lambda: is_agreed(control, rig))
            for _ in range(50):
                await asyncio.sleep(0)
        assert len(sent) == 1


async def test_a_stolen_certificate_silences_no_other_gateway(
    control: ControlPlane, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    agent = await joined_agent(control)
    pipes = Pipes()
    async with linked(control, rig):
        thief, _ = await rig.gateway(trusting=False)
        poisoned = whole(int(rig.unix() * 1000) + 80_000_000, issuer="evil")
        thief.send_trust(poisoned)
        await rig.until(lambda: control.trust.held.revision > poisoned.revision)
        await rig.until(lambda: is_agreed(control, rig))
        thief.send_trust(whole(MAX_REVISION, issuer="evil"))
        await rig.until(lambda: "trust.refused" in caplog.text)
        assert is_agreed(control, rig)
        await agent_of(control, rig, agent.identity, pipes)
        # And changes are believed from then on as before.
        await control.registry.revoke("alice", agent.tunnel_id)
        await control.trust.refresh()
        await rig.until(lambda: is_agreed(control, rig))
        with pytest.raises(LinkLost) as caught:
            await agent_of(control, rig, agent.identity)
        assert caught.value.code is CloseCode.REVOKED
        assert thief.is_usable
        thief.abort()


async def test_a_lie_about_the_revision_ends_no_link_to_an_honest_relay(
    control: ControlPlane, rig: Rig, clock: FakeClock
) -> None:
    rig.unix.now = clock()
    agent = await joined_agent(control)
    async with linked(control, rig) as links:
        for advance_ms in range(MAX_OVERTAKEN_MS + 1000, MAX_OVERTAKEN_MS - 2000, -1000):
            clock.advance(2)
            lie = TrustHeld(revision=int(clock() * 1000) + advance_ms, digest="lie")
            await control.trust.overtake(lie, is_first=True)
        # The relay's clock is minutes behind, and it takes even this.
        rig.unix.now = clock() - 240
        await control.registry.revoke("alice", agent.tunnel_id)
        await control.trust.refresh()
        assert control.trust.held.revision > clock() * 1000 + MAX_OVERTAKEN_MS - 10_000
        await rig.until(lambda: rig.service.relay.trust.denies(agent.identity))
        assert links.dials == {"connected": 1}


async def test_what_a_relay_refused_is_sent_again_on_the_same_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trust_feeder, "AGAIN_S", 0.001)
    feeder = TrustFeeder(Feed(whole(5)), "wss://relay")
    sent: list[Trust] = []

    def refuse(trust: Trust) -> None:
        sent.append(trust)
        feeder.report(TrustHeld(revision=4, digest="held"))

    feeder.report(TrustHeld(revision=4, digest="held"))
    feeding = asyncio.ensure_future(feeder.feed(refuse))
    async with asyncio.timeout(5):
        while len(sent) < 3:  # noqa: ASYNC110 -- a list wakes no one
            await asyncio.sleep(0)
    feeding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await feeding


async def test_a_relay_takes_what_it_refused_once_its_clock_is_right(
    control: ControlPlane,
    rig: Rig,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trust_feeder, "AGAIN_S", 0.001)
    agent = await joined_agent(control)
    rig.unix.now = clock()
    async with linked(control, rig) as links:
        rig.unix.now = clock() - 2 * 86_400
        await control.registry.revoke("alice", agent.tunnel_id)
        await control.trust.refresh()
        await rig.until(lambda: caplog.text.count("trust.refused") > 1)
        assert not rig.service.relay.trust.denies(agent.identity)
        rig.unix.now = clock()
        await rig.until(lambda: is_agreed(control, rig))
        assert rig.service.relay.trust.denies(agent.identity)
        assert links.dials == {"connected": 1}


async def test_a_relay_that_refused_its_first_trust_takes_it_once_its_clock_is_right(
    control: ControlPlane,
    rig: Rig,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trust_feeder, "AGAIN_S", 0.001)
    rig.unix.now = clock() - 2 * 86_400

    async def correct() -> None:
        await rig.until(lambda: caplog.text.count("trust.refused") > 1)
        assert not rig.service.relay.trust.is_known
        rig.unix.now = clock()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(correct())
        async with linked(control, rig) as links:
            assert rig.service.relay.trust.is_known
            assert links.dials == {"connected": 1}


async def test_a_revision_just_below_what_relays_take_is_overtaken_later(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_feeder, "AGAIN_S", 0.001)
    sent: list[Trust] = []
    feeder = TrustFeeder(control.trust, "wss://relay")
    captured = TrustHeld(revision=int(clock() * 1000) + MAX_ADVANCE_MS, digest="stolen")
    feeder.report(captured)
    feeding = asyncio.ensure_future(feeder.feed(sent.append))
    await asyncio.sleep(0.01)
    assert not sent
    clock.advance(301)
    async with asyncio.timeout(5):
        while not sent:  # noqa: ASYNC110 -- a list wakes no one
            await asyncio.sleep(0)
    assert sent[0].revision > captured.revision
    feeding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await feeding


# -- a restored database


async def backed_up(control: ControlPlane) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables."""
    async with control.database.reading() as connection:
        return {
            table.name: [dict(row._mapping) for row in await connection.execute(select(table))]
            for table in metadata.sorted_tables
        }


async def restore(control: ControlPlane, backup: dict[str, list[dict[str, Any]]]) -> None:
    """Bring the database back to a backup."""
    async with control.database.writing() as connection:
        for table in reversed(metadata.sorted_tables):
            await connection.execute(table.delete())
        for table in metadata.sorted_tables:
            if backup[table.name]:
                await connection.execute(insert(table), backup[table.name])


async def test_a_restored_database_is_believed(
    config: GatewayConfig, rig: Rig, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock) as control:
        agent = await joined_agent(control)
        async with linked(control, rig):
            backup = await backed_up(control)
            clock.advance(60)
            await control.registry.revoke("alice", agent.tunnel_id)
            await control.trust.refresh()
            await rig.until(lambda: rig.service.relay.trust.denies(agent.identity))
        await restore(control, backup)
    clock.advance(60)
    async with open_control_plane(config, clock) as control:
        # The database says that it is active, and so must the relay.
        await control.registry.find("alice", agent.tunnel_id)
        assert control.trust.held.revision < rig.service.relay.trust.revision
        async with linked(control, rig):
            assert not rig.service.relay.trust.denies(agent.identity)
            await agent_of(control, rig, agent.identity)


async def test_a_restore_under_a_running_gateway_is_believed(
    control: ControlPlane, rig: Rig, clock: FakeClock
) -> None:
    agent = await joined_agent(control)
    async with linked(control, rig):
        backup = await backed_up(control)
        await control.registry.revoke("alice", agent.tunnel_id)
        await control.trust.refresh()
        await rig.until(lambda: rig.service.relay.trust.denies(agent.identity))
        await restore(control, backup)
        clock.advance(2)
        await control.trust.refresh()
        await rig.until(lambda: is_agreed(control, rig))
        await agent_of(control, rig, agent.identity)


async def test_streams_go_on_while_the_whole_is_sent_again(
    control: ControlPlane, rig: Rig, clock: FakeClock
) -> None:
    agent = await joined_agent(control)
    pipes = Pipes()
    async with linked(control, rig) as links:
        await agent_of(control, rig, agent.identity, pipes)
        await rig.until(lambda: bool(links.sessions_for(agent.tunnel_id)))
        (session,) = links.sessions_for(agent.tunnel_id)
        ours = Pipe()
        await session.open_stream(agent.tunnel_id, ours)
        before = rig.service.relay.trust.revision
        await control.trust.overtake(TrustHeld(revision=before + 9, digest="x"), is_first=True)
        await rig.until(lambda: rig.service.relay.trust.revision > before)
        await ours.write(b"still here")
        await pipes.made[0].until(lambda: pipes.made[0].received == b"still here")
