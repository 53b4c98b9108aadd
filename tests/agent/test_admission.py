import asyncio
from contextlib import AsyncExitStack

import pytest

from byoai_agent.admission import Admission, Busy
from support.wires import turns


def admission(*, concurrent: int = 1, queued: int = 1, wait_s: float = 60.0) -> Admission:
    return Admission(concurrent=concurrent, queued=queued, wait_s=wait_s)


async def held(places: Admission, order: list[int], number: int, done: asyncio.Event) -> None:
    async with places.place():
        order.append(number)
        await done.wait()


async def test_places_are_free_until_all_are_taken() -> None:
    places = admission(concurrent=2, queued=0)
    async with places.place(), places.place():
        assert places.in_flight == 2
        with pytest.raises(Busy):
            async with places.place():
                pytest.fail("a third place was given")
    assert places.in_flight == 0


async def test_the_queue_is_served_in_order_of_arrival() -> None:
    places = admission(queued=3)
    order: list[int] = []
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(held(places, order, number, done))
        await turns()
        assert (order, places.waiting) == ([0], 3)
        done.set()
    assert order == [0, 1, 2, 3]
    assert (places.in_flight, places.waiting) == (0, 0)


async def test_nobody_overtakes_the_queue() -> None:
    places = admission(queued=2)
    order: list[int] = []
    first, rest = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(held(places, order, 0, first))
        group.create_task(held(places, order, 1, rest))
        await turns()
        first.set()
        await asyncio.sleep(0)  # the place has been handed over, its new holder has not run
        group.create_task(held(places, order, 2, rest))
        await turns()
        assert order == [0, 1]
        assert places.in_flight == 1
        rest.set()
    assert order == [0, 1, 2]


async def test_a_full_queue_is_refused_at_once_with_a_time() -> None:
    places = admission(queued=1)
    async with asyncio.TaskGroup() as group, places.place():
        waiting = group.create_task(held(places, [], 1, asyncio.Event()))
        await turns()
        with pytest.raises(Busy, match=r"try again in \d+ s") as busy:
            async with places.place():
                pytest.fail("a place was given")
        assert 1 <= busy.value.retry_after_s <= 60
        waiting.cancel()


async def test_waiting_has_a_limit() -> None:
    places = admission(queued=1, wait_s=0.01)
    async with places.place():
        with pytest.raises(Busy):
            async with places.place():
                pytest.fail("a place was given")
        assert (places.in_flight, places.waiting) == (1, 0)


async def test_who_gives_up_leaves_the_queue() -> None:
    places = admission(queued=1)
    async with places.place():
        waiting = asyncio.create_task(held(places, [], 1, asyncio.Event()))
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert places.waiting == 0
    assert places.in_flight == 0


async def test_a_place_handed_to_someone_who_just_gave_up_goes_on() -> None:
    places = admission(queued=2)
    order: list[int] = []
    done = asyncio.Event()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(places.place())
        first = asyncio.create_task(held(places, order, 1, done))
        second = asyncio.create_task(held(places, order, 2, done))
        await turns()
        await stack.aclose()  # hands the place to `first`, which is cancelled before it runs
        first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await turns()
    assert order == [2]
    done.set()
    await second
    assert (places.in_flight, places.waiting) == (0, 0)


async def test_the_time_to_wait_grows_with_the_work() -> None:
    now = [0.0]
    places = Admission(concurrent=1, queued=0, wait_s=1, clock=lambda: now[0])
    for _ in range(50):
        async with places.place():
            now[0] += 20.0
    async with places.place():
        with pytest.raises(Busy) as busy:
            async with places.place():
                pytest.fail("a place was given")
    assert busy.value.retry_after_s == 20
