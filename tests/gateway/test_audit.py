from sqlalchemy import select, text

from byoai_gateway.config import DatabaseSection
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.database import Database
from byoai_gateway.preferences.preferences import Changes, Setting
from byoai_gateway.schema import audit_log
from byoai_shared.keys import new_key
from byoai_shared.secret import Secret
from support.control import Api, end_to_end_pem, joined_agent
from support.migrations import downgrade_to


async def entries(control: ControlPlane) -> list[tuple[str | None, str, str | None]]:
    async with control.database.reading() as connection:
        rows = await connection.execute(select(audit_log).order_by(audit_log.c.entry_id))
        return [(row.user_id, row.action, row.subject) for row in rows]


async def test_every_change_to_a_tunnel_is_written_down(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    tunnel_id = agent.tunnel_id
    await control.registry.invite("alice", tunnel_id)
    await control.registry.rotate("alice", tunnel_id)
    async with control.database.writing() as connection:
        await control.registry.lock_agent(connection, agent.identity, 1)
    await control.registry.unlock_agent("alice", tunnel_id, agent.agent_id)
    await control.registry.remove_agent("alice", tunnel_id, agent.agent_id)
    await control.registry.revoke("alice", tunnel_id)
    assert await entries(control) == [
        ("alice", "tunnel.registered", tunnel_id),
        ("alice", "agent.joined", agent.agent_id),
        ("alice", "tunnel.invited", tunnel_id),
        ("alice", "tunnel.key_rotated", tunnel_id),
        ("alice", "agent.locked", agent.agent_id),
        ("alice", "agent.unlocked", agent.agent_id),
        ("alice", "agent.removed", agent.agent_id),
        ("alice", "tunnel.revoked", tunnel_id),
    ]


async def test_who_is_trusted_as_an_agent_is_written_down_when_it_changes(
    control: ControlPlane,
) -> None:
    agent = await joined_agent(control)
    other = end_to_end_pem(agent.tunnel_id)
    for pinned in (None, agent.end_to_end_pem, other, other):
        key = new_key()
        await agent.renew(key, end_to_end=pinned)
        agent.key = key
    changed = [it for it in await entries(control) if it[1] == "agent.certificate_changed"]
    assert changed == [("alice", "agent.certificate_changed", agent.agent_id)]


async def test_each_entry_says_who_did_it(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    async with control.database.writing() as connection:
        await control.registry.lock_agent(connection, agent.identity, 1)
    (key,) = control.signing_keys.known
    await control.signing_keys.drop(key.kid)
    async with control.database.reading() as connection:
        rows = (await connection.execute(select(audit_log).order_by(audit_log.c.entry_id))).all()
    assert [(row.actor, row.user_id, row.action) for row in rows] == [
        ("user", "alice", "tunnel.registered"),
        ("agent", "alice", "agent.joined"),
        ("gateway", "alice", "agent.locked"),
        ("operator", None, "signing_key.dropped"),
    ]
    assert rows[-1].subject == key.kid


async def test_an_entry_tells_what_was_set_from_what_was_emptied(control: ControlPlane) -> None:
    save = control.preferences.save
    await save("alice", Changes(keys={Setting.OPENROUTER_KEY: Secret("a-canary")}))
    await save(
        "alice",
        Changes(plain={Setting.FALLBACK: True}, keys={Setting.OPENROUTER_KEY: None}),
    )
    async with control.database.reading() as connection:
        rows = (await connection.execute(select(audit_log).order_by(audit_log.c.entry_id))).all()
    assert [(row.fields, row.emptied) for row in rows] == [
        (["openRouterApiKey"], []),
        (["fallbackToDefault", "openRouterApiKey"], ["openRouterApiKey"]),
    ]


async def test_entries_of_older_gateways_stay_and_are_given_their_actors(
    database: DatabaseSection,
) -> None:
    opened = await Database.open(database)
    async with opened.writing() as connection:
        await connection.run_sync(downgrade_to, "0003")
        for action in ("preferences.saved", "agent.joined", "tunnel.locked"):
            await connection.execute(
                text(
                    "INSERT INTO audit_log (at, user_id, action, fields) "
                    f"VALUES (1, 'alice', '{action}', '[]')"
                )
            )
    await opened.close()
    opened = await Database.open(database)
    async with opened.writing() as connection:
        rows = (await connection.execute(select(audit_log).order_by(audit_log.c.entry_id))).all()
        await connection.run_sync(downgrade_to, "0003")
    await opened.close()
    assert [(row.actor, row.user_id, row.emptied) for row in rows] == [
        ("user", "alice", None),
        ("agent", "alice", None),
        ("gateway", "alice", None),
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
