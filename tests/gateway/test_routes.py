"""The registry is asked rarely, and never believed for long."""

import asyncio

import pytest

from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.memory import Memory
from byoai_gateway.presence import PresenceMap
from byoai_gateway.routes import RegistryRoutes
from byoai_shared.protocol.control import Presence, PresenceState
from support.control import FakeClock, invitation, joined_agent


class Question:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = "first"
        self.gate = asyncio.Event()
        self.gate.set()

    async def look_up(self, key: str) -> str:
        self.asked.append(key)
        await self.gate.wait()
        if self.answer == "fails":
            raise LookupError(key)
        return self.answer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_an_answer_is_used_again_while_it_is_fresh() -> None:
    question, clock = Question(), Clock()
    memory = Memory(question.look_up, fresh_s=2.0, clock=clock)
    assert [await memory.get("k") for _ in range(5)] == ["first"] * 5
    assert question.asked == ["k"]
    question.answer, clock.now = "second", 102.1
    assert await memory.get("k") == "second"


async def test_one_request_renews_while_the_others_go_on() -> None:
    question, clock = Question(), Clock()
    memory = Memory(question.look_up, fresh_s=2.0, clock=clock)
    await memory.get("k")
    clock.now, question.answer = 103.0, "second"
    question.gate.clear()
    renewing = asyncio.create_task(memory.get("k"))
    await asyncio.sleep(0)
    assert await memory.get("k") == "first"
    question.gate.set()
    assert await renewing == "second"
    assert await memory.get("k") == "second"
    assert len(question.asked) == 2


async def test_a_failed_renewal_is_raised_and_leaves_nothing_stale_behind() -> None:
    question, clock = Question(), Clock()
    memory = Memory(question.look_up, fresh_s=2.0, clock=clock)
    await memory.get("k")
    clock.now, question.answer = 103.0, "fails"
    with pytest.raises(LookupError):
        await memory.get("k")
    question.answer = "third"
    assert await memory.get("k") == "third"


async def test_what_it_remembers_is_bounded() -> None:
    question = Question()
    memory = Memory(question.look_up, size=2, clock=Clock())
    for key in ("a", "b", "c"):
        await memory.get(key)
    await memory.get("c")
    await memory.get("a")
    assert question.asked == ["a", "b", "c", "a"]


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
