"""The gateway's two doors: the public one, and the operators'."""

import asyncio
import io
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest

from byoai_gateway import rate_windows
from byoai_gateway.config import (
    GatewayConfig,
    LimitsSection,
    ListenSection,
    OpsSection,
    UsersSection,
)
from byoai_gateway.control_plane import open_control_plane
from byoai_gateway.data_path import DataPath, open_data_path
from byoai_gateway.front import Front
from byoai_gateway.provider_config import DefaultProviderSection
from byoai_gateway.server import listening, serve, watched
from byoai_shared import logs
from byoai_shared.secret import Secret
from support.control import USERS_SECRET, FakeClock, bearer, gateway_config
from support.provider import providing
from support.provider_script import refusal
from support.resp import PASSWORD, refusing_store


@dataclass
class Doors:
    """Where they are."""

    public: str
    ops: str
    data_path: DataPath
    clock: FakeClock

    async def ask(
        self, address: str, path: str, **headers: str
    ) -> tuple[int, str, Mapping[str, str]]:
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://{address}{path}", headers=headers) as response,
        ):
            return response.status, await response.text(), response.headers


@pytest.fixture
async def doors(config: GatewayConfig, clock: FakeClock) -> AsyncGenerator[Doors]:
    config = msgspec.structs.replace(
        config, relays=(), listen=ListenSection(port=0, drain_s=0), ops=OpsSection(port=0)
    )
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(open_control_plane(config, clock))
        data_path = await stack.enter_async_context(open_data_path(control))
        ops = await stack.enter_async_context(watched(config.ops, data_path))
        public = await stack.enter_async_context(listening(control, data_path, asyncio.Event()))
        yield Doors(public, ops, data_path, clock)


async def test_operators_see_how_requests_ended(doors: Doors) -> None:
    authorization = bearer("alice", doors.clock)
    assert (await doors.ask(doors.public, "/v1/models"))[0] == 401
    for _ in range(2):
        status, *_ = await doors.ask(doors.public, "/v1/models", Authorization=authorization)
        assert status == 503
    _, text, _ = await doors.ask(doors.ops, "/metrics")
    assert 'byoai_gateway_requests_total{outcome="invalid_api_key"} 1.0' in text
    assert 'byoai_gateway_requests_total{outcome="no_default_provider"} 2.0' in text
    for gauge in ("requests_in_flight", "relays", "relay_links", "tunnels_online"):
        assert f"byoai_gateway_{gauge} 0.0" in text


async def test_dials_are_counted_by_their_end(doors: Doors) -> None:
    doors.data_path.links.dials["certificate_refused"] += 3
    doors.data_path.ways.tunnels.dials["untrusted"] += 2
    _, text, _ = await doors.ask(doors.ops, "/metrics")
    assert 'byoai_gateway_link_dials_total{outcome="certificate_refused"} 3.0' in text
    assert 'byoai_gateway_stream_dials_total{outcome="untrusted"} 2.0' in text


async def test_a_relay_whose_clock_is_wrong_is_shown_to_operators(doors: Doors) -> None:
    doors.data_path.links.clocks.differences_s["wss://relay.test"] = -3600
    doors.data_path.links.tokens_refused["wss://relay.test"] += 2
    _, text, _ = await doors.ask(doors.ops, "/metrics")
    relay = '{relay="wss://relay.test"}'
    assert f"byoai_gateway_relay_clock_difference_seconds{relay} -3600.0" in text
    assert f"byoai_gateway_relay_tokens_refused_total{relay} 2.0" in text
    _, text, _ = await doors.ask(doors.ops, "/readyz")
    assert "warning: wss://relay.test: relay clock differs from the gateway's by about" in text


async def test_attempts_at_providers_are_counted_by_their_end(doors: Doors) -> None:
    attempts = doors.data_path.serving.router.attempts
    attempts.ended("openrouter", "rate_limited")
    attempts.fallbacks["rate_limited"] += 1
    attempts.ended("default", "ok")
    for after_s in (0.05, 0.06, 7, 1000):
        attempts.began("default", after_s)
    _, text, _ = await doors.ask(doors.ops, "/metrics")
    for line in (
        'attempts_total{outcome="rate_limited",provider="openrouter"} 1.0',
        'attempts_total{outcome="ok",provider="default"} 1.0',
        'fallbacks_total{reason="rate_limited"} 1.0',
        'first_token_seconds_bucket{le="0.05",provider="default"} 1.0',
        'first_token_seconds_bucket{le="0.1",provider="default"} 2.0',
        'first_token_seconds_bucket{le="10.0",provider="default"} 3.0',
        'first_token_seconds_bucket{le="+Inf",provider="default"} 4.0',
        'first_token_seconds_count{provider="default"} 4.0',
        "usage_records_waiting 0.0",
        "usage_records_lost_total 0.0",
    ):
        assert f"byoai_gateway_{line}" in text


async def test_users_cannot_reach_what_operators_see(doors: Doors) -> None:
    authorization = bearer("alice", doors.clock)
    for path in ("/metrics", "/v1/metrics", "/v1/../metrics"):
        status, text, _ = await doors.ask(doors.public, path, Authorization=authorization)
        assert status == 404
        assert "byoai_gateway_" not in text


async def test_both_doors_say_when_it_is_not_ready(doors: Doors) -> None:
    status, text, _ = await doors.ask(doors.ops, "/readyz")
    assert (status, text.splitlines()[0]) == (200, "ready")
    assert (await doors.ask(doors.public, "/readyz"))[:2] == (200, '{"status": "ready"}')
    doors.data_path.readiness.is_stopping = True
    status, text, _ = await doors.ask(doors.ops, "/readyz")
    assert (status, text.splitlines()[0]) == (503, "not ready: it is stopping")
    status, text, _ = await doors.ask(doors.public, "/readyz")
    assert status == 503
    assert "it is stopping" in text


async def test_operators_see_what_is_missing_though_it_is_ready(doors: Doors) -> None:
    _, text, _ = await doors.ask(doors.ops, "/readyz")
    warnings = text.splitlines()[1:]
    assert [line.split(":")[:2] for line in warnings] == [
        ["warning", " users.audience"],
        ["warning", " relays"],
        ["warning", " default_provider.base_url"],
    ]


async def test_v1_refuses_in_the_same_shape_as_every_other_call(doors: Doors) -> None:
    for path in ("/v1/models", "/api/tunnel"):
        status, text, headers = await doors.ask(doors.public, path, **{"x-request-id": "id-7"})
        error = msgspec.json.decode(text)["error"]
        assert (status, error["code"]) == (401, "invalid_api_key")
        assert (error["type"], error["param"]) == ("authentication_error", None)
        assert headers["www-authenticate"] == "Bearer"
        assert headers["x-request-id"] == "id-7"


async def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    config = gateway_config(tmp_path, listen=ListenSection(port=0), ops=OpsSection(port=0))
    config = msgspec.structs.replace(config, relays=())
    stop = asyncio.Event()
    serving = asyncio.ensure_future(serve(config, stop, asyncio.Event()))
    stop.set()
    async with asyncio.timeout(50):
        await serving


async def test_a_second_signal_cuts_the_drain_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    drained = asyncio.Event()

    async def drain(_: Front, timeout_s: float) -> None:
        limits.append(timeout_s)
        drained.set()
        if timeout_s:
            await asyncio.sleep(timeout_s)

    monkeypatch.setattr(Front, "drain", drain)
    listen = ListenSection(port=0, drain_s=600)
    config = gateway_config(tmp_path, listen=listen, ops=OpsSection(port=0))
    config = msgspec.structs.replace(config, relays=())
    stop, hurry = asyncio.Event(), asyncio.Event()
    serving = asyncio.ensure_future(serve(config, stop, hurry))
    stop.set()
    async with asyncio.timeout(50):
        await drained.wait()
        hurry.set()
        await serving
    assert limits == [600, 0]


KEY = "sk-not-to-be-shown"


@dataclass
class Started:
    """A gateway that `serve` runs, and its log."""

    ops: str
    events: list[dict[str, object]]
    stop: asyncio.Event

    async def readyz(self) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://{self.ops}/readyz") as response,
        ):
            return response.status, await response.text()


@asynccontextmanager
async def started(config: GatewayConfig) -> AsyncGenerator[Started]:
    """Serve as `byoai-gateway serve` does, until the log says that it is ready."""
    events: list[dict[str, object]] = []
    is_ready = asyncio.Event()

    class Lines(io.StringIO):
        def write(self, line: str) -> int:
            events.append(msgspec.json.decode(line))
            if events[-1]["event"] == "gateway.ready":
                is_ready.set()
            return len(line)

    logs.configure(form="json", level="info", stream=Lines())
    stop = asyncio.Event()
    serving = asyncio.ensure_future(serve(config, stop, asyncio.Event()))
    try:
        async with asyncio.timeout(20):
            await is_ready.wait()
        yield Started(str(events[-1]["ops"]), events, stop)
    finally:
        stop.set()
        await serving


def starting(directory: Path, **changes: msgspec.Struct) -> GatewayConfig:
    """Settings of a gateway without relays, on ports of the kernel's choice."""
    doors = {
        "listen": ListenSection(port=0, drain_s=0),
        "ops": OpsSection(port=0),
        "users": UsersSection(secret=Secret(USERS_SECRET), audience="gateway"),
    }
    config = gateway_config(directory, **(doors | changes))
    return msgspec.structs.replace(config, relays=())


async def test_a_gateway_whose_users_cannot_sign_in_says_so(tmp_path: Path) -> None:
    async with providing() as application:
        application.always(refusal(500))
        users = UsersSection(jwks_url=application.url)
        async with started(starting(tmp_path, users=users)) as gateway:
            status, text = await gateway.readyz()
            assert status == 503
            assert "no user can sign in: users.jwks_url has not answered" in text
            named = {it["event"]: it for it in gateway.events}
            assert named["users.jwks_failed"]["setting"] == "users.jwks_url"
            assert "users.jwks_url" in str(named["gateway.not_ready"]["reason"])


async def test_a_gateway_whose_store_refuses_the_password_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_windows, "QUESTION_S", 30.0)
    async with refusing_store(b"WRONGPASS invalid username-password pair") as store:
        limits = LimitsSection(store=store.address, when_store_is_down="closed")
        async with started(starting(tmp_path, limits=limits)) as gateway:
            status, text = await gateway.readyz()
            assert (status, "limits.store refuses" in text) == (503, True)
            named = {it["event"]: it for it in gateway.events}
            assert named["limits.store_away"]["setting"] == "limits.store"
            assert "limits.store" in str(named["gateway.not_ready"]["reason"])
            assert PASSWORD not in text + str(gateway.events)


async def test_a_gateway_that_counts_without_its_store_is_ready_and_says_so(tmp_path: Path) -> None:
    limits = LimitsSection(store=Secret("redis://127.0.0.1:9/0"))
    async with started(starting(tmp_path, limits=limits)) as gateway:
        status, text = await gateway.readyz()
        first, second, *_ = text.splitlines()
        assert (status, first) == (200, "ready")
        assert second.startswith("degraded: no request can be counted for all gateways")


async def test_a_second_gateway_of_the_same_name_says_so(tmp_path: Path) -> None:
    async with started(starting(tmp_path)), started(starting(tmp_path)) as second:
        status, text = await second.readyz()
        assert status == 200
        assert "warning: gateway.name: another gateway named 'gateway'" in text


async def test_a_complete_gateway_is_ready_without_a_word(tmp_path: Path) -> None:
    async with providing() as provider:
        default = DefaultProviderSection(base_url=provider.url, key=Secret(KEY))
        async with started(starting(tmp_path, default_provider=default)) as gateway:
            status, text = await gateway.readyz()
            assert (status, text.splitlines()[0]) == (200, "ready")
            assert "default_provider" not in text
            assert all(it["level"] == "info" for it in gateway.events)
