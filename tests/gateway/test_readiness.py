import asyncio

import pytest

from byoai_gateway import readiness
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.database import Database, DatabaseUnavailable
from byoai_gateway.readiness import Readiness
from support.control import RelayLinksAsTold

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


async def hanging(_: Database) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("ping", [gone, hanging])
async def test_it_is_not_ready_without_its_database(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch, ping: object
) -> None:
    monkeypatch.setattr(readiness, "_PING_S", 0.01)
    monkeypatch.setattr(Database, "ping", ping)
    it = Readiness(control.database, RelayLinksAsTold(BOTH, BOTH))
    assert await it.why_not() == "the database does not answer"


async def test_every_reason_is_said(control: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    async def why_not() -> str:
        return "no user can sign in"

    async def fine() -> str:
        return ""

    monkeypatch.setattr(Database, "ping", gone)
    it = Readiness(control.database, RelayLinksAsTold(BOTH), (fine, why_not))
    assert (await it.why_not()).split("; ") == [
        "none of the 2 relays is connected",
        "the log says why (relay.unreachable)",
        "no user can sign in",
        "the database does not answer",
    ]
    assert await it.unmet() == ("no user can sign in", "the database does not answer")


async def test_warnings_leave_it_ready(control: ControlPlane) -> None:
    it = Readiness(control.database, RelayLinksAsTold(), warnings=lambda: ("no default provider",))
    assert await it.why_not() == ""
    assert it.warnings() == ("no default provider",)
