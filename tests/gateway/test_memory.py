"""A slow question is asked rarely, and its answer never believed for long."""

import asyncio

import pytest

from byoai_gateway.memory import Memory


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


async def test_an_answer_that_was_on_its_way_when_it_was_forgotten_is_not_kept() -> None:
    question = Question()
    memory = Memory(question.look_up, clock=Clock())
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
    memory = Memory(question.look_up, clock=clock, is_kept=lambda answer: answer != "none")
    assert await memory.get("k") == "first"
    clock.now, question.answer = 103.0, "none"
    assert await memory.get("k") == "none"
    question.answer = "third"
    assert await memory.get("k") == "third"
