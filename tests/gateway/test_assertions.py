import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from redis.asyncio import Redis

from byoai_gateway import rate_windows
from byoai_gateway.assertions import ReplayGuard
from byoai_gateway.config import DatabaseSection, GatewayConfig, LimitsSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.link_keys import KEYS_REMEMBERED
from byoai_gateway.refusals import Refusal
from byoai_gateway.shared_store import ASK_AGAIN_S, SharedStore
from byoai_shared import tokens
from byoai_shared.assertion import ASSERTION_TYPE, Assertion
from byoai_shared.enrolment import TokenRequest
from byoai_shared.identity import AgentIdentity, identity_uri
from byoai_shared.keys import new_key
from byoai_shared.tokens import LEEWAY_S
from support.control import PUBLIC_URL, FakeAgent, FakeClock, gateway_config, joined_agent
from support.redis_server import PASSWORD, RedisServer, redis_server

TOKEN_PATH = "/agent/v1/token"


def assertion(token_id: str, agent_id: str = "one", expires_at: int = 1060) -> Assertion:
    return Assertion(AgentIdentity("a" * 26, agent_id), token_id, expires_at)


def unshared() -> SharedStore:
    return SharedStore(LimitsSection())


async def test_an_assertion_is_taken_once() -> None:
    guard = ReplayGuard(unshared())
    assert await guard.take(assertion("x"), 1000)
    assert not await guard.take(assertion("x"), 1000)
    assert await guard.take(assertion("y"), 1000)


async def test_ids_of_different_agents_do_not_collide() -> None:
    guard = ReplayGuard(unshared())
    assert await guard.take(assertion("x", "one"), 1000)
    assert await guard.take(assertion("x", "two"), 1000)


async def test_what_has_expired_makes_room_and_nothing_else_does() -> None:
    guard = ReplayGuard(unshared(), limit=2)
    assert await guard.take(assertion("x", expires_at=1060), 1000)
    assert await guard.take(assertion("y", expires_at=1090), 1000)
    assert not await guard.take(assertion("z", expires_at=1090), 1069)
    assert await guard.take(assertion("z", expires_at=1190), 1070)
    assert not await guard.take(assertion("y", expires_at=1090), 1070)


async def test_an_agent_with_too_many_live_assertions_is_refused_alone() -> None:
    guard = ReplayGuard(unshared())
    for number in range(128):
        assert await guard.take(assertion(str(number)), 1000)
    with pytest.raises(Refusal) as refusal:
        await guard.take(assertion("more"), 1000)
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limit_exceeded")
    assert refusal.value.retry_after_s == 60 + LEEWAY_S
    assert not await guard.take(assertion("7"), 1000), "still known"
    assert await guard.take(assertion("more", "two"), 1000)
    assert await guard.take(assertion("more", expires_at=1190), 1060 + LEEWAY_S)


async def test_what_is_remembered_goes_when_its_time_is_over() -> None:
    guard = ReplayGuard(unshared())
    for number in range(20):
        await guard.take(assertion("x", f"agent-{number}", expires_at=1000 + number), 1000)
    await guard.take(assertion("y"), 1010 + LEEWAY_S)
    assert len(guard._ends) == 10
    assert len(guard._seen) == 10


# -- several gateways


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    monkeypatch.setattr(rate_windows, "QUESTION_S", 20.0)  # this machine has much else to do
    with redis_server(tmp_path) as started:
        yield started


@asynccontextmanager
async def guards(
    server: RedisServer, when_store_is_down: Literal["open", "closed"] = "open"
) -> AsyncGenerator[tuple[ReplayGuard, ReplayGuard]]:
    """The guards of two gateways that share a store."""
    settings = LimitsSection(store=server.address, when_store_is_down=when_store_is_down)
    stores = SharedStore(settings), SharedStore(settings)
    yield ReplayGuard(stores[0]), ReplayGuard(stores[1])
    for store in stores:
        await store.close()


async def test_gateways_that_share_a_store_take_an_assertion_once_together(
    server: RedisServer,
) -> None:
    async with guards(server) as (one, other):
        assert await one.take(assertion("x"), 1000)
        assert not await other.take(assertion("x"), 1000)
        assert await other.take(assertion("x", "two"), 1000)
        assert not await one.take(assertion("x", "two"), 1000)
        many = [it.take(assertion("y"), 1000) for it in (one, other)]
        assert sorted(await asyncio.gather(*many)) == [False, True]


async def test_a_gateway_that_was_started_again_takes_no_assertion_twice(
    server: RedisServer,
) -> None:
    async with guards(server) as (one, _):
        assert await one.take(assertion("x"), 1000)
    async with guards(server) as (again, _):
        assert not await again.take(assertion("x"), 1000)


async def test_the_store_forgets_an_assertion_when_no_gateways_clock_lets_it_live(
    server: RedisServer,
) -> None:
    async with guards(server) as (one, _):
        assert await one.take(assertion("x", expires_at=1060), 1000)
    client: Any = Redis(port=server.port, password=PASSWORD)
    (key,) = await client.keys("byoai:assertion:*")
    assert 300 < await client.ttl(key) <= 60 + LEEWAY_S + 300
    await client.aclose()


@pytest.mark.parametrize("when_store_is_down", ["open", "closed"])
async def test_each_gateway_takes_an_assertion_once_while_the_store_is_away(
    server: RedisServer, when_store_is_down: Literal["open", "closed"]
) -> None:
    async with guards(server, when_store_is_down) as (one, other):
        assert await one.take(assertion("before"), 1000)
        server.stop()
        assert not await one.take(assertion("before"), 1000)
        assert await one.take(assertion("x"), 1000)
        assert not await one.take(assertion("x"), 1000)
        assert await other.take(assertion("x"), 1000)


async def test_a_store_that_is_back_is_asked_again_for_an_agent(server: RedisServer) -> None:
    clock = FakeClock()
    settings = LimitsSection(store=server.address, when_store_is_down="closed")
    stores = SharedStore(settings, clock), SharedStore(settings, clock)
    one, other = ReplayGuard(stores[0]), ReplayGuard(stores[1])
    server.stop()
    assert await one.take(assertion("x"), 1000)
    assert stores[0].answered_alone == 1
    server.start()
    clock.advance(ASK_AGAIN_S)
    assert await one.take(assertion("y"), 1000)
    assert not await other.take(assertion("y"), 1000)
    for store in stores:
        await store.close()


async def test_a_store_that_is_away_stops_no_agent_when_it_stops_users(
    server: RedisServer, tmp_path: Path, database: DatabaseSection
) -> None:
    limits = LimitsSection(store=server.address, when_store_is_down="closed")
    config = gateway_config(tmp_path, database=database, limits=limits)
    async with open_control_plane(config, FakeClock()) as control:
        agent = await joined_agent(control)
        server.stop()
        with pytest.raises(Refusal) as refusal:
            await control.limits.connection_test("alice")
        assert (refusal.value.status, refusal.value.code) == (503, "limits_unavailable")
        await agent.token()
        await agent.renew(new_key())


async def test_two_gateways_refuse_an_agents_request_that_one_of_them_had(
    server: RedisServer, config: GatewayConfig
) -> None:
    limits = msgspec.structs.replace(config.limits, store=server.address)
    config = msgspec.structs.replace(config, limits=limits)
    clock = FakeClock()
    async with (
        open_control_plane(config, clock) as control,
        open_control_plane(config, clock) as other,
    ):
        agent = await joined_agent(control)
        request = TokenRequest(assertion=agent.assertion(TOKEN_PATH))
        await control.enrolment.token(request)
        assert await refused(other, request) == "assertion_refused"
        await other.enrolment.token(TokenRequest(assertion=agent.assertion(TOKEN_PATH)))


# -- whose assertion


@pytest.fixture
def config(tmp_path: Path, database: DatabaseSection) -> GatewayConfig:
    """Agents may renew as often as a test has them."""
    often = LimitsSection(
        agent_tokens_per_minute=1000,
        agent_renewals_per_minute=1000,
        user_tokens_per_minute=1000,
        user_renewals_per_minute=1000,
    )
    return gateway_config(tmp_path, database=database, limits=often)


async def test_an_agent_over_its_limit_takes_no_room(
    tmp_path: Path, database: DatabaseSection, clock: FakeClock
) -> None:
    limits = LimitsSection(agent_tokens_per_minute=3)
    config = gateway_config(tmp_path, database=database, limits=limits)
    async with open_control_plane(config, clock) as control:
        agent = await joined_agent(control)
        used = TokenRequest(assertion=agent.assertion(TOKEN_PATH))
        guard = control.enrolment._assertions._replays
        before = len(guard._ends)
        await control.enrolment.token(used)
        for _ in range(5):  # a copy of it does not use up the agent's share
            assert await refused(control, used) == "assertion_refused"
        fresh = [TokenRequest(assertion=agent.assertion(TOKEN_PATH)) for _ in range(5)]
        for request in fresh[:2]:
            await control.enrolment.token(request)
        for request in fresh[2:]:
            assert await refused(control, request) == "rate_limit_exceeded"
        assert len(guard._ends) == before + 3


class Signatures:
    """Counts the signatures that are verified."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.verified = 0
        self._really = tokens._SIGNATURES.decode
        monkeypatch.setattr(tokens._SIGNATURES, "decode", self._decode)

    def _decode(self, *args: Any, **options: Any) -> Any:
        self.verified += 1
        return self._really(*args, **options)


async def renewed_agent(control: ControlPlane, times: int) -> tuple[FakeAgent, list[Any]]:
    """An agent that renewed so often, and the keys that it had, oldest first."""
    agent = await joined_agent(control)
    keys = [agent.key]
    for _ in range(times):
        keys.append(new_key())
        await agent.renew(keys[-1])
        agent.key = keys[-1]
        await agent.token()
    return agent, keys


def unnamed(agent: FakeAgent, key: ec.EllipticCurvePrivateKey, **headers: str) -> TokenRequest:
    """A token request as agents made it before assertions named their key."""
    now, uri = int(agent.control.clock()), identity_uri(agent.identity)
    claims = {"iss": uri, "sub": uri, "aud": PUBLIC_URL + TOKEN_PATH, "iat": now, "exp": now + 60}
    claims["jti"] = headers.pop("jti", "an-id")
    return TokenRequest(
        assertion=jwt.encode(claims, key, "ES256", headers={"typ": ASSERTION_TYPE, **headers})
    )


async def refused(control: ControlPlane, request: TokenRequest) -> str:
    with pytest.raises(Refusal) as refusal:
        await control.enrolment.token(request)
    return refusal.value.code


async def test_a_strangers_assertion_costs_no_signature_however_many_keys_are_known(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, keys = await renewed_agent(control, KEYS_REMEMBERED - 1)
    signatures = Signatures(monkeypatch)
    with pytest.raises(Refusal) as refusal:
        await agent.token(new_key())
    assert (refusal.value.code, signatures.verified) == ("assertion_refused", 0)
    # One that names a key of the agent's without having it.
    forged = unnamed(agent, new_key(), kid=kid_of(agent.assertion(TOKEN_PATH)))
    assert (await refused(control, forged), signatures.verified) == ("assertion_refused", 1)
    assert await refused(control, unnamed(agent, new_key())) == "assertion_refused"
    assert signatures.verified == 2
    # Each of the agent's own is found by one, the oldest too.
    await agent.token()
    assert signatures.verified == 3
    with pytest.raises(Refusal) as refusal:
        await agent.token(keys[0])
    assert (refusal.value.code, signatures.verified) == ("key_replaced", 4)


async def test_an_older_agent_names_no_key_and_is_known_by_its_current_one(
    control: ControlPlane,
) -> None:
    agent, keys = await renewed_agent(control, 2)
    await control.enrolment.token(unnamed(agent, agent.key))
    assert await refused(control, unnamed(agent, keys[0], jti="two")) == "assertion_refused"
    # The answer that brought the next key got lost.
    await agent.renew(new_key())
    await control.enrolment.token(unnamed(agent, agent.key, jti="three"))


async def test_what_is_wrong_with_a_strangers_assertion_costs_no_signature(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await joined_agent(control)
    signatures = Signatures(monkeypatch)
    for wrong in (agent.assertion("/agent/v1/renew"), "a.b.c", "x" * 100_000):
        assert await refused(control, TokenRequest(assertion=wrong)) == "assertion_refused"
    assert signatures.verified == 0


def kid_of(assertion: str) -> str:
    kid: str = jwt.get_unverified_header(assertion)["kid"]
    return kid
