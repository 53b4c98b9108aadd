import asyncio

import pytest

from byoai_gateway import availability, readiness
from byoai_gateway.availability import Availability
from byoai_gateway.config import DatabaseSection
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.database import Database, DatabaseUnavailable
from byoai_gateway.readiness import Readiness
from support.control import FakeClock, RelayLinksAsTold

BOTH = ("wss://a:1", "wss://b:1")


async def test_it_is_ready_with_one_of_its_relays(control: ControlPlane) -> None:
    assert await Readiness(control.database, RelayLinksAsTold(BOTH, BOTH[:1])).why_not() == ""


async def test_it_is_not_ready_while_no_relay_is_connected(control: ControlPlane) -> None:
    reason = await Readiness(control.database, RelayLinksAsTold(BOTH)).why_not()
    assert "none of the 2 relays is connected" in reason


async def test_without_relays_to_connect_to_it_is_ready(control: ControlPlane) -> None:
    assert await Readiness(control.database, RelayLinksAsTold()).why_not() == ""


async def test_it_is_not_ready_when_it_stops(control: ControlPlane) -> None:
    it = Readiness(control.database, RelayLinksAsTold(BOTH, BOTH))
    it.is_stopping = True
    assert await it.why_not() == "it is stopping"


async def gone(_: Database) -> None:
    raise DatabaseUnavailable


def watched(control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Readiness:
    """Readiness of a gateway whose database goes away in this moment."""
    monkeypatch.setattr(control.database, "availability", Availability(clock))
    question = control.database.availability.ask(is_read=True)
    assert question is not None
    control.database.availability.failed(question)
    monkeypatch.setattr(Database, "ping", gone)
    rules = DatabaseSection(stale_s=600, revocations_stale_s=300)
    return Readiness(control.database, RelayLinksAsTold(BOTH, BOTH), rules=rules)


async def test_without_its_database_it_is_degraded_until_what_it_knows_is_too_old(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = watched(control, clock, monkeypatch)
    clock.advance(100)
    assert await it.why_not() == ""
    found = await it.degraded()
    assert "the database has not answered for 100 s" in found
    assert "another 500 s (database.stale_s)" in found
    assert "tunnels for another 200 s (database.revocations_stale_s)" in found
    clock.advance(300)
    assert await it.why_not() == ""
    assert "tunnels are refused (database.revocations_stale_s)" in await it.degraded()
    clock.advance(201)
    assert await it.why_not() == "the database has not answered for 600 s"


async def test_a_database_that_leaves_it_waiting_is_away(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hanging(database: Database) -> None:
        async with database.reading():
            await asyncio.Event().wait()

    monkeypatch.setattr(readiness, "_PING_S", 0.01)
    monkeypatch.setattr(availability, "SILENT_S", 0.01)
    monkeypatch.setattr(Database, "ping", hanging)
    it = Readiness(control.database, RelayLinksAsTold(BOTH, BOTH))
    assert await it.why_not() == ""
    assert "the database has not answered" in await it.degraded()


async def test_a_database_that_takes_no_writes_is_said_and_leaves_it_ready(
    control: ControlPlane,
) -> None:
    it = Readiness(control.database, RelayLinksAsTold(BOTH, BOTH), degradations=(lambda: "limits",))
    assert await it.degraded() == "limits"
    control.database.availability.write_fault = "its disk is full or read-only"
    assert await it.why_not() == ""
    degraded = await it.degraded()
    assert "takes no writes (its disk is full or read-only)" in degraded
    assert "tunnels go offline within tunnels.token_lifetime_s" in degraded


async def test_every_reason_is_said(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def why_not() -> str:
        return "no user can sign in"

    async def fine() -> str:
        return ""

    watched(control, clock, monkeypatch)
    clock.advance(1000)
    it = Readiness(control.database, RelayLinksAsTold(BOTH), (fine, why_not))
    assert (await it.why_not()).split("; ") == [
        "none of the 2 relays is connected",
        "the log says why (relay.unreachable)",
        "no user can sign in",
        "the database has not answered for 600 s",
    ]
    assert await it.unmet() == ("no user can sign in", "the database has not answered for 600 s")


async def test_warnings_leave_it_ready(control: ControlPlane) -> None:
    it = Readiness(control.database, RelayLinksAsTold(), warnings=lambda: ("no default provider",))
    assert await it.why_not() == ""
    assert it.warnings() == ("no default provider",)


class Asked:
    """A condition that answers when a test says so."""

    def __init__(self) -> None:
        self.questions: asyncio.Queue[asyncio.Future[str]] = asyncio.Queue()

    async def condition(self) -> str:
        question = asyncio.get_running_loop().create_future()
        self.questions.put_nowait(question)
        answer: str = await question
        return answer


async def test_however_many_ask_at_once_the_stores_are_asked_one_at_a_time(
    control: ControlPlane,
) -> None:
    asked = Asked()
    it = Readiness(control.database, RelayLinksAsTold(), (asked.condition,))
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(it.why_not())
        question = await asked.questions.get()
        others = [tasks.create_task(it.why_not()) for _ in range(100)]
        await asyncio.sleep(0)
        question.set_result("too early for the others")
        (await asked.questions.get()).set_result("now")
    assert first.result() == "too early for the others"
    assert {it.result() for it in others} == {"now"}
    assert asked.questions.empty()


async def test_one_who_leaves_while_asking_leaves_no_answer(control: ControlPlane) -> None:
    asked = Asked()
    it = Readiness(control.database, RelayLinksAsTold(), (asked.condition,))
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(it.why_not())
        await asked.questions.get()
        second = tasks.create_task(it.why_not())
        await asyncio.sleep(0)
        first.cancel()
        (await asked.questions.get()).set_result("")
    assert second.result() == ""
