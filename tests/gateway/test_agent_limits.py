"""How often agents may ask: each has a limit, and honest ones never meet it."""

from collections.abc import AsyncGenerator

import pytest

from byoai_gateway.agent_limits import AgentLimits
from byoai_gateway.config import GatewayConfig, LimitsSection, TunnelsSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.refusals import Refusal
from byoai_shared.keys import new_key
from support.control import FakeAgent, FakeClock, gateway_config, invitation, joined_agent

NARROW = LimitsSection(
    agent_tokens_per_minute=3,
    agent_renewals_per_minute=2,
    user_tokens_per_minute=5,
    user_renewals_per_minute=3,
)


@pytest.fixture
async def narrow(config: GatewayConfig, clock: FakeClock) -> AsyncGenerator[ControlPlane]:
    changed = gateway_config(config.vault.key_file.parent, database=config.database, limits=NARROW)
    async with open_control_plane(changed, clock) as opened:
        yield opened


async def renewed(agent: FakeAgent) -> None:
    """Renew, and use the new key."""
    key = new_key()
    await agent.renew(key)
    agent.key = key


def is_too_many(refusal: Refusal) -> bool:
    wait_s = refusal.retry_after_s
    return refusal.status == 429 and wait_s is not None and 1 <= wait_s <= 60


async def test_an_agent_may_fetch_so_many_tokens_in_a_minute(narrow: ControlPlane) -> None:
    agent, sibling = await joined_agent(narrow), await joined_agent(narrow, "bob")
    for _ in range(3):
        await agent.token()
    with pytest.raises(Refusal, match="this agent asked for too many tokens") as caught:
        await agent.token()
    assert is_too_many(caught.value)
    await sibling.token()
    await renewed(agent)


async def test_an_agent_may_renew_so_often_in_a_minute(narrow: ControlPlane) -> None:
    agent, sibling = await joined_agent(narrow), await joined_agent(narrow, "bob")
    for _ in range(2):
        await renewed(agent)
    with pytest.raises(Refusal, match="this agent asked for too many certificates") as caught:
        await renewed(agent)
    assert is_too_many(caught.value)
    await renewed(sibling)
    # What was refused changed nothing: the key in use is still the one that is known.
    await agent.token()


async def test_all_agents_of_a_user_count_together(narrow: ControlPlane) -> None:
    first, second = await joined_agent(narrow), await joined_agent(narrow)
    for agent in (first, first, first, second, second):
        await agent.token()
    with pytest.raises(Refusal, match="this user's agents asked for too many tokens") as caught:
        await second.token()
    assert is_too_many(caught.value)
    for agent in (first, first, second):
        await renewed(agent)
    with pytest.raises(Refusal, match="this user's agents asked for too many certificates"):
        await renewed(second)
    await (await joined_agent(narrow, "bob")).token()


async def test_a_stranger_uses_up_nothing_of_an_agents(narrow: ControlPlane) -> None:
    agent = await joined_agent(narrow)
    for _ in range(5):
        with pytest.raises(Refusal) as caught:
            await agent.token(new_key())
        assert caught.value.status == 401
    await agent.token()


async def test_as_many_agents_as_a_user_may_have_start_at_once_and_again() -> None:
    """After an outage each agent fetches a token for each of two links, tries again, and renews."""
    limits, rules = AgentLimits(LimitsSection()), TunnelsSection()
    for number in range(rules.max_per_user * rules.max_agents):
        for _ in range(6):
            await limits.token(f"a{number}", "alice")
        for _ in range(2):
            await limits.renewal(f"a{number}", "alice")


async def test_an_agent_that_is_restarted_every_two_seconds_gets_its_token(
    control: ControlPlane,
) -> None:
    agent = await joined_agent(control)
    for _ in range(30):
        await agent.token()


async def test_a_removed_agent_hears_that_and_not_that_it_is_early(narrow: ControlPlane) -> None:
    invited = await invitation(narrow)
    agent = FakeAgent(narrow, invited.tunnel_id)
    await agent.enrol(invited.secret.reveal())
    await narrow.registry.remove_agent("alice", agent.tunnel_id, agent.agent_id)
    for _ in range(5):
        with pytest.raises(Refusal) as caught:
            await agent.token()
        assert caught.value.code == "tunnel_revoked"
