from sqlalchemy import select

from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.schema import audit_log
from support.control import Api, joined_agent


async def entries(control: ControlPlane) -> list[tuple[str, str, str | None]]:
    async with control.database.reading() as connection:
        rows = await connection.execute(select(audit_log).order_by(audit_log.c.entry_id))
        return [(row.user_id, row.action, row.subject) for row in rows]


async def test_every_change_to_a_tunnel_is_written_down(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    tunnel_id = agent.tunnel_id
    await control.registry.invite("alice", tunnel_id)
    await control.registry.rotate("alice", tunnel_id)
    await control.registry.remove_agent("alice", tunnel_id, agent.agent_id)
    async with control.database.writing() as connection:
        await control.registry.lock(connection, tunnel_id)
    await control.registry.revoke("alice", tunnel_id)
    assert await entries(control) == [
        ("alice", "tunnel.registered", tunnel_id),
        ("alice", "agent.joined", agent.agent_id),
        ("alice", "tunnel.invited", tunnel_id),
        ("alice", "tunnel.key_rotated", tunnel_id),
        ("alice", "agent.removed", agent.agent_id),
        ("alice", "tunnel.locked", tunnel_id),
        ("alice", "tunnel.revoked", tunnel_id),
    ]


async def test_a_key_that_is_still_being_fetched_is_not_replaced_nor_written_down(
    control: ControlPlane,
) -> None:
    tunnel_id = (await joined_agent(control)).tunnel_id
    first = await control.registry.rotate("alice", tunnel_id)
    assert await control.registry.rotate("alice", tunnel_id) == first
    actions = [action for _, action, _ in await entries(control)]
    assert actions.count("tunnel.key_rotated") == 1


async def test_a_save_that_changes_nothing_is_not_written_down(api: Api) -> None:
    path = "/api/user-preferences/ai-provider"
    status, answer = await api.call("POST", path, "alice", {})
    assert (status, answer["updatedAt"]) == (200, None)
    assert await entries(api.control) == []


async def test_what_was_refused_changed_nothing_and_is_not_written_down(api: Api) -> None:
    tunnel_id = (await api.register("alice"))["tunnelId"]
    before = await entries(api.control)
    path = f"/api/tunnel/{tunnel_id}"
    calls = [("DELETE", path), ("POST", path + "/rotate"), ("POST", path + "/agents")]
    for method, target in [*calls, ("DELETE", path + "/agents/nobody")]:
        assert (await api.call(method, target, "bob"))[0] == 404
    assert (await api.call("DELETE", path + "/agents/nobody", "alice"))[0] == 404
    assert await entries(api.control) == before
