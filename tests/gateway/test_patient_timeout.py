"""A limit for waits that a busy host does not meet."""

import asyncio

import pytest

from byoai_gateway.patient_timeout import patient_timeout
from support.loop_clock import NEVER_S, pass_time, settle, skip


async def test_a_wait_ends_when_nothing_comes() -> None:
    async def wait() -> None:
        async with patient_timeout(NEVER_S):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    for _ in range(9):
        await pass_time(NEVER_S / 10)
    assert not waiting.done()
    await pass_time(NEVER_S / 10)
    with pytest.raises(TimeoutError):
        await waiting


async def test_an_answer_that_came_while_the_loop_was_held_up_is_taken() -> None:
    answered = asyncio.Event()

    async def wait() -> str:
        async with patient_timeout(NEVER_S):
            await answered.wait()
        return "in time"

    waiting = asyncio.create_task(wait())
    await settle()
    for _ in range(9):
        skip(100 * NEVER_S)  # the loop does nothing for that long
        await settle()
    assert not waiting.done()
    answered.set()
    assert await waiting == "in time"


async def test_what_is_done_in_time_leaves_no_timer() -> None:
    async with patient_timeout(NEVER_S):
        pass
    await pass_time(2 * NEVER_S)


async def test_who_leaves_has_left_and_is_not_told_of_a_limit() -> None:
    async def wait() -> None:
        async with patient_timeout(NEVER_S):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
