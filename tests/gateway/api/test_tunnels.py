from typing import Any, NoReturn

import pytest

from byoai_gateway.config import GatewayConfig
from byoai_gateway.database import DatabaseUnavailable
from byoai_gateway.refusals import Refusal
from byoai_shared.enrolment import decode_error
from byoai_shared.joincode import decode
from byoai_shared.keys import new_key
from byoai_shared.protocol.control import Presence, PresenceState, Status, UpstreamHealth
from support.control import Api, FakeAgent, bearer, joined_agent

REGISTER = "/api/tunnel/register"
MODEL = {"name": "smollm2", "capabilities": ["text-generation", "embeddings"]}


async def join(api: Api, registered: dict[str, Any]) -> FakeAgent:
    code = decode(registered["joinCode"])
    agent = FakeAgent(api.control, code.tunnel_id)
    await agent.enrol(code.secret.reveal())
    return agent


async def test_registering_gives_a_join_code_for_the_public_address(api: Api) -> None:
    status, answer = await api.call("POST", REGISTER, "alice", {"modelInfo": MODEL})
    assert status == 201
    code = decode(answer["joinCode"])
    assert code.gateway_url == "https://gateway.example.com"
    assert code.tunnel_id == answer["tunnelId"]
    assert code.ca_sha256 is None
    assert answer["joinCommand"] == f"byoai-agent join {answer['joinCode']}"
    assert answer["expiresAt"] == api.clock() + 900


async def test_self_hosting_needs_the_plan(api: Api) -> None:
    headers = {"Authorization": bearer("alice", api.clock, plan="free")}
    status, answer = await api.call("POST", REGISTER, None, {"modelInfo": MODEL}, **headers)
    assert (status, answer["error"]["code"]) == (403, "plan_required")
    registered = await api.register("alice")
    path = f"/api/tunnel/{registered['tunnelId']}"
    status, answer = await api.call("POST", path + "/agents", None, **headers)
    assert (status, answer["error"]["code"]) == (403, "plan_required")
    # Who no longer pays may still look and tidy up.
    assert (await api.call("GET", "/api/tunnel", None, **headers))[0] == 200
    assert (await api.call("DELETE", path, None, **headers))[0] == 200


@pytest.mark.parametrize(("user_id", "expected"), [("alice", 201), ("bob", 404)])
async def test_a_body_may_not_speak_for_another_user(api: Api, user_id: str, expected: int) -> None:
    body = {"modelInfo": MODEL, "userId": user_id}
    status, answer = await api.call("POST", REGISTER, "alice", body)
    assert status == expected
    if expected == 404:
        assert answer["error"]["code"] == "user_not_found"
        assert answer["error"]["param"] == "userId"
        assert (await api.call("GET", "/api/tunnel", "bob"))[1] == {"tunnels": []}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "modelInfo"),
        ({"modelInfo": {}}, "modelInfo.name"),
        ({"modelInfo": {"name": ""}}, "modelInfo.name"),
        ({"modelInfo": {"name": 7}}, "modelInfo.name"),
        ({"modelInfo": {"name": "a\x00b"}}, "modelInfo.name"),
        ({"modelInfo": {"name": "a\n"}}, "modelInfo.name"),
        ({"modelInfo": {"name": "x" * 201}}, "modelInfo.name"),
        ({"modelInfo": {"name": "x", "capabilities": [7]}}, "modelInfo.capabilities[0]"),
        ({"modelInfo": {"name": "x", "capabilities": ["a"] * 17}}, "modelInfo.capabilities"),
        ({"modelInfo": {"name": "x", "sise": 7}}, "modelInfo.sise"),
        ({"modelInfo": MODEL, "admin": True}, "admin"),
        ([], None),
        (None, None),
    ],
)
async def test_a_body_of_another_shape_is_refused_by_its_field(
    api: Api, body: Any, param: str | None
) -> None:
    status, answer = await api.call("POST", REGISTER, "alice", body)
    assert status == 400
    assert answer["error"]["param"] == param
    assert set(answer["error"]) == {"message", "type", "param", "code"}


async def test_without_a_token_nothing_is_answered(api: Api) -> None:
    for method, path in (
        ("POST", REGISTER),
        ("GET", "/api/tunnel"),
        ("GET", "/api/tunnel/status/a"),
        ("DELETE", "/api/tunnel/a"),
        ("POST", "/api/tunnel/a/rotate"),
        ("POST", "/api/tunnel/a/agents"),
        ("DELETE", "/api/tunnel/a/agents/b"),
        ("POST", "/api/tunnel/a/agents/b/unlock"),
    ):
        for headers in ({}, {"Authorization": "Bearer nonsense"}):
            async with api.http.request(method, path, headers=headers) as response:
                assert response.status == 401, path
                assert response.headers["WWW-Authenticate"] == "Bearer"
                error = decode_error(await response.read())
                assert error is not None
                assert error.code == "invalid_api_key"


async def test_another_users_tunnel_is_answered_as_if_it_did_not_exist(api: Api) -> None:
    registered = await api.register("alice")
    tunnel_id = registered["tunnelId"]
    for method, path in (
        ("GET", "/api/tunnel/status/{}"),
        ("DELETE", "/api/tunnel/{}"),
        ("POST", "/api/tunnel/{}/rotate"),
        ("POST", "/api/tunnel/{}/agents"),
        ("DELETE", "/api/tunnel/{}/agents/a"),
        ("POST", "/api/tunnel/{}/agents/a/unlock"),
    ):
        theirs = await api.call(method, path.format(tunnel_id), "bob")
        nobodys = await api.call(method, path.format("a" * 26), "bob")
        assert theirs == nobodys
        assert theirs[0] == 404
    assert (await api.call("GET", f"/api/tunnel/status/{tunnel_id}", "alice"))[0] == 200


async def test_the_status_of_a_tunnel_nobody_has_joined(api: Api) -> None:
    registered = await api.register("alice")
    status, shown = await api.call("GET", f"/api/tunnel/status/{registered['tunnelId']}", "alice")
    assert status == 200
    assert shown == {
        "tunnelId": registered["tunnelId"],
        "state": "active",
        "modelInfo": {"name": "smollm2", "capabilities": ["text-generation"]},
        "createdAt": api.clock(),
        "online": False,
        "offline": {
            "code": "agent_never_joined",
            "message": shown["offline"]["message"],
            "since": None,
            "reason": None,
            "retryAfterS": 30,
        },
        "relays": [],
        "models": [],
        "health": "unknown",
        "roundTripMs": None,
        "needsAttention": [],
        "inFlight": 0,
        "queued": 0,
        "capacity": 0,
        "agents": [],
    }


async def test_the_status_of_a_tunnel_at_work(api: Api) -> None:
    registered = await api.register("alice")
    agent = await join(api, registered)
    api.clock.advance(100)
    presence = Presence(
        tunnel_id=agent.tunnel_id,
        agent_id=agent.agent_id,
        instance="i",
        epoch=1,
        state=PresenceState.ONLINE,
        status=Status(
            models=("smollm2",), in_flight=2, queued=1, capacity=8, health=UpstreamHealth.HEALTHY
        ),
        round_trip_us=1500,
    )
    api.presence.update("wss://relay:2", presence)
    _, shown = await api.call("GET", f"/api/tunnel/status/{agent.tunnel_id}", "alice")
    assert shown["online"] is True
    assert shown["relays"] == ["wss://relay:2"]
    assert shown["models"] == ["smollm2"]
    assert shown["health"] == "healthy"
    assert shown["roundTripMs"] == 1.5
    assert (shown["inFlight"], shown["queued"], shown["capacity"]) == (2, 1, 8)
    (one,) = shown["agents"]
    assert one["agentId"] == agent.agent_id
    assert one["online"] is True
    assert one["tokenAgeS"] == 100
    assert one["certificateExpiresAt"] == api.clock() - 100 + 86_400
    assert one["keyFingerprint"].startswith("SHA256:")
    _, listed = await api.call("GET", "/api/tunnel", "alice")
    assert listed == {"tunnels": [shown]}


async def test_a_deleted_tunnel_is_denied_at_once_and_gone(api: Api) -> None:
    registered = await api.register("alice")
    await join(api, registered)
    path = f"/api/tunnel/{registered['tunnelId']}"
    status, answer = await api.call("DELETE", path, "alice")
    assert (status, answer["tunnelId"]) == (200, registered["tunnelId"])
    (denial,) = (await api.control.trust.since(0)).denials
    assert denial.subject == registered["tunnelId"]
    assert (await api.call("DELETE", path, "alice"))[0] == 404
    assert (await api.call("GET", "/api/tunnel", "alice"))[1] == {"tunnels": []}


async def test_another_agent_joins_with_a_code_of_its_own(api: Api) -> None:
    registered = await api.register("alice")
    await join(api, registered)
    path = f"/api/tunnel/{registered['tunnelId']}/agents"
    status, invited = await api.call("POST", path, "alice")
    assert status == 201
    second = await join(api, invited)
    _, shown = await api.call("GET", f"/api/tunnel/status/{second.tunnel_id}", "alice")
    assert len(shown["agents"]) == 2

    status, removed = await api.call("DELETE", f"{path}/{second.agent_id}", "alice")
    assert (status, removed["agentId"]) == (200, second.agent_id)
    (denial,) = (await api.control.trust.since(0)).denials
    assert denial.subject == f"{second.tunnel_id}/{second.agent_id}"
    assert (await api.call("DELETE", f"{path}/{second.agent_id}", "alice"))[0] == 404


async def test_a_locked_agent_is_shown_and_unlocked_with_one_call(api: Api) -> None:
    agent = await joined_agent(api.control)
    stolen, following = agent.key, new_key()
    await agent.renew(following)
    with pytest.raises(Refusal):
        await agent.renew(new_key(), by=stolen)
    status_path = f"/api/tunnel/status/{agent.tunnel_id}"
    (shown,) = (await api.call("GET", status_path, "alice"))[1]["agents"]
    assert shown["state"] == "locked"
    assert shown["problem"]["code"] == "agent_locked"
    assert shown["problem"]["hosts"] == ["gpu-1"]
    path = f"/api/tunnel/{agent.tunnel_id}/agents/{agent.agent_id}/unlock"
    assert (await api.call("POST", path, "bob"))[0] == 404
    status, unlocked = await api.call("POST", path, "alice")
    assert (status, unlocked["agentId"]) == (200, agent.agent_id)
    (shown,) = (await api.call("GET", status_path, "alice"))[1]["agents"]
    assert (shown["state"], shown["problem"]) == ("active", None)


async def test_rotating_says_how_many_agents_are_still_to_fetch(api: Api) -> None:
    registered = await api.register("alice")
    path = f"/api/tunnel/{registered['tunnelId']}/rotate"
    assert (await api.call("POST", path, "alice"))[1]["agentsToFetch"] == 0
    agent = await join(api, registered)
    api.clock.advance(10)
    assert (await api.call("POST", path, "alice"))[1]["agentsToFetch"] == 1
    await agent.token()
    api.clock.advance(10)
    _, shown = await api.call("POST", path, "alice")
    assert shown == {"tunnelId": registered["tunnelId"], "agentsToFetch": 1}


async def test_answers_are_not_to_be_stored_and_carry_an_id(
    api: Api, config: GatewayConfig
) -> None:
    assert config.relays
    async with api.http.get("/api/tunnel", headers={"x-request-id": "mine"}) as response:
        assert response.headers["x-request-id"] == "mine"
        assert response.headers["Cache-Control"] == "no-store"
    async with api.http.get("/healthz", headers={"x-request-id": "ö" * 5}) as response:
        assert response.headers["x-request-id"].startswith("req_")


async def test_what_was_committed_is_answered_though_relays_cannot_be_told_yet(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database goes away between the change and its publication."""
    agent = await joined_agent(api.control)
    stolen, following = agent.key, new_key()
    await agent.renew(following)
    trust, path = api.control.trust, f"/api/tunnel/{agent.tunnel_id}"
    refresh, fellow = trust.refresh, FakeAgent(api.control, agent.tunnel_id)
    invited = (await api.call("POST", f"{path}/agents", "alice"))[1]
    secret = decode(invited["joinCode"]).secret.reveal()

    async def away() -> NoReturn:
        raise DatabaseUnavailable

    monkeypatch.setattr(trust, "refresh", away)
    with pytest.raises(Refusal) as caught:
        await agent.renew(new_key(), by=stolen)
    assert caught.value.code == "key_replaced"
    fellow.takes_over(agent, following)
    await fellow.enrol(secret)  # the code is spent only for an agent that is told so
    assert (await api.call("DELETE", f"{path}/agents/{fellow.agent_id}", "alice"))[0] == 200
    assert (await api.call("DELETE", path, "alice"))[0] == 200
    monkeypatch.setattr(trust, "refresh", refresh)
    assert await trust.refresh()  # as the periodic look does
    assert {it.subject for it in (await trust.since(0)).denials} == {agent.tunnel_id}


async def test_an_agent_is_unlocked_though_relays_cannot_be_told_yet(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await joined_agent(api.control)
    stolen, following = agent.key, new_key()
    await agent.renew(following)
    with pytest.raises(Refusal):
        await agent.renew(new_key(), by=stolen)

    async def away() -> NoReturn:
        raise DatabaseUnavailable

    monkeypatch.setattr(api.control.trust, "refresh", away)
    path = f"/api/tunnel/{agent.tunnel_id}/agents/{agent.agent_id}/unlock"
    assert (await api.call("POST", path, "alice"))[0] == 200
