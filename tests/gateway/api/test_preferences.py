from typing import Any

import pytest
from sqlalchemy import delete, select

from byoai_gateway.preferences.preferences import Setting
from byoai_gateway.preferences.rows import place_of
from byoai_gateway.schema import audit_log, secrets
from support.control import Api, bearer

PATH = "/api/user-preferences/ai-provider"
KEY = "sk-or-v1-canary-0123456789abcd"
LOCAL_KEY = "a-local-canary-0123456789wxyz"
NOTHING: dict[str, Any] = {
    "aiProvider": "default",
    "openRouterApiKey": None,
    "openRouterModelPreference": None,
    "selfHostedModelPreference": None,
    "alwaysUseMyModel": False,
    "fallbackToDefault": False,
    "tunnelId": None,
    "selfHostedUrl": None,
    "selfHostedAuthKey": None,
    "needsAttention": [],
    "updatedAt": None,
}
URL = "https://models.example.com/v1"


async def saved(api: Api, user: str, **fields: Any) -> Any:
    status, answer = await api.call("POST", PATH, user, fields)
    assert status == 200, answer
    return answer


async def shown(api: Api, user: str) -> Any:
    status, answer = await api.call("GET", PATH, user)
    assert status == 200, answer
    return answer


async def test_who_never_saved_sees_the_default(api: Api) -> None:
    assert await shown(api, "alice") == NOTHING


async def test_keys_go_in_and_only_their_end_comes_out(api: Api) -> None:
    answer = await saved(api, "alice", aiProvider="openrouter", openRouterApiKey=KEY)
    key = answer["openRouterApiKey"]
    assert (key["lastFour"], key["needsReentry"]) == ("abcd", False)
    assert "canary" not in repr(answer)
    assert answer == await shown(api, "alice")
    assert answer["updatedAt"] == api.clock()
    # The same key of somebody else has another name.
    theirs = await saved(api, "bob", openRouterApiKey=KEY)
    assert theirs["openRouterApiKey"]["fingerprint"] != key["fingerprint"]


async def test_of_a_short_key_not_even_the_end_is_shown(api: Api) -> None:
    answer = await saved(api, "alice", selfHostedAuthKey="short")
    assert answer["selfHostedAuthKey"]["lastFour"] is None


async def test_fields_that_are_left_out_stay_and_null_deletes(api: Api) -> None:
    await saved(api, "alice", openRouterApiKey=KEY, openRouterModelPreference="a/b")
    answer = await saved(api, "alice", fallbackToDefault=True)
    assert answer["openRouterModelPreference"] == "a/b"
    assert answer["openRouterApiKey"]["lastFour"] == "abcd"
    answer = await saved(api, "alice", openRouterApiKey=None, openRouterModelPreference=None)
    assert answer == {**NOTHING, "fallbackToDefault": True, "updatedAt": answer["updatedAt"]}
    assert await saved(api, "alice") == answer


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"aiProvider": "chatgpt"}, ["aiProvider"]),
        ({"aiProvider": None}, ["aiProvider"]),
        ({"aiProvider": 7}, ["aiProvider"]),
        ({"openRouterApiKey": ""}, ["openRouterApiKey"]),
        ({"openRouterApiKey": "with a space"}, ["openRouterApiKey"]),
        ({"openRouterApiKey": "canary\n"}, ["openRouterApiKey"]),
        ({"openRouterApiKey": "k" * 4097}, ["openRouterApiKey"]),
        ({"openRouterApiKey": {"$ne": 1}}, ["openRouterApiKey"]),
        ({"openRouterModelPreference": ["a"]}, ["openRouterModelPreference"]),
        ({"openRouterModelPreference": "a\x00b"}, ["openRouterModelPreference"]),
        ({"openRouterModelPreference": ""}, ["openRouterModelPreference"]),
        ({"openRouterModelPreference": "  "}, ["openRouterModelPreference"]),
        ({"openRouterModelPreference": "\u202e\u0085x"}, ["openRouterModelPreference"]),
        ({"selfHostedModelPreference": "a\x00b"}, ["selfHostedModelPreference"]),
        ({"selfHostedModelPreference": ""}, ["selfHostedModelPreference"]),
        ({"selfHostedModelPreference": "m" * 201}, ["selfHostedModelPreference"]),
        (
            {"openRouterModelPreference": " ", "selfHostedModelPreference": " "},
            ["openRouterModelPreference", "selfHostedModelPreference"],
        ),
        ({"alwaysUseMyModel": "yes"}, ["alwaysUseMyModel"]),
        ({"alwaysUseMyModel": None}, ["alwaysUseMyModel"]),
        ({"fallbackToDefault": "yes"}, ["fallbackToDefault"]),
        ({"fallbackToDefault": None}, ["fallbackToDefault"]),
        ({"tunnelId": 7}, ["tunnelId"]),
        ({"selfHostedUrl": True}, ["selfHostedUrl"]),
        ({"selfHostedUrl": "http://models.example.com/v1"}, ["selfHostedUrl"]),
        ({"selfHostedUrl": "https://127.0.0.1/v1"}, ["selfHostedUrl"]),
        ({"selfHostedUrl": "https://user:canary@example.com/"}, ["selfHostedUrl"]),
        ({"selfHostedUrl": "https://models.example.com/v1/chat/completions"}, ["selfHostedUrl"]),
        ({"selfHostedUrl": "https://models.example.com /v1"}, ["selfHostedUrl"]),
        ({"openRouterApiKey": "sk-or-canary\n"}, ["openRouterApiKey"]),
        ({"selfHostedAuthKey": "sk canary"}, ["selfHostedAuthKey"]),
        ({"selfHostedAuthKey": 7.5}, ["selfHostedAuthKey"]),
        ({"aiProvider": 7, "tunnelId": 7, "more": 1}, ["aiProvider", "tunnelId", "more"]),
        ({"aiProvider": "openrouter"}, ["openRouterApiKey"]),
    ],
)
async def test_each_wrong_field_has_its_sentence_and_nothing_is_saved(
    api: Api, body: Any, fields: list[str]
) -> None:
    status, answer = await api.call("POST", PATH, "alice", {"fallbackToDefault": True, **body})
    assert status == 400
    assert list(answer["fields"]) == fields
    assert all(answer["fields"].values())
    assert answer["error"]["param"] == fields[0]
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert "canary" not in repr(answer)
    assert await shown(api, "alice") == NOTHING


@pytest.mark.parametrize("body", [[], "text", 7])
async def test_a_body_that_is_no_object_is_refused(api: Api, body: Any) -> None:
    status, answer = await api.call("POST", PATH, "alice", body)
    assert (status, answer["error"]["code"]) == (400, "invalid_body")
    assert "fields" not in answer


async def test_a_model_server_is_reached_by_tunnel_or_by_address(api: Api) -> None:
    tunnel_id = (await api.register("alice"))["tunnelId"]
    answer = await saved(api, "alice", aiProvider="self-hosted", tunnelId=tunnel_id)
    assert answer["tunnelId"] == tunnel_id
    status, refused = await api.call("POST", PATH, "alice", {"selfHostedUrl": URL})
    assert (status, list(refused["fields"])) == (400, ["selfHostedUrl"])
    answer = await saved(api, "alice", tunnelId=None, selfHostedUrl=URL)
    assert (answer["tunnelId"], answer["selfHostedUrl"]) == (None, URL)


async def test_somebody_elses_tunnel_is_told_at_its_field_in_the_words_for_none(api: Api) -> None:
    theirs = (await api.register("bob"))["tunnelId"]
    answers = [
        await api.call("POST", PATH, "alice", {"tunnelId": it}) for it in (theirs, "t" + "a" * 20)
    ]
    assert answers[0] == answers[1]
    status, answer = answers[0]
    assert (status, answer["error"]["code"]) == (404, "tunnel_not_found")
    assert answer["error"]["param"] == "tunnelId"
    assert answer["fields"] == {"tunnelId": answer["error"]["message"]}


async def test_a_key_as_long_as_a_test_takes_can_be_saved(api: Api) -> None:
    await saved(api, "alice", openRouterApiKey="k" * 4096)


@pytest.mark.parametrize(
    "body",
    [
        {"aiProvider": "self-hosted"},
        {"tunnelId": "anything"},
        {"selfHostedUrl": URL},
        {"selfHostedAuthKey": LOCAL_KEY},
    ],
)
async def test_self_hosting_is_saved_with_the_plan_only(api: Api, body: Any) -> None:
    headers = {"Authorization": bearer("alice", api.clock, plan="free")}
    status, answer = await api.call("POST", PATH, None, body, **headers)
    assert (status, answer["error"]["code"]) == (403, "plan_required")


async def test_a_plan_that_lapses_keeps_the_settings_and_lets_the_rest_be_changed(
    api: Api,
) -> None:
    await saved(
        *(api, "alice"), aiProvider="self-hosted", selfHostedUrl=URL, selfHostedAuthKey=LOCAL_KEY
    )
    headers = {"Authorization": bearer("alice", api.clock, plan="free")}
    status, answer = await api.call("GET", PATH, None, **headers)
    assert (status, answer["aiProvider"], answer["selfHostedUrl"]) == (200, "self-hosted", URL)
    change: Any = {"fallbackToDefault": True, "selfHostedAuthKey": None}
    status, answer = await api.call("POST", PATH, None, change, **headers)
    assert (status, answer["selfHostedUrl"], answer["selfHostedAuthKey"]) == (200, URL, None)
    # A form sends what it shows along with what was changed in it.
    change = {"aiProvider": "default", "selfHostedUrl": URL, "tunnelId": None}
    status, answer = await api.call("POST", PATH, None, change, **headers)
    assert (status, answer["aiProvider"], answer["selfHostedUrl"]) == (200, "default", URL)
    change = {"selfHostedUrl": URL + "/other"}
    assert (await api.call("POST", PATH, None, change, **headers))[0] == 403


async def test_a_key_does_not_follow_its_address_to_another_server(api: Api) -> None:
    await saved(api, "alice", selfHostedUrl=URL, selfHostedAuthKey=LOCAL_KEY)
    answer = await saved(api, "alice", selfHostedUrl=URL + "/other")
    assert (answer["selfHostedAuthKey"]["lastFour"], answer["needsAttention"]) == ("wxyz", [])
    answer = await saved(api, "alice", selfHostedUrl="https://models.example.org/v1")
    assert answer == await shown(api, "alice")
    assert answer["selfHostedAuthKey"] is None
    (attention,) = answer["needsAttention"]
    assert "another server" in attention.pop("message")
    since = int(api.clock())
    assert attention == {"setting": "selfHostedAuthKey", "code": "address_changed", "since": since}
    # Back at the first address the key does not return; a new one settles it.
    assert (await saved(api, "alice", selfHostedUrl=URL))["selfHostedAuthKey"] is None
    answer = await saved(api, "alice", selfHostedAuthKey=LOCAL_KEY)
    assert (answer["selfHostedAuthKey"]["lastFour"], answer["needsAttention"]) == ("wxyz", [])
    # Nor does it wait for the next address.
    answer = await saved(api, "alice", selfHostedUrl=None)
    assert (answer["selfHostedAuthKey"], answer["needsAttention"]) == (None, [])
    async with api.control.database.reading() as connection:
        entries = (await connection.execute(select(audit_log).order_by(audit_log.c.entry_id))).all()
    emptied = [it.emptied for it in entries]
    assert emptied[2] == ["selfHostedAuthKey"]


async def test_a_key_is_kept_when_the_change_of_its_address_is_refused(api: Api) -> None:
    await saved(api, "alice", selfHostedUrl=URL, selfHostedAuthKey=LOCAL_KEY)
    body = {"selfHostedUrl": "https://models.example.org/v1", "tunnelId": "t" + "a" * 20}
    status, _ = await api.call("POST", PATH, "alice", body)
    assert status == 404
    assert (await shown(api, "alice"))["selfHostedAuthKey"]["lastFour"] == "wxyz"


async def test_what_stopped_working_is_shown_with_what_to_do(api: Api) -> None:
    await saved(api, "alice", aiProvider="openrouter", openRouterApiKey=KEY)
    store = api.control.preferences
    used = await store.of("alice")
    await store.note_attention("alice", Setting.OPENROUTER_KEY, "key_refused", used)
    (attention,) = (await shown(api, "alice"))["needsAttention"]
    assert attention.pop("message")
    expected = {"setting": "openRouterApiKey", "code": "key_refused", "since": int(api.clock())}
    assert attention == expected


async def test_a_key_that_is_missing_or_does_not_open_is_never_silently_empty(api: Api) -> None:
    await saved(api, "alice", aiProvider="openrouter", openRouterApiKey=KEY)
    place = place_of("alice", Setting.OPENROUTER_KEY)
    async with api.control.database.writing() as connection:
        await connection.execute(
            secrets.update().where(secrets.c.owner == place.owner).values(sealed=b"\x01damaged")
        )
    answer = await shown(api, "alice")
    assert answer["openRouterApiKey"] == {
        "lastFour": None,
        "fingerprint": None,
        "needsReentry": True,
    }
    assert [it["code"] for it in answer["needsAttention"]] == ["needs_reentry"]
    async with api.control.database.writing() as connection:
        await connection.execute(delete(secrets).where(secrets.c.owner == place.owner))
    answer = await shown(api, "alice")
    assert answer["openRouterApiKey"] is None
    assert [it["code"] for it in answer["needsAttention"]] == ["missing"]


async def test_an_audit_entry_names_its_request(api: Api) -> None:
    body = {"fallbackToDefault": True}
    await api.call("POST", PATH, "alice", body, **{"X-Request-Id": "req-7"})
    async with api.control.database.reading() as connection:
        (entry,) = (await connection.execute(select(audit_log))).all()
    assert (entry.user_id, entry.request_id) == ("alice", "req-7")
