"""Somebody holds a user's session and tries to make the gateway hand out the user's own keys."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from byoai_gateway.provider_config import RouterSection, SelfHostedSection
from support.control import FakeClock, gateway_config
from support.gateway import PREFERENCES, Gateway, open_gateway
from support.internet import https, trusted_authority
from support.loop_clock import NEVER_S
from support.provider import Provider, providing
from support.provider_script import head

KEY = "the-canary-key-of-alices-server"
NETWORKS = ("127.0.0.0/8",)


@dataclass(frozen=True)
class Scene:
    """A gateway with a user's server, and the server of who holds her session."""

    gateway: Gateway
    own: Provider
    thief: Provider

    @property
    def stolen(self) -> list[str]:
        """What the thief's server was told that names the key."""
        return [
            f"{name}: {value}"
            for request in self.thief.requests
            for name, value in request.headers.items()
            if KEY in value
        ]

    async def shown(self) -> dict[str, Any]:
        answer = await self.gateway.ask(path=PREFERENCES, method="GET")
        shown: dict[str, Any] = answer.json
        return shown


@asynccontextmanager
async def scene(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Scene]:
    authority = trusted_authority(directory, monkeypatch)
    config = gateway_config(
        directory,
        router=RouterSection(connect_s=NEVER_S, silence_s=NEVER_S, whole_answer_s=NEVER_S),
        self_hosted=SelfHostedSection(url_networks=NETWORKS, first_token_s=NEVER_S),
    )
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(providing(https(authority, "127.0.0.1")))
        thief = await stack.enter_async_context(providing(https(authority, "127.0.0.1")))
        config = msgspec.structs.replace(config, relays=())
        gateway = await stack.enter_async_context(open_gateway(config, FakeClock()))
        await gateway.prefer(
            aiProvider="self-hosted", selfHostedUrl=f"https://{at(own)}/v1", selfHostedAuthKey=KEY
        )
        yield Scene(gateway, own, thief)


def at(provider: Provider) -> str:
    return f"127.0.0.1:{provider.port}"


async def test_a_new_address_gets_no_old_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as it:
        assert (await it.gateway.chat()).status == 200
        assert (await it.own.request()).headers["authorization"] == f"Bearer {KEY}"
        answer = await it.gateway.prefer(selfHostedUrl=f"https://{at(it.thief)}/v1")
        assert answer.json["selfHostedAuthKey"] is None
        assert [note["code"] for note in answer.json["needsAttention"]] == ["address_changed"]
        assert (await it.gateway.chat()).status == 200
        assert (await it.gateway.ask(path="/v1/models", method="GET")).status == 200
        assert len(it.thief.requests) == 2
        assert it.stolen == []


@pytest.mark.parametrize(
    "steps",
    [
        ({"selfHostedUrl": None}, {"selfHostedUrl": "thief"}),
        ({"selfHostedUrl": None, "aiProvider": "default"}, {"selfHostedUrl": "thief"}),
        ({"selfHostedUrl": "thief"}, {"selfHostedUrl": "own"}, {"selfHostedUrl": "thief"}),
    ],
)
async def test_no_number_of_steps_moves_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[dict[str, Any], ...]
) -> None:
    async with scene(tmp_path, monkeypatch) as it:
        urls = {"thief": f"https://{at(it.thief)}", "own": f"https://{at(it.own)}"}
        for step in steps:
            settings: dict[str, Any] = {**step, "selfHostedUrl": urls.get(step["selfHostedUrl"])}
            await it.gateway.prefer(**settings)
        await it.gateway.prefer(aiProvider="self-hosted")
        assert (await it.gateway.chat()).status == 200
        assert len(it.thief.requests) == 1
        assert it.stolen == []


async def test_a_connection_test_uses_no_stored_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as it:
        body = {"provider": "self-hosted", "selfHostedUrl": f"https://{at(it.thief)}/v1"}
        answer = await it.gateway.ask(body, path="/api/ai/test-connection")
        assert answer.status == 200
        assert it.thief.requests
        assert it.stolen == []


async def test_a_redirect_takes_the_key_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as it:
        aim = f"https://{at(it.thief)}/v1/chat/completions"
        it.own.always((head(307, {"location": aim, "content-length": "0"}),))
        assert (await it.gateway.chat()).status == 502
        assert it.thief.connections == 0


async def test_another_path_of_the_same_server_keeps_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as it:
        answer = await it.gateway.prefer(selfHostedUrl=f"https://{at(it.own)}/other/v1")
        assert answer.json["selfHostedAuthKey"]["lastFour"] == KEY[-4:]
        assert (await it.gateway.chat()).status == 200
        asked = await it.own.request()
        assert (asked.target, asked.headers["authorization"]) == (
            "/other/v1/chat/completions",
            f"Bearer {KEY}",
        )
