import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from byoai_gateway.rate_windows import (
    WINDOW_S,
    MemoryWindows,
    Store,
    StoreAwayError,
    StoreWindows,
)
from byoai_shared.config import ConfigError
from byoai_shared.secret import Secret
from support.control import FakeClock
from support.loop_clock import NEVER_S, skip
from support.redis_server import PASSWORD, RedisServer, redis_server

PATIENT_S: Final = 20.0
"""For a machine that has much else to do."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as started:
        yield started


@pytest.fixture
async def store(server: RedisServer) -> AsyncGenerator[Store]:
    opened = Store(server.address, question_s=PATIENT_S)
    yield opened
    await opened.close()


async def test_one_too_many_is_told_how_long_to_wait(clock: FakeClock) -> None:
    windows = MemoryWindows(2, clock)
    assert await windows.hit("alice") is None
    clock.advance(20)
    assert await windows.hit("alice") is None
    assert await windows.hit("alice") == pytest.approx(40)
    assert await windows.hit("bob") is None


async def test_a_minute_begins_with_the_first_time(clock: FakeClock) -> None:
    windows = MemoryWindows(1, clock)
    clock.advance(59)
    assert await windows.hit("alice") is None
    clock.advance(2)  # another half is filled now; this minute goes on
    assert await windows.hit("alice") == pytest.approx(58)
    clock.advance(58)
    assert await windows.hit("alice") is None
    assert await windows.hit("alice") == pytest.approx(60)


async def test_a_busy_user_is_never_let_through_by_a_change_of_halves(clock: FakeClock) -> None:
    windows = MemoryWindows(10, clock)
    admitted: list[float] = []
    for _ in range(1000):
        if await windows.hit("alice") is None:
            admitted.append(clock.now)
        clock.advance(0.7)
    for first, eleventh in zip(admitted, admitted[10:], strict=False):
        assert eleventh - first >= WINDOW_S - 0.001
    assert len(admitted) == pytest.approx(1000 * 0.7 / WINDOW_S * 10, abs=10)


async def test_users_who_are_gone_are_forgotten(clock: FakeClock) -> None:
    windows = MemoryWindows(1, clock)
    for number in range(100):
        await windows.hit(f"user-{number}")
    clock.advance(WINDOW_S)
    await windows.hit("alice")
    clock.advance(WINDOW_S)
    await windows.hit("alice")
    assert len(windows) <= 2


async def test_counting_in_memory_costs_microseconds_with_many_users() -> None:
    windows = MemoryWindows(1_000_000)
    users = [f"user-{number}" for number in range(10_000)]
    began = time.process_time()
    for user in users:
        await windows.hit(user)
    assert (time.process_time() - began) / len(users) < 50e-6


async def test_two_gateways_count_together(server: RedisServer) -> None:
    stores = [Store(server.address, question_s=PATIENT_S) for _ in range(2)]
    try:
        windows = [StoreWindows(store, "request", 3) for store in stores]
        assert [await windows[turn % 2].hit("alice") for turn in range(3)] == [None] * 3
        for one in windows:
            wait_s = await one.hit("alice")
            assert wait_s is not None
            assert 50 < wait_s <= 60
        assert await windows[0].hit("bob") is None
    finally:
        for store in stores:
            await store.close()


async def test_a_password_that_is_refused_is_told_from_a_store_that_is_away(
    server: RedisServer,
) -> None:
    for password in ("", ":another@"):
        address = Secret(f"redis://{password}127.0.0.1:{server.port}/0")
        store = Store(address, question_s=PATIENT_S)
        with pytest.raises(StoreAwayError, match="refused the user name or password") as caught:
            await StoreWindows(store, "request", 1).hit("alice")
        assert caught.value.is_refused
        await store.close()


async def test_kinds_are_counted_apart(store: Store) -> None:
    assert await StoreWindows(store, "request", 1).hit("alice") is None
    assert await StoreWindows(store, "test", 1).hit("alice") is None


async def test_a_burst_lets_exactly_as_many_through_as_may(store: Store) -> None:
    windows = StoreWindows(store, "request", 70)
    answers = await asyncio.gather(*(windows.hit("alice") for _ in range(100)))
    assert answers.count(None) == 70


async def test_a_store_that_went_away_is_noticed_and_used_again(
    server: RedisServer, store: Store
) -> None:
    windows = StoreWindows(store, "request", 10)
    assert await windows.hit("alice") is None
    server.stop()
    with pytest.raises(StoreAwayError) as caught:
        await windows.hit("alice")
    assert PASSWORD not in str(caught.value)
    server.start()
    assert await windows.hit("alice") is None


async def test_a_store_that_hangs_holds_nobody_up_for_long(server: RedisServer) -> None:
    store = Store(server.address, question_s=1)
    windows = StoreWindows(store, "request", 1)
    await windows.hit("alice")
    server.halt()
    with pytest.raises(StoreAwayError):
        await windows.hit("bob")
    server.go_on()
    # An answer that came too late is nobody else's.
    assert await windows.hit("carol") is None
    assert await windows.hit("alice") is not None
    await store.close()


async def test_what_may_be_used_once_is_remembered_for_all_gateways(store: Store) -> None:
    assert await store.take_once("x", 60)
    assert not await store.take_once("x", 60)
    assert await store.take_once("y", 60)


async def test_a_question_that_was_repeated_after_a_broken_connection_was_asked_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_set = store._client.set

    async def set_twice(*args: Any, **options: Any) -> Any:
        assert await really_set(*args, **options)  # its answer is lost
        return await really_set(*args, **options)

    monkeypatch.setattr(store._client, "set", set_twice)
    assert await store.take_once("x", 60)
    monkeypatch.undo()
    assert not await store.take_once("x", 60)


@pytest.mark.parametrize(
    "address",
    ["redis-cli", "http://secret@host", "redis://", "redis://:secret@host:port/0", "://secret"],
)
def test_an_address_that_is_none_is_refused_without_being_shown(address: str) -> None:
    with pytest.raises(ConfigError, match=r"limits\.store") as caught:
        Store(Secret(address))
    assert "secret" not in str(caught.value)


async def test_who_leaves_while_they_are_counted_has_left(store: Store) -> None:
    windows = StoreWindows(store, "request", 100_000)
    await windows.hit("alice")
    for turns in range(40):
        asking = asyncio.ensure_future(windows.hit("alice"))
        for _ in range(turns):
            await asyncio.sleep(0)
        was_under_way = asking.cancel()
        await asyncio.wait((asking,))
        assert asking.cancelled() is was_under_way, f"after {turns} turns"


async def test_a_store_whose_answer_came_while_this_process_was_busy_has_answered(
    server: RedisServer,
) -> None:
    store = Store(server.address, question_s=NEVER_S)
    windows = StoreWindows(store, "request", 10)
    assert await windows.hit("alice") is None
    asking = asyncio.create_task(windows.hit("alice"))
    for _ in range(8):
        await asyncio.sleep(0)
        skip(100 * NEVER_S)  # this process did something else for so long
    assert await asking is None
    await store.close()
