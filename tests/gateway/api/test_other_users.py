"""User A on what is user B's: preferences, keys, tunnels and status, each read, written, deleted.

Every cell is answered as if there were nothing, and leaves everything as it was.
"""

from typing import Any, NamedTuple

import pytest

from support.control import Api

PREFERENCES = "/api/user-preferences/ai-provider"
ABSENT = "t" + "a" * 20
BOBS = {
    "aiProvider": "openrouter",
    "openRouterApiKey": "sk-or-v1-canary-0123456789abcd",
    "fallbackToDefault": True,
}
MODEL = {"name": "smollm2", "capabilities": ["text-generation"]}


class Cell(NamedTuple):
    what: str
    how: str
    method: str
    path: str
    body: Any = None


ABOUT_BOB = f"{PREFERENCES}?userId=bob"
TUNNEL = "/api/tunnel/{tunnel}"
STATUS = "/api/tunnel/status/{tunnel}"
WITHOUT_KEY = {"userId": "bob", "openRouterApiKey": None}

CELLS = (
    Cell("preferences", "read", "GET", ABOUT_BOB),
    Cell("preferences", "write", "POST", PREFERENCES, {"userId": "bob", "aiProvider": "default"}),
    Cell("preferences", "delete", "POST", ABOUT_BOB, {"openRouterModelPreference": None}),
    Cell("keys", "read", "POST", PREFERENCES, {"userId": "bob"}),
    Cell("keys", "write", "POST", PREFERENCES, {"userId": "bob", "openRouterApiKey": "mine"}),
    Cell("keys", "delete", "POST", PREFERENCES, WITHOUT_KEY),
    Cell("tunnels", "read", "GET", "/api/tunnel?userId=bob"),
    Cell("tunnels", "write", "POST", PREFERENCES, {"tunnelId": "{tunnel}"}),
    Cell("tunnels", "delete", "DELETE", TUNNEL),
    Cell("status", "read", "GET", STATUS),
    Cell("status", "write", "POST", TUNNEL + "/rotate"),
    Cell("status", "delete", "DELETE", TUNNEL + "/agents/anything"),
)
OTHERS = (
    Cell("tunnels", "register", "POST", "/api/tunnel/register?userId=bob", {"modelInfo": MODEL}),
    Cell("tunnels", "invite", "POST", TUNNEL + "/agents"),
    Cell("tunnels", "invite for", "POST", TUNNEL + "/agents", {"userId": "bob"}),
    Cell("status", "write for", "POST", TUNNEL + "/rotate", {"userId": "bob"}),
    Cell("tunnels", "delete for", "DELETE", TUNNEL, {"userId": "bob"}),
    Cell("models", "read", "GET", "/api/ai/models?userId=bob"),
    Cell("models", "look at", "GET", "/api/ai/models?provider=openrouter&userId=bob"),
)


def filled(cell: Cell, tunnel_id: str) -> tuple[str, str, Any]:
    names_tunnel = cell.body is not None and "tunnelId" in cell.body
    body = {"tunnelId": tunnel_id} if names_tunnel else cell.body
    return cell.method, cell.path.format(tunnel=tunnel_id), body


async def everything_of(api: Api, user: str, tunnel_id: str) -> Any:
    paths = (PREFERENCES, "/api/tunnel", f"/api/tunnel/status/{tunnel_id}")
    return [await api.call("GET", path, user) for path in paths]


@pytest.mark.parametrize("cell", CELLS + OTHERS, ids=lambda it: f"{it.how}-{it.what}")
async def test_what_is_another_users_is_not_found_and_stays(api: Api, cell: Cell) -> None:
    assert (await api.call("POST", PREFERENCES, "bob", BOBS))[0] == 200
    tunnel_id = (await api.register("bob"))["tunnelId"]
    before = await everything_of(api, "bob", tunnel_id)
    method, path, body = filled(cell, tunnel_id)
    answer = await api.call(method, path, "alice", body)
    assert answer[0] == 404
    assert "canary" not in repr(answer)
    # In the very words used for what does not exist.
    method, path, body = filled(cell, ABSENT)
    assert await api.call(method, path, "alice", body) == answer
    assert await everything_of(api, "bob", tunnel_id) == before


async def test_a_body_that_may_be_left_out_is_not_ignored(api: Api) -> None:
    tunnel_id = (await api.register("alice"))["tunnelId"]
    path = f"/api/tunnel/{tunnel_id}"
    for method, target in (("POST", path + "/rotate"), ("POST", path + "/agents")):
        assert (await api.call(method, target, "alice", {"userId": "bob"}))[0] == 404
        assert (await api.call(method, target, "alice", {"user": "bob"}))[0] == 400
        assert (await api.call(method, target, "alice", {"userId": "alice"}))[0] < 300
        assert (await api.call(method, target, "alice"))[0] < 300
    assert (await api.call("DELETE", path, "alice", {"userId": "bob"}))[0] == 404
    assert (await api.call("DELETE", path, "alice"))[0] == 200


async def test_who_names_themselves_is_answered(api: Api) -> None:
    status, _ = await api.call("GET", f"{PREFERENCES}?userId=alice", "alice")
    assert status == 200
    status, _ = await api.call("POST", PREFERENCES, "alice", {"userId": "alice"})
    assert status == 200
