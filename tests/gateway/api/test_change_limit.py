import socket
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from byoai_gateway.config import LimitsSection
from byoai_shared.secret import Secret
from support.control import Api, FakeClock, bearer, gateway_config, open_api

SETTINGS = "/api/user-preferences/ai-provider"


@pytest.fixture
async def narrow(tmp_path: Path, clock: FakeClock) -> AsyncGenerator[Api]:
    config = gateway_config(tmp_path, limits=LimitsSection(changes_per_minute=2))
    async with open_api(config, clock) as opened:
        yield opened


async def test_changes_have_a_limit_for_each_user_whatever_they_change(narrow: Api) -> None:
    tunnel_id = (await narrow.register("alice"))["tunnelId"]
    assert (await narrow.call("POST", SETTINGS, "alice", {"aiProvider": 7}))[0] == 400
    for path in (SETTINGS, f"/api/tunnel/{tunnel_id}/agents", f"/api/tunnel/{tunnel_id}/rotate"):
        status, answer = await narrow.call("POST", path, "alice", {})
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
    # To look is no change, and removals are counted by themselves.
    assert (await narrow.call("GET", SETTINGS, "alice"))[0] == 200
    assert (await narrow.call("DELETE", f"/api/tunnel/{tunnel_id}", "alice"))[0] == 200
    assert (await narrow.call("POST", SETTINGS, "bob", {"fallbackToDefault": True}))[0] == 200


async def test_when_closed_without_their_store_changes_are_refused_and_tunnels_still_revoked(
    tmp_path: Path, clock: FakeClock
) -> None:
    async with open_api(gateway_config(tmp_path), clock) as api:
        tunnel_id = (await api.register("alice"))["tunnelId"]
    with socket.socket() as bound:  # nobody listens on it
        bound.bind(("127.0.0.1", 0))
        away = Secret(f"redis://127.0.0.1:{bound.getsockname()[1]}/0")
        limits = LimitsSection(store=away, when_store_is_down="closed")
        config = gateway_config(tmp_path, limits=limits)
        async with open_api(config, clock) as api:
            status, answer = await api.call("POST", SETTINGS, "alice", {"fallbackToDefault": True})
            assert (status, answer["error"]["code"]) == (503, "limits_unavailable")
            assert (await api.call("GET", SETTINGS, "alice"))[0] == 200
            assert (await api.call("DELETE", f"/api/tunnel/{tunnel_id}", "alice"))[0] == 200


async def test_removals_have_a_limit_of_their_own(tmp_path: Path, clock: FakeClock) -> None:
    config = gateway_config(tmp_path, limits=LimitsSection(removals_per_minute=2))
    async with open_api(config, clock) as api:
        tunnel_id = (await api.register("alice"))["tunnelId"]
        for path in ("/api/tunnel/unknown", f"/api/tunnel/{tunnel_id}/agents/unknown"):
            assert (await api.call("DELETE", path, "alice"))[0] == 404
        bearing = {"Authorization": bearer("alice", clock)}
        async with api.http.delete(f"/api/tunnel/{tunnel_id}", headers=bearing) as response:
            assert response.status == 429
            assert 1 <= int(response.headers["Retry-After"]) <= 60
            assert (await response.json())["error"]["code"] == "rate_limit_exceeded"
        assert (await api.call("GET", f"/api/tunnel/status/{tunnel_id}", "alice"))[0] == 200
        bobs = (await api.register("bob"))["tunnelId"]
        assert (await api.call("DELETE", f"/api/tunnel/{bobs}", "bob"))[0] == 200
