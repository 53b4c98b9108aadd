import asyncio

from byoai_gateway.control_plane import ControlPlane
from byoai_shared.tokens import keys_from_jwks
from support.control import FakeClock, joined_agent


async def test_the_snapshot_holds_what_tokens_are_checked_with(control: ControlPlane) -> None:
    trust = await control.trust.current()
    assert (trust.issuer, trust.audience) == ("byoai-gateway", "byoai-relay")
    assert list(keys_from_jwks(trust.keys)) == [key.kid for key in control.signing_keys.known]
    assert all("d" not in jwk for jwk in trust.keys)
    assert trust.denied_tunnels == ()
    assert trust.denied_certificates == ()


async def test_a_revocation_wakes_those_who_wait(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    before = await control.trust.current()
    waiting = [asyncio.create_task(control.trust.changed(before.revision)) for _ in range(3)]
    await asyncio.sleep(0)
    await control.registry.revoke("alice", agent.tunnel_id)
    assert await control.trust.refresh()
    for trust in await asyncio.wait_for(asyncio.gather(*waiting), 5):
        assert trust.denied_tunnels == (agent.tunnel_id,)
        assert trust.revision > before.revision


async def test_whoever_is_behind_gets_the_snapshot_at_once(control: ControlPlane) -> None:
    current = await control.trust.current()
    assert await control.trust.changed(current.revision - 1) == current


async def test_nothing_changed_is_not_news(control: ControlPlane) -> None:
    assert not await control.trust.refresh()
    await joined_agent(control)
    assert not await control.trust.refresh()


async def test_a_revoked_tunnel_is_denied_until_all_it_had_has_expired(
    control: ControlPlane, clock: FakeClock
) -> None:
    agent = await joined_agent(control)
    await control.registry.revoke("alice", agent.tunnel_id)
    clock.advance(86_400)
    await control.renew()
    assert (await control.trust.current()).denied_tunnels == (agent.tunnel_id,)
    clock.advance(62)
    revision = (await control.trust.current()).revision
    await control.renew()
    trust = await control.trust.current()
    assert trust.denied_tunnels == ()
    assert trust.revision > revision


async def test_the_certificates_of_a_removed_agent_are_denied(
    control: ControlPlane, clock: FakeClock
) -> None:
    agent = await joined_agent(control)
    await control.registry.remove_agent("alice", agent.tunnel_id, agent.agent_id)
    await control.trust.refresh()
    trust = await control.trust.current()
    assert len(trust.denied_certificates) == 1
    assert trust.denied_tunnels == ()
    clock.advance(86_400 + 62)
    await control.renew()
    assert (await control.trust.current()).denied_certificates == ()


async def test_revisions_never_fall_below_the_clock(
    control: ControlPlane, clock: FakeClock
) -> None:
    """So that a database from a backup does not go back to numbers that relays have seen."""
    clock.advance(1_000_000)
    agent = await joined_agent(control)
    await control.registry.revoke("alice", agent.tunnel_id)
    await control.trust.refresh()
    assert (await control.trust.current()).revision >= clock()


async def test_changes_at_once_get_a_number_each(control: ControlPlane) -> None:
    agents = [await joined_agent(control) for _ in range(5)]
    before = await control.trust.current()
    await asyncio.gather(*(control.registry.revoke("alice", it.tunnel_id) for it in agents))
    await control.trust.refresh()
    after = await control.trust.current()
    assert after.revision >= before.revision + 5
    assert set(after.denied_tunnels) == {agent.tunnel_id for agent in agents}
