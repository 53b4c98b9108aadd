import io
from pathlib import Path
from typing import Any

import pytest

from byoai_gateway import availability
from byoai_gateway.availability import Availability
from byoai_gateway.config import GatewayConfig
from byoai_gateway.database import Database, DatabaseUnavailable
from byoai_gateway.registry import Registry
from byoai_shared import logs
from support.control import Api, FakeClock, gateway_config, open_api
from support.loop_clock import while_time_passes
from support.postgres import PostgresServer


async def test_it_says_that_it_lives_and_is_ready(api: Api) -> None:
    assert await api.call("GET", "/healthz") == (200, {"status": "alive"})
    assert await api.call("GET", "/readyz") == (200, {"status": "ready"})


async def test_without_its_database_for_longer_than_what_it_knows_may_be_used_it_is_not_ready(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(_: Database) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(Database, "ping", gone)
    monkeypatch.setattr(Availability, "silent_s", 599.0)
    assert (await api.call("GET", "/readyz"))[0] == 200
    monkeypatch.setattr(Availability, "silent_s", 601.0)
    assert (await api.call("GET", "/healthz"))[0] == 200
    status, answer = await api.call("GET", "/readyz")
    assert (status, answer["error"]["code"]) == (503, "not_ready")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/api/tunnel/", 404, "not_found"),
        ("PUT", "/api/tunnel/register", 405, "method_not_allowed"),
        ("GET", "/agent/v1/enrol", 405, "method_not_allowed"),
    ],
)
async def test_errors_of_the_framework_have_our_shape(
    api: Api, method: str, path: str, status: int, code: str
) -> None:
    found, answer = await api.call(method, path)
    assert (found, answer["error"]["code"]) == (status, code)
    assert answer["error"]["type"] == "invalid_request_error"


async def test_a_method_that_a_path_does_not_take_is_told_with_those_it_takes(api: Api) -> None:
    async with api.http.put("/api/user-preferences/ai-provider") as answer:
        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")


async def test_a_database_that_is_locked_asks_for_another_try(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_api(config, clock) as api:
        tunnel_id = (await api.register("alice"))["tunnelId"]
        async with api.control.database.writing():
            deleting = api.call("DELETE", f"/api/tunnel/{tunnel_id}", "alice")
            status, answer = await while_time_passes(deleting, config.database.busy_timeout_s)
            assert (status, answer["error"]["code"]) == (503, "database_busy")
            assert (await api.call("GET", "/api/tunnel", "alice"))[0] == 200
        await api.register("alice")


async def test_while_its_database_is_away_calls_answer_503_and_then_work_again(
    postgres: PostgresServer, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "PROBE_EVERY_S", 0.0)
    async with postgres.database() as section:
        config = gateway_config(tmp_path, database=section)
        async with open_api(config, clock) as api:
            tunnel_id = (await api.register("alice"))["tunnelId"]
            postgres.stop()
            try:
                for method, path in (
                    ("GET", "/api/tunnel"),
                    ("DELETE", f"/api/tunnel/{tunnel_id}"),
                ):
                    status, answer = await api.call(method, path, "alice")
                    assert (status, answer["error"]["code"]) == (503, "database_unavailable")
                # It serves what it knows; only the operators' page tells what it is without.
                assert (await api.call("GET", "/readyz"))[0] == 200
                assert (await api.call("GET", "/healthz"))[0] == 200
            finally:
                postgres.start()
            assert (await api.call("GET", "/readyz"))[0] == 200
            status, answer = await api.call("GET", "/api/tunnel", "alice")
            assert [tunnel["tunnelId"] for tunnel in answer["tunnels"]] == [tunnel_id]


async def test_the_unexpected_is_a_500_with_an_id_and_nothing_else(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("a canary")

    log = io.StringIO()
    logs.configure(form="json", stream=log)
    monkeypatch.setattr(Registry, "tunnels_of", broken)
    status, answer = await api.call("GET", "/api/tunnel", "alice", **{"x-request-id": "id-7"})
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert answer["error"]["type"] == "server_error"
    assert "id-7" in answer["error"]["message"]
    assert "canary" not in str(answer)
    assert "id-7" in log.getvalue()


@pytest.mark.parametrize("close", [False, True])
async def test_connections_are_closed_only_when_told_so(
    config: GatewayConfig, clock: FakeClock, *, close: bool
) -> None:
    async with (
        open_api(config, clock, close_connections=close) as api,
        api.http.get("/healthz") as response,
    ):
        assert (response.headers.get("Connection") == "close") is close


@pytest.mark.parametrize("part", ["%00", "a%00b", "%0A", "%ED%A0%80", "%7F", "a" * 5000])
@pytest.mark.parametrize("path", ["/api/tunnel/{}", "/api/tunnel/{}/agents/a"])
async def test_what_no_id_looks_like_is_not_found_on_any_database(
    api: Api, path: str, part: str
) -> None:
    assert (await api.call("DELETE", path.format(part), "alice"))[0] == 404


@pytest.mark.parametrize("user", ["a\0b", "a\ud800", "\n"])
async def test_a_user_whose_id_no_database_can_keep_is_refused(api: Api, user: str) -> None:
    status, answer = await api.call("GET", "/api/tunnel", user)
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")


async def test_a_text_that_no_database_can_keep_is_refused(api: Api) -> None:
    path = "/api/user-preferences/ai-provider"
    for body in ({"tunnelId": "\0"}, {"selfHostedUrl": "https://a.example/\0"}):
        assert (await api.call("POST", path, "alice", body))[0] == 400
