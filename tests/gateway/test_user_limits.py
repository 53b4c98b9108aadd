import asyncio
import io
import json
import socket
from collections.abc import AsyncGenerator

import msgspec
import pytest

from byoai_gateway import rate_windows
from byoai_gateway.config import LimitsSection
from byoai_gateway.rate_windows import Store, StoreAwayError
from byoai_gateway.refusals import Refusal
from byoai_gateway.shared_store import ASK_AGAIN_S
from byoai_gateway.user_limits import UserLimits
from byoai_shared import logs
from byoai_shared.secret import Secret
from support.control import FakeClock
from support.logged import Logged
from support.resp import PASSWORD, refusing_store

SETTINGS = LimitsSection(
    requests_per_minute=3, concurrent_requests=2, connection_tests_per_minute=1
)


@pytest.fixture
def limits(clock: FakeClock) -> UserLimits:
    return UserLimits(SETTINGS, clock)


async def make_request(limits: UserLimits, user_id: str = "alice") -> None:
    async with limits.request(user_id):
        pass


async def test_one_request_too_many_in_a_minute(limits: UserLimits, clock: FakeClock) -> None:
    for _ in range(3):
        await make_request(limits)
    clock.advance(20.5)
    with pytest.raises(Refusal) as caught:
        await make_request(limits)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.headers()["Retry-After"] == "40"
    await make_request(limits, "bob")
    clock.advance(39.5)
    await make_request(limits)


async def test_requests_at_a_time(limits: UserLimits) -> None:
    async with limits.request("alice"), limits.request("alice"):
        with pytest.raises(Refusal) as caught:
            await make_request(limits)
        await make_request(limits, "bob")
    assert (caught.value.status, caught.value.code) == (429, "too_many_concurrent_requests")
    assert caught.value.headers()["Retry-After"] == "1"
    await make_request(limits)


async def test_a_place_is_free_again_however_the_request_ended(limits: UserLimits) -> None:
    async def stays() -> None:
        async with limits.request("alice"):
            await asyncio.Event().wait()

    for _ in range(2):
        task = asyncio.create_task(stays())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
    with pytest.raises(ZeroDivisionError):
        async with limits.request("alice"):
            raise ZeroDivisionError
    for _ in range(3):  # refused by the minute, not by places that are still taken
        with pytest.raises(Refusal, match="in this minute"):
            await make_request(limits)


async def test_tests_of_a_connection_have_a_limit_of_their_own(limits: UserLimits) -> None:
    await limits.connection_test("alice")
    with pytest.raises(Refusal, match="too many tests") as caught:
        await limits.connection_test("alice")
    assert caught.value.status == 429
    await make_request(limits)


@pytest.fixture
async def storeless() -> AsyncGenerator[UserLimits]:
    """Limits whose store refuses connections: its port is bound, and nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = Secret(f"redis://:hidden@127.0.0.1:{bound.getsockname()[1]}/0")
        limits = UserLimits(LimitsSection(store=address, when_store_is_down="closed"))
        yield limits
        await limits.close()


async def test_when_closed_without_its_store_it_says_so_once_and_admits_nobody(
    storeless: UserLimits,
) -> None:
    stream = io.StringIO()
    logs.configure(form="json", stream=stream)
    for _ in range(3):
        with pytest.raises(Refusal) as caught:
            await make_request(storeless)
        assert (caught.value.status, caught.value.code) == (503, "limits_unavailable")
        assert caught.value.retry_after_s is not None
    with pytest.raises(Refusal):
        await storeless.connection_test("alice")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "limits.store_away"
    assert "hidden" not in line


async def test_without_a_store_every_request_can_be_counted(limits: UserLimits) -> None:
    assert await limits.why_not() == ""


@pytest.mark.parametrize(
    "error", [b"WRONGPASS invalid username-password pair", b"NOAUTH Authentication required."]
)
async def test_a_store_that_refuses_the_password_is_named(
    error: bytes, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_windows, "QUESTION_S", 30.0)
    async with refusing_store(error) as store:
        limits = UserLimits(LimitsSection(store=store.address, when_store_is_down="closed"))
        for _ in range(2):
            reason = await limits.why_not()
            assert "limits.store refuses the user name or password" in reason
        await limits.close()
    (said,) = logged.lines("limits.store_away")
    assert said["setting"] == "limits.store"
    assert PASSWORD not in logged.text


async def test_a_store_that_nobody_runs_does_not_answer() -> None:
    address = Secret("redis://127.0.0.1:9/0")
    closed = UserLimits(LimitsSection(store=address, when_store_is_down="closed"))
    assert "limits.store does not answer" in await closed.why_not()
    assert closed.shared.degraded() == ""
    await closed.close()
    opened = UserLimits(LimitsSection(store=address))
    assert await opened.why_not() == ""
    assert "limits.store does not answer; this gateway counts by itself" in opened.shared.degraded()
    await opened.close()


async def test_while_its_store_is_away_a_gateway_counts_by_itself_with_the_same_limits(
    clock: FakeClock, logged: Logged
) -> None:
    settings = msgspec.structs.replace(SETTINGS, store=Secret("redis://127.0.0.1:9/0"))
    limits = UserLimits(settings, clock)
    for _ in range(3):
        await make_request(limits)
    with pytest.raises(Refusal) as caught:
        await make_request(limits)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    await limits.connection_test("alice")
    with pytest.raises(Refusal, match="too many tests"):
        await limits.connection_test("alice")
    assert (limits.shared.is_away, limits.shared.answered_alone) == (True, 6)
    (said,) = logged.lines("limits.store_away")
    assert "each gateway counts by itself" in said["next"]
    await limits.close()


async def test_a_store_that_is_away_is_asked_once_a_second_and_found_when_it_is_back(
    clock: FakeClock, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answers: list[float | None] = []

    async def hit(_: Store, _limit: object, user_id: str) -> float | None:
        asked.append(user_id)
        if not answers:
            raise StoreAwayError("TimeoutError")
        return answers.pop()

    monkeypatch.setattr(Store, "hit", hit)
    limits = UserLimits(LimitsSection(store=Secret("redis://127.0.0.1:9/0")), clock)
    for user in ("alice", "bob", "carol"):
        await make_request(limits, user)
    assert asked == ["alice"]
    clock.advance(ASK_AGAIN_S)
    for user in ("dave", "erin"):
        await make_request(limits, user)
    assert asked == ["alice", "dave"]
    clock.advance(ASK_AGAIN_S)
    answers.extend([None, 30.0])
    with pytest.raises(Refusal):
        await make_request(limits, "alice")
    await make_request(limits, "alice")
    assert asked == ["alice", "dave", "alice", "alice"]
    assert not limits.shared.is_away
    assert len(logged.lines("limits.store_back")) == 1
    await limits.close()
