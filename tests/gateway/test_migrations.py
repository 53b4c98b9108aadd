from sqlalchemy import select, text

from byoai_gateway.config import GatewayConfig
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.database import Database
from byoai_gateway.schema import denials, tunnels
from byoai_shared.protocol.trust import agent_subject
from support.control import FakeAgent, FakeClock, joined_agent
from support.migrations import downgrade_to


async def test_a_tunnel_that_was_locked_becomes_one_whose_agents_are(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock) as control:
        agent = await joined_agent(control)
        other = await joined_agent(control, "bob")
    opened = await Database.open(config.database)
    async with opened.writing() as connection:
        await connection.run_sync(downgrade_to, "0005")
        await connection.execute(
            text(
                f"UPDATE tunnels SET locked_at = 7, denied_until = {int(clock()) + 1000} "
                f"WHERE tunnel_id = '{agent.tunnel_id}'"
            )
        )
    await opened.close()
    async with open_control_plane(config, clock) as control:
        (shown,) = await control.registry.agents_of(agent.tunnel_id)
        assert shown.locked_at == 7
        (untouched,) = await control.registry.agents_of(other.tunnel_id)
        assert untouched.locked_at is None
        async with control.database.reading() as connection:
            locked_at = await connection.scalar(
                select(tunnels.c.locked_at).where(tunnels.c.tunnel_id == agent.tunnel_id)
            )
            denied = await connection.scalars(
                select(denials.c.subject).where(denials.c.denied_until > 0)
            )
            assert list(denied) == [agent_subject(agent.tunnel_id, agent.agent_id)]
        assert locked_at is None
        await again_with_a_code(control, agent)


async def again_with_a_code(control: ControlPlane, agent: FakeAgent) -> None:
    invited = await control.registry.invite("alice", agent.tunnel_id)
    again = FakeAgent(control, agent.tunnel_id)
    again.takes_over(agent, agent.key)
    await again.enrol(invited.secret.reveal())
    await again.token()
