from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.operator_revocation import OperatorRevocation
from byoai_shared.protocol.trust import agent_subject
from support.control import FakeAgent, FakeClock, joined_agent


async def one_more_agent(control: ControlPlane, tunnel_id: str) -> FakeAgent:
    invited = await control.registry.invite("alice", tunnel_id)
    agent = FakeAgent(control, tunnel_id)
    await agent.enrol(invited.secret.reveal())
    return agent


async def test_all_that_came_since_a_moment_is_found(
    control: ControlPlane, clock: FakeClock
) -> None:
    revocation = OperatorRevocation(control.database, control.registry)
    old = await joined_agent(control)
    clock.advance(100)
    moment = clock()
    added, new = await one_more_agent(control, old.tunnel_id), await joined_agent(control, "bob")
    assert await revocation.since(moment) == [
        new.tunnel_id,
        agent_subject(old.tunnel_id, added.agent_id),
    ]
    assert await revocation.since(moment + 1) == []


async def test_what_is_named_is_revoked_whoever_owns_it(control: ControlPlane) -> None:
    revocation = OperatorRevocation(control.database, control.registry)
    kept, gone = await joined_agent(control), await joined_agent(control, "bob")
    agent = await one_more_agent(control, kept.tunnel_id)
    names = [gone.tunnel_id, agent_subject(kept.tunnel_id, agent.agent_id), "unknown", "un/known"]
    done = [it async for it in revocation.revoke([*names, gone.tunnel_id])]
    assert done == [*zip(names, (True, True, False, False), strict=True), (gone.tunnel_id, False)]
    await control.trust.refresh()
    assert {it.subject for it in (await control.trust.since(0)).denials} == set(names[:2])
    assert len(await control.registry.agents_of(kept.tunnel_id)) == 1
    assert await control.registry.tunnels_of("bob") == []
