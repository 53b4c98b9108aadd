"""The registry is asked rarely, and never believed for long."""

from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.presence import PresenceMap
from byoai_gateway.routes import RegistryRoutes
from byoai_shared.protocol.control import Presence, PresenceState
from support.control import FakeClock, invitation, joined_agent


async def test_a_request_that_names_no_tunnel_goes_to_the_newest_that_is_online(
    control: ControlPlane, clock: FakeClock
) -> None:
    presence = PresenceMap()
    old = await joined_agent(control)
    clock.advance(1)
    new = await joined_agent(control)
    route = await RegistryRoutes(control.registry, presence).route("alice", None)
    assert route is not None
    assert route.tunnel_id == new.tunnel_id
    presence.update(
        "relay", Presence(old.tunnel_id, old.agent_id, "run-1", 1, PresenceState.ONLINE)
    )
    route = await RegistryRoutes(control.registry, presence).route("alice", None)
    assert route is not None
    assert route.tunnel_id == old.tunnel_id


async def test_a_locked_tunnel_and_another_users_lead_nowhere(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    others = await invitation(control, "bob")
    async with control.database.writing() as connection:
        await control.registry.lock(connection, agent.tunnel_id)
    routes = RegistryRoutes(control.registry, PresenceMap())
    for named in (None, agent.tunnel_id, others.tunnel_id):
        assert await routes.route("alice", named) is None
