"""A slow question is asked rarely, and its answer never believed for long."""

import asyncio

import pytest

from byoai_gateway import memory as memory_module
from byoai_gateway.availability import Availability
from byoai_gateway.database import DatabaseUnavailable
from byoai_gateway.memory import Memory
from support.loop_clock import settle


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
        if self.answer == "away":
            raise DatabaseUnavailable
        return self.answer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_an_answer_is_used_again_while_it_is_fresh() -> None:
    question, clock = Question(), Clock()
    memory = Memory(question.look_up, Availability(), fresh_s=2.0, clock=clock)
    assert [await memory.get("k") for _ in range(5)] == ["first"] * 5
    assert question.asked == ["k"]
    question.answer, clock.now = "second", 102.1
    assert await memory.get("k") == "second"


async def test_one_request_renews_while_the_others_go_on() -> None:
    question, clock = Question(), Clock()
    memory = Memory(question.look_up, Availability(), fresh_s=2.0, clock=clock)
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
    memory = Memory(question.look_up, Availability(), fresh_s=2.0, clock=clock)
    await memory.get("k")
    clock.now, question.answer = 103.0, "fails"
    with pytest.raises(LookupError):
        await memory.get("k")
    question.answer = "third"
    assert await memory.get("k") == "third"


async def test_what_it_remembers_is_bounded() -> None:
    question = Question()
    memory = Memory(question.look_up, Availability(), size=2, clock=Clock())
    for key in ("a", "b", "c"):
        await memory.get(key)
    await memory.get("c")
    await memory.get("a")
    assert question.asked == ["a", "b", "c", "a"]


async def test_an_answer_that_was_on_its_way_when_it_was_forgotten_is_not_kept() -> None:
    question = Question()
    memory = Memory(question.look_up, Availability(), clock=Clock())
    question.gate.clear()
    asking = asyncio.create_task(memory.get("k"))
    await asyncio.sleep(0)
    memory.forget("k")
    question.gate.set()
    assert await asking == "first"
    question.answer = "second"
    assert await memory.get("k") == "second"


async def test_an_answer_that_is_not_to_be_kept_replaces_what_was_known() -> None:
    question, clock = Question(), Clock()
    memory = Memory(
        question.look_up, Availability(), clock=clock, is_kept=lambda answer: answer != "none"
    )
    assert await memory.get("k") == "first"
    clock.now, question.answer = 103.0, "none"
    assert await memory.get("k") == "none"
    question.answer = "third"
    assert await memory.get("k") == "third"


async def test_while_the_database_is_away_what_is_known_is_used_until_it_is_too_old() -> None:
    question, clock, availability = Question(), Clock(), Availability()
    memory = Memory(question.look_up, availability, fresh_s=2.0, stale_s=600.0, clock=clock)
    await memory.get("k")
    question.answer, clock.now = "away", 700.0
    assert await memory.get("k") == "first"
    with pytest.raises(DatabaseUnavailable):
        await memory.get("unknown")
    clock.now = 700.1
    with pytest.raises(DatabaseUnavailable):
        await memory.get("k")
    assert availability.stale_answers == 1


async def test_what_was_known_for_too_long_is_used_by_nobody_who_waits_for_a_renewal() -> None:
    question, clock = Question(), Clock()
    memory = Memory(question.look_up, Availability(), stale_s=10.0, clock=clock)
    await memory.get("k")
    clock.now, question.answer = 200.0, "second"
    assert set(await asyncio.gather(memory.get("k"), memory.get("k"))) == {"second"}
    assert question.asked == ["k", "k"]


async def test_an_answer_that_takes_long_is_not_waited_for_and_counts_when_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_module, "PATIENCE_S", 0.0)
    question, clock = Question(), Clock()
    memory = Memory(question.look_up, Availability(), clock=clock)
    await memory.get("k")
    clock.now, question.answer = 103.0, "second"
    question.gate.clear()
    assert await memory.get("k") == "first"
    assert await memory.get("k") == "first"
    question.gate.set()
    await settle()
    assert await memory.get("k") == "second"
    assert len(question.asked) == 2


async def test_a_database_that_is_known_to_be_away_is_asked_in_the_background_only() -> None:
    question, clock, availability = Question(), Clock(), Availability(Clock())
    memory = Memory(question.look_up, availability, clock=clock)
    await memory.get("k")
    clock.now = 103.0
    asked = availability.ask(is_read=True)
    assert asked is not None
    availability.failed(asked)
    assert await memory.get("k") == "first"
    await settle()
    assert question.asked == ["k"]


async def test_what_is_outdated_is_asked_for_again_and_used_only_when_nobody_answers() -> None:
    question, clock = Question(), Clock()
    memory = Memory(question.look_up, Availability(), clock=clock)
    await memory.get("k")
    memory.outdate("k")
    question.answer = "away"
    assert await memory.get("k") == "first"
    question.answer = "second"
    assert await memory.get("k") == "second"
    memory.forget("k")
    question.answer = "away"
    with pytest.raises(DatabaseUnavailable):
        await memory.get("k")


async def test_who_leaves_while_an_answer_is_renewed_leaves_what_is_known() -> None:
    question, clock = Question(), Clock()
    memory = Memory(question.look_up, Availability(), clock=clock)
    await memory.get("k")
    clock.now, question.answer = 103.0, "away"
    question.gate.clear()
    leaving = asyncio.create_task(memory.get("k"))
    await settle()
    leaving.cancel()
    question.gate.set()
    await settle()
    assert await memory.get("k") == "first"


async def test_questions_that_nobody_waits_for_end_when_it_is_closed() -> None:
    question, clock = Question(), Clock()
    memory = Memory(question.look_up, Availability(), clock=clock)
    await memory.get("k")
    clock.now = 103.0
    question.gate.clear()
    waiting = asyncio.create_task(memory.get("k"))
    await settle()
    await memory.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
