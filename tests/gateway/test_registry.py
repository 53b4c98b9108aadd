import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy import select

from byoai_gateway.config import GatewayConfig
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.refusals import Refusal
from byoai_gateway.registry import Registry
from byoai_gateway.schema import audit_log, join_codes, secrets
from byoai_shared.identity import parse_tunnel_id
from support.control import MODEL, FakeAgent, FakeClock, invitation, joined_agent


async def test_a_registered_tunnel_is_found_by_its_owner(control: ControlPlane) -> None:
    invited = await invitation(control)
    parse_tunnel_id(invited.tunnel_id)
    tunnel = await control.registry.find("alice", invited.tunnel_id)
    assert (tunnel.user_id, tunnel.model) == ("alice", MODEL)
    assert invited.expires_at == control.clock() + 900


async def test_only_the_hash_of_a_code_is_stored(control: ControlPlane) -> None:
    invited = await invitation(control)
    async with control.database.reading() as connection:
        stored = str((await connection.execute(select(join_codes))).all())
    assert invited.secret.reveal() not in stored


Ask = Callable[[Registry, str, str], Coroutine[Any, Any, object]]


async def remove_one(registry: Registry, user: str, tunnel_id: str) -> None:
    await registry.remove_agent(user, tunnel_id, "a")


ASKS: list[Ask] = [
    Registry.find,
    Registry.invite,
    Registry.rotate,
    Registry.revoke,
    remove_one,
]


@pytest.mark.parametrize("ask", ASKS)
async def test_another_users_tunnel_is_not_found_just_as_one_that_does_not_exist(
    control: ControlPlane, ask: Ask
) -> None:
    invited = await invitation(control, "alice")
    sentences = set[tuple[int, str, str]]()
    for user, tunnel_id in (("bob", invited.tunnel_id), ("bob", "a" * 26), ("bob", "")):
        with pytest.raises(Refusal) as caught:
            await ask(control.registry, user, tunnel_id)
        sentences.add((caught.value.status, caught.value.code, str(caught.value)))
    assert sentences == {(404, "tunnel_not_found", "there is no such tunnel")}
    await control.registry.find("alice", invited.tunnel_id)


async def test_users_see_their_own_tunnels_the_newest_first(
    control: ControlPlane, clock: FakeClock
) -> None:
    first = await invitation(control, "alice")
    clock.advance(1)
    second = await invitation(control, "alice")
    await invitation(control, "bob")
    found = await control.registry.tunnels_of("alice")
    assert [tunnel.tunnel_id for tunnel in found] == [second.tunnel_id, first.tunnel_id]


async def test_a_user_may_have_so_many_tunnels_even_when_asking_at_once(
    control: ControlPlane,
) -> None:
    most = control.config.tunnels.max_per_user
    answers = await asyncio.gather(
        *(invitation(control) for _ in range(most + 5)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    assert [refusal.code for refusal in refused] == ["too_many_tunnels"] * 5
    one = (await control.registry.tunnels_of("alice"))[0]
    await control.registry.revoke("alice", one.tunnel_id)
    await invitation(control)


async def test_a_revoked_tunnel_is_gone_for_its_owner_and_for_the_data_path(
    control: ControlPlane,
) -> None:
    agent = await joined_agent(control)
    registry = control.registry
    await registry.revoke("alice", agent.tunnel_id)
    with pytest.raises(Refusal, match="no such tunnel"):
        await registry.revoke("alice", agent.tunnel_id)
    assert await registry.tunnels_of("alice") == []
    assert await control.lookup.usable_of("alice") == []
    assert await control.lookup.pinned_certificates(agent.tunnel_id) == ()
    async with control.database.reading() as connection:
        owners = list(await connection.scalars(select(secrets.c.owner)))
    assert not any(agent.tunnel_id in owner for owner in owners)


async def test_unlocking_is_for_the_owner_and_is_written_down(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    registry = control.registry
    async with control.database.writing() as connection:
        await registry.lock_agent(connection, agent.identity, 1)
    assert await control.lookup.pinned_certificates(agent.tunnel_id) == ()
    with pytest.raises(Refusal) as caught:
        await registry.unlock_agent("bob", agent.tunnel_id, agent.agent_id)
    assert caught.value.code == "tunnel_not_found"
    with pytest.raises(Refusal) as caught:
        await registry.unlock_agent("alice", agent.tunnel_id, "another")
    assert caught.value.code == "agent_not_found"
    await registry.unlock_agent("alice", agent.tunnel_id, agent.agent_id)
    (shown,) = await registry.agents_of(agent.tunnel_id)
    assert shown.locked_at is None
    async with control.database.reading() as connection:
        written = await connection.execute(
            select(audit_log.c.actor, audit_log.c.action, audit_log.c.subject).where(
                audit_log.c.action.in_(["agent.locked", "agent.unlocked"])
            )
        )
    assert [tuple(row) for row in written] == [
        ("gateway", "agent.locked", agent.agent_id),
        ("user", "agent.unlocked", agent.agent_id),
    ]


async def test_a_locked_agent_can_be_removed(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    async with control.database.writing() as connection:
        await control.registry.lock_agent(connection, agent.identity, 1)
    await control.registry.remove_agent("alice", agent.tunnel_id, agent.agent_id)
    assert await control.registry.agents_of(agent.tunnel_id) == []


async def test_pins_are_those_of_the_agents_that_were_not_removed(
    control: ControlPlane,
) -> None:
    one = await joined_agent(control)
    invited = await control.registry.invite("alice", one.tunnel_id)
    two = FakeAgent(control, one.tunnel_id)
    await two.enrol(invited.secret.reveal())
    pins = await control.lookup.pinned_certificates(one.tunnel_id)
    assert set(pins) == {one.end_to_end_pem.encode(), two.end_to_end_pem.encode()}

    await control.registry.remove_agent("alice", one.tunnel_id, one.agent_id)
    pins = await control.lookup.pinned_certificates(one.tunnel_id)
    assert pins == (two.end_to_end_pem.encode(),)
    assert [agent.agent_id for agent in await control.registry.agents_of(one.tunnel_id)] == [
        two.agent_id
    ]


async def test_all_of_it_outlives_a_restart(config: GatewayConfig, clock: FakeClock) -> None:
    async with open_control_plane(config, clock) as before:
        agent = await joined_agent(before)
        key = await before.lookup.authentication_key(agent.tunnel_id)
        authorities = before.authorities
        trust = await before.trust.since(0)
    async with open_control_plane(config, clock) as after:
        agent.control = after
        await agent.token()
        assert await after.lookup.authentication_key(agent.tunnel_id) == key
        assert after.authorities.agents.certificate_pem == authorities.agents.certificate_pem
        assert after.authorities.services.certificate_pem == authorities.services.certificate_pem
        assert (await after.trust.since(0)) == trust
