import pytest

from byoai_gateway.authentication_keys import Fetched, KeysInForce, keys_in_force
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.refusals import Refusal
from support.control import FakeAgent, FakeClock, invitation, joined_agent

NOW = 1000.0


@pytest.mark.parametrize(
    ("versions", "agents", "expected"),
    [
        pytest.param([1], [], KeysInForce(1, (1,), 0), id="nobody has joined"),
        pytest.param([1, 2], [], KeysInForce(2, (2,), 0), id="nobody to wait for"),
        pytest.param([1, 2], [(2, 900, 1500)], KeysInForce(2, (2,), 0), id="all know it"),
        pytest.param([1, 2], [(1, 100, 1500)], KeysInForce(1, (2, 1), 1), id="one does not"),
        pytest.param(
            [1, 2],
            [(2, 900, 1500), (1, 100, 1500), (1, 100, 1500)],
            KeysInForce(1, (2, 1), 2),
            id="some do not",
        ),
        pytest.param(
            [1, 2], [(2, 998, 1500)], KeysInForce(1, (2, 1), 1), id="the answer may be lost"
        ),
        pytest.param(
            [1, 2], [(1, 100, 970)], KeysInForce(1, (2, 1), 1), id="its link may still drain"
        ),
        pytest.param([1, 2], [(1, 100, 940)], KeysInForce(2, (2,), 0), id="it cannot be connected"),
    ],
)
def test_which_keys_count(
    versions: list[int], agents: list[tuple[int, int, int]], expected: KeysInForce
) -> None:
    assert keys_in_force(versions, [Fetched(*agent) for agent in agents], NOW) == expected


async def sent(control: ControlPlane, agent: FakeAgent) -> str:
    return (await control.lookup.authentication_key(agent.tunnel_id)).reveal()


async def test_an_agent_is_given_the_key_the_gateway_sends(control: ControlPlane) -> None:
    invited = await invitation(control)
    agent = FakeAgent(control, invited.tunnel_id)
    answer = await agent.enrol(invited.secret.reveal())
    assert answer.authentication_keys == [await sent(control, agent)]
    assert len(answer.authentication_keys[0]) == 43  # 256 bits


async def test_the_old_key_is_sent_until_every_agent_has_fetched_the_new_one(
    control: ControlPlane, clock: FakeClock
) -> None:
    first = await joined_agent(control)
    second_invited = await control.registry.invite("alice", first.tunnel_id)
    second = FakeAgent(control, first.tunnel_id)
    await second.enrol(second_invited.secret.reveal())
    clock.advance(10)
    old = await sent(control, first)

    force = await control.registry.rotate("alice", first.tunnel_id)
    assert force.waiting_for == 2
    assert await sent(control, first) == old

    new, also_old = (await first.token()).authentication_keys
    assert also_old == old
    clock.advance(10)
    assert await sent(control, first) == old

    assert (await second.token()).authentication_keys == [new, old]
    assert await sent(control, first) == old
    clock.advance(5)  # in case the answer was lost
    assert await sent(control, first) == new
    assert (await first.token()).authentication_keys == [new]


async def test_it_does_not_go_back_when_another_agent_joins(
    control: ControlPlane, clock: FakeClock
) -> None:
    agent = await joined_agent(control)
    clock.advance(10)
    await control.registry.rotate("alice", agent.tunnel_id)
    await agent.token()
    clock.advance(10)
    new = await sent(control, agent)
    invited = await control.registry.invite("alice", agent.tunnel_id)
    late = FakeAgent(control, agent.tunnel_id)
    assert (await late.enrol(invited.secret.reveal())).authentication_keys == [new]
    assert await sent(control, agent) == new


async def test_an_agent_that_is_off_is_not_waited_for(
    control: ControlPlane, clock: FakeClock
) -> None:
    agent = await joined_agent(control)
    clock.advance(control.config.tunnels.token_lifetime_s + 60)
    old = await sent(control, agent)
    await control.registry.rotate("alice", agent.tunnel_id)
    new = await sent(control, agent)
    assert new != old
    assert (await agent.token()).authentication_keys == [new]


async def test_rotating_twice_waits_for_the_first(control: ControlPlane, clock: FakeClock) -> None:
    agent = await joined_agent(control)
    clock.advance(10)
    await control.registry.rotate("alice", agent.tunnel_id)
    again = await control.registry.rotate("alice", agent.tunnel_id)
    assert (again.sent, again.accepted) == (1, (2, 1))
    await agent.token()
    clock.advance(10)
    third = await control.registry.rotate("alice", agent.tunnel_id)
    assert (third.sent, third.accepted) == (2, (3, 2))


async def test_a_revoked_tunnel_has_no_key(control: ControlPlane) -> None:
    agent = await joined_agent(control)
    await control.registry.revoke("alice", agent.tunnel_id)
    with pytest.raises(Refusal, match="revoked"):
        await sent(control, agent)
