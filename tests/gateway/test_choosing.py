"""What settings, plans and tokens make of a request, through a running gateway."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from byoai_gateway.choosing import SettingsUsed
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.router.ledger import Asked
from byoai_gateway.router.upstream import ProviderName
from support.chain import bring_own, chain
from support.control import FakeAgent, FakeClock, joined_agent
from support.gateway import PREFERENCES, Answer, Gateway, open_gateway
from support.provider import Provider
from support.provider_script import Until, chat_stream, refusal

GOOD = chat_stream("Hello", " there")
MODEL = {"modelInfo": {"name": "smollm2", "capabilities": ["text-generation"]}}
CHAT: dict[str, Any] = {"model": "provider-model", "stream": True, "messages": []}


@asynccontextmanager
async def serving(
    directory: Path, clock: FakeClock, default: Provider, own: Provider, *plans: str
) -> AsyncGenerator[Gateway]:
    async with open_gateway(chain(directory, default, own, plans), clock) as gateway:
        yield gateway


@pytest.fixture
async def gateway(
    tmp_path: Path, clock: FakeClock, default: Provider, own: Provider
) -> AsyncGenerator[Gateway]:
    async with serving(tmp_path, clock, default, own) as opened:
        yield opened


async def shown(gateway: Gateway) -> Any:
    return (await gateway.ask(path=PREFERENCES, method="GET", plan="free")).json


async def answer_costs_nothing(control: ControlPlane) -> bool:
    """Whether an answer of alice's own server leaves nothing to write down."""
    used = SettingsUsed(control.preferences, "alice", await control.preferences.of("alice"))
    work = used.worked(Asked("alice", ProviderName.SELF_HOSTED, used))
    if work is None:
        return True
    work.close()
    return False


async def marked(gateway: Gateway) -> dict[str, str]:
    return {it["setting"]: it["code"] for it in (await shown(gateway))["needsAttention"]}


async def registered(gateway: Gateway) -> str:
    answer = await gateway.ask(MODEL, path="/api/tunnel/register")
    assert answer.status == 201
    return str(answer.json["tunnelId"])


def is_refused(answer: Answer, status: int, code: str) -> bool:
    assert answer.error["message"]
    return (answer.status, answer.error["code"]) == (status, code)


# -- plans


async def test_self_hosting_is_set_up_with_its_plan_only(gateway: Gateway) -> None:
    bodies: list[tuple[str, Any]] = [
        ("/api/tunnel/register", MODEL),
        (PREFERENCES, {"aiProvider": "self-hosted"}),
        (PREFERENCES, {"selfHostedUrl": "https://models.example.com/v1"}),
        (PREFERENCES, {"selfHostedAuthKey": "a-key-of-my-own"}),
    ]
    for path, body in bodies:
        answer = await gateway.ask(body, path=path, plan="free")
        assert is_refused(answer, 403, "plan_required"), path
    assert (await shown(gateway))["updatedAt"] is None


@pytest.mark.parametrize("way", ["tunnel", "address"])
async def test_a_plan_that_lapsed_stops_routing_and_keeps_the_settings(
    gateway: Gateway, default: Provider, way: str
) -> None:
    chosen = (
        {"tunnelId": await registered(gateway)}
        if way == "tunnel"
        else {"selfHostedUrl": "https://models.example.com/v1"}
    )
    await gateway.prefer(aiProvider="self-hosted", fallbackToDefault=True, **chosen)
    before = await shown(gateway)
    answer = await gateway.ask(CHAT, plan="free")
    assert is_refused(answer, 403, "plan_required")
    assert len(default.requests) == 0
    assert await shown(gateway) == before
    assert before[next(iter(chosen))] == next(iter(chosen.values()))


async def test_a_plan_that_came_back_routes_again(gateway: Gateway, default: Provider) -> None:
    await gateway.prefer(
        aiProvider="self-hosted", fallbackToDefault=True, tunnelId=await registered(gateway)
    )
    assert (await gateway.ask(CHAT, plan="free")).status == 403
    answer = await gateway.ask(CHAT, plan="pro")
    assert answer.headers["x-byoai-fallback-reason"] == "agent_never_joined"


async def test_the_default_provider_can_ask_for_a_plan(
    tmp_path: Path, clock: FakeClock, default: Provider, own: Provider
) -> None:
    async with serving(tmp_path, clock, default, own, "pro") as gateway:
        assert is_refused(await gateway.ask(CHAT, plan="free"), 403, "plan_required")
        assert (await gateway.ask(CHAT, plan="pro")).text == "Hello there"


async def test_a_fallback_is_for_the_default_providers_plans_only(
    tmp_path: Path, clock: FakeClock, default: Provider, own: Provider
) -> None:
    async with serving(tmp_path, clock, default, own, "pro") as gateway:
        await bring_own(gateway)
        own.always(refusal(504))
        answer = await gateway.ask(CHAT, plan="free")
        assert is_refused(answer, 504, "provider_timeout")
        assert answer.headers["x-byoai-provider"] == "openrouter"
        assert "x-byoai-fallback-reason" not in answer.headers
        assert len(default.requests) == 0
        answer = await gateway.ask(CHAT, plan="pro")
        assert answer.headers["x-byoai-provider"] == "default"


async def test_a_token_that_ends_before_the_fallback_has_none(
    gateway: Gateway, clock: FakeClock, default: Provider, own: Provider
) -> None:
    await bring_own(gateway)
    expired = asyncio.Event()
    own.expect((Until(expired), *refusal(504)))
    asking = asyncio.create_task(gateway.chat())
    await own.request()
    clock.advance(3 * 3600)
    expired.set()
    answer = await asking
    assert is_refused(answer, 504, "provider_timeout")
    assert answer.headers["x-byoai-attempts"] == "1"
    assert len(default.requests) == 0
    (record,) = await gateway.records()
    assert (record.outcome, record.provider, record.attempts) == (
        "provider_timeout",
        "openrouter",
        1,
    )


# -- settings that stop working


async def test_a_key_that_is_saved_anew_needs_no_attention(gateway: Gateway, own: Provider) -> None:
    await bring_own(gateway)
    own.expect(refusal(401))
    await gateway.chat()
    assert await marked(gateway) == {"openRouterApiKey": "key_refused"}
    await gateway.prefer(openRouterApiKey="sk-or-v1-a-key-that-is-new")
    assert await marked(gateway) == {}


async def test_an_old_keys_failure_does_not_mark_the_new_key(
    gateway: Gateway, own: Provider
) -> None:
    await bring_own(gateway)
    saved = asyncio.Event()
    own.expect((Until(saved), *refusal(401)))
    asking = asyncio.create_task(gateway.chat())
    await own.request()
    await gateway.prefer(openRouterApiKey="sk-or-v1-a-key-that-is-new")
    saved.set()
    assert (await asking).headers["x-byoai-fallback-reason"] == "key_refused"
    assert await marked(gateway) == {}


async def test_an_old_keys_success_does_not_clear_the_new_key(
    gateway: Gateway, own: Provider
) -> None:
    await bring_own(gateway)
    failed = asyncio.Event()
    own.expect((Until(failed), *GOOD), refusal(401))
    asking = asyncio.create_task(gateway.chat())
    await own.request()
    await gateway.prefer(openRouterApiKey="sk-or-v1-a-key-that-is-wrong")
    await gateway.chat()
    assert await marked(gateway) == {"openRouterApiKey": "key_refused"}
    failed.set()
    assert (await asking).text == "Hello there"
    assert await marked(gateway) == {"openRouterApiKey": "key_refused"}


async def test_a_tunnel_that_was_removed_is_told_and_shown(gateway: Gateway) -> None:
    tunnel_id = await registered(gateway)
    await gateway.prefer(aiProvider="self-hosted", tunnelId=tunnel_id)
    assert await marked(gateway) == {"tunnelId": "agent_never_joined"}
    removed = await gateway.ask(path=f"/api/tunnel/{tunnel_id}", method="DELETE")
    assert removed.status < 300
    assert is_refused(await gateway.chat(), 404, "tunnel_not_found")
    assert await marked(gateway) == {"tunnelId": "tunnel_not_found"}
    other = await registered(gateway)
    await gateway.prefer(tunnelId=other)
    assert await marked(gateway) == {"tunnelId": "agent_never_joined"}
    assert is_refused(await gateway.chat(), 503, "agent_never_joined")


async def test_a_tunnel_whose_agent_is_locked_says_so(gateway: Gateway) -> None:
    control = gateway.control
    agent = await joined_agent(control)
    await gateway.prefer(aiProvider="self-hosted", tunnelId=agent.tunnel_id)
    async with control.database.writing() as connection:
        await control.registry.lock_agent(connection, agent.identity, 1)
    answer = await gateway.chat()
    assert is_refused(answer, 503, "agent_locked")
    assert "unlock" in answer.error["message"]
    assert await marked(gateway) == {"tunnelId": "agent_locked"}


async def test_a_locked_agent_beside_a_healthy_one_costs_its_requests_no_write(
    gateway: Gateway,
) -> None:
    """The tunnel works, so its setting needs no attention and there is nothing to forget."""
    control = gateway.control
    agent = await joined_agent(control)
    invited = await control.registry.invite("alice", agent.tunnel_id)
    await FakeAgent(control, agent.tunnel_id).enrol(invited.secret.reveal())
    await gateway.prefer(aiProvider="self-hosted", tunnelId=agent.tunnel_id)
    async with control.database.writing() as connection:
        await control.registry.lock_agent(connection, agent.identity, 1)
    assert (await control.preferences.show("alice")).attention == ()
    assert await answer_costs_nothing(control)


async def test_what_is_derived_of_a_tunnel_is_nothing_for_a_request_to_forget(
    gateway: Gateway,
) -> None:
    """A request under way may still be answered when the last agent is locked."""
    control = gateway.control
    agent = await joined_agent(control)
    await gateway.prefer(aiProvider="self-hosted", tunnelId=agent.tunnel_id)
    async with control.database.writing() as connection:
        await control.registry.lock_agent(connection, agent.identity, 1)
    (shown,) = (await control.preferences.show("alice")).attention
    assert (shown.setting, shown.code) == ("tunnelId", "agent_locked")
    assert await answer_costs_nothing(control)
