"""The registry is asked rarely, and never believed for long."""

from collections.abc import Sequence

import pytest

from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.presence import PresenceMap
from byoai_gateway.routes import RegistryRoutes
from byoai_gateway.tunnel_rows import Tunnel
from byoai_shared.protocol.control import Presence, PresenceState
from support.control import FakeClock, invitation, joined_agent
from support.garbage import cyclic_garbage


async def test_a_request_that_names_no_tunnel_goes_to_the_newest_that_is_online(
    control: ControlPlane, clock: FakeClock
) -> None:
    presence = PresenceMap()
    old = await joined_agent(control)
    clock.advance(1)
    new = await joined_agent(control)
    route = await RegistryRoutes(control.lookup, presence).route("alice", None)
    assert route is not None
    assert route.tunnel_id == new.tunnel_id
    presence.update(
        "relay", Presence(old.tunnel_id, old.agent_id, "run-1", 1, PresenceState.ONLINE)
    )
    route = await RegistryRoutes(control.lookup, presence).route("alice", None)
    assert route is not None
    assert route.tunnel_id == old.tunnel_id


async def test_another_users_tunnel_leads_nowhere(control: ControlPlane) -> None:
    others = await invitation(control, "bob")
    routes = RegistryRoutes(control.lookup, PresenceMap())
    for named in (None, others.tunnel_id):
        assert await routes.route("alice", named) is None


async def test_a_locked_agent_is_not_trusted_by_its_tunnel(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    async with control.database.writing() as connection:
        await control.registry.lock_agent(connection, agent.identity, 1)
    routes = RegistryRoutes(control.lookup, PresenceMap())
    assert await routes.route("alice", agent.tunnel_id) is not None
    assert await routes.pins(agent.tunnel_id) == ()


async def test_a_tunnel_can_be_used_at_once_by_who_asked_for_one_before_there_was_any(
    control: ControlPlane,
) -> None:
    routes = RegistryRoutes(control.lookup, PresenceMap())
    assert await routes.route("alice", None) is None
    made = await joined_agent(control)
    route = await routes.route("alice", None)
    assert route is not None
    assert route.tunnel_id == made.tunnel_id


async def test_a_tunnel_is_remembered_and_that_there_is_none_is_not(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await joined_agent(control)
    asked: list[str] = []
    usable_of = control.lookup.usable_of

    async def counted(user_id: str) -> Sequence[Tunnel]:
        asked.append(user_id)
        return await usable_of(user_id)

    monkeypatch.setattr(control.lookup, "usable_of", counted)
    routes = RegistryRoutes(control.lookup, PresenceMap())
    for _ in range(3):
        assert await routes.route("alice", made.tunnel_id) is not None
        assert await routes.route("bob", made.tunnel_id) is None
    assert sorted(asked) == ["alice", "bob", "bob", "bob"]


async def test_looking_up_leaves_nothing_in_reference_cycles(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    await looked_up(control, agent.tunnel_id)  # what is made once
    with cyclic_garbage() as left:
        for _ in range(3):
            await looked_up(control, agent.tunnel_id)
    assert not left


async def looked_up(control: ControlPlane, tunnel_id: str) -> None:
    """Ask the database for all that routes ask it for."""
    lookup = control.lookup
    assert [it.tunnel_id for it in await lookup.usable_of("alice")] == [tunnel_id]
    assert await lookup.authentication_key(tunnel_id)
    assert await lookup.pinned_certificates(tunnel_id)
    assert await lookup.has_agents(tunnel_id)
