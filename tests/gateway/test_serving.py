"""Who is let in, how often, and what a store that is away does, through a running gateway."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from byoai_gateway import shared_store
from byoai_gateway.config import DatabaseSection, LimitsSection, UsersSection
from byoai_gateway.metrics import GatewayCollector, metrics_page
from byoai_gateway.provider_config import RouterSection
from byoai_gateway.router.endpoints import ENDPOINTS
from byoai_gateway.users import User, mint
from byoai_shared.secret import Secret
from support.chain import bring_own, chain
from support.control import USERS_SECRET, FakeClock, bearer, sqlite
from support.garbage import cyclic_garbage
from support.gateway import CHAT, PREFERENCES, Answer, Gateway, open_gateway
from support.internet import https, trusted_authority
from support.loop_clock import NEVER_S
from support.provider import Provider, providing
from support.provider_script import Die, Hang, Until, chat_stream, refusal, stream, token
from support.redis_server import RedisServer, redis_server
from support.waiting import until

GOOD = chat_stream("Hello", " there")


@asynccontextmanager
async def serving(
    directory: Path, default: Provider, own: Provider, **changes: msgspec.Struct
) -> AsyncGenerator[Gateway]:
    async with open_gateway(chain(directory, default, own, **changes), FakeClock()) as gateway:
        yield gateway


def is_refused(answer: Answer, status: int, code: str) -> bool:
    assert answer.error["message"]
    return (answer.status, answer.error["code"]) == (status, code)


# -- access


def tokens(clock: FakeClock) -> Mapping[str, str | None]:
    def minted(hours: float, *, secret: str = USERS_SECRET, audience: str = "byoai") -> str:
        settings = UsersSection(secret=Secret(secret), audience=audience)
        return "Bearer " + mint(User("alice", "pro"), settings, clock(), hours * 3600)

    return {
        "none": None,
        "empty": "Bearer ",
        "another scheme": "Basic YWxpY2U6cHc=",
        "no JWT": "Bearer sk-a-key-of-a-provider",
        "expired": minted(-1),
        "wrong signature": minted(1, secret="another secret of thirty-two bytes or more"),
        "wrong audience": minted(1, audience="another"),
    }


async def users_calls(gateway: Gateway) -> set[tuple[str, str]]:
    """Every call that is a user's, those that are described included."""
    described = (await gateway.ask(path="/openapi.json", method="GET")).json["paths"]
    api = {
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, operations in described.items()
        for method in operations
        if path.startswith(("/api/", "/v1/"))
    }
    ours = {(it.method, "/v1" + it.path.replace("{model}", "a-model")) for it in ENDPOINTS}
    return api | ours | {("POST", "/v1/nothing"), ("PUT", "/v1/models")}


async def test_without_a_token_that_holds_nothing_is_done(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    users = UsersSection(secret=Secret(USERS_SECRET), audience="byoai")
    async with serving(tmp_path, default, own, users=users) as gateway:
        calls = await users_calls(gateway)
        assert {("POST", CHAT), ("GET", PREFERENCES), ("POST", PREFERENCES)} <= calls
        assert len(calls) > len(ENDPOINTS) + 10
        for name, authorization in tokens(gateway.clock).items():
            for method, path in calls:
                headers = {} if authorization is None else {"authorization": authorization}
                async with gateway.http.request(
                    method, gateway.url + path, json={}, headers=headers
                ) as response:
                    answer = Answer(response.status, response.headers, await response.read())
                assert is_refused(answer, 401, "invalid_api_key"), (name, method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
        assert (default.connections, own.connections) == (0, 0)
        assert await gateway.records() == []


# -- limits


async def test_too_many_requests_in_a_minute_are_refused_for_that_user(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    limits = LimitsSection(requests_per_minute=2)
    async with serving(tmp_path, default, own, limits=limits) as gateway:
        assert [(await gateway.chat()).status for _ in range(2)] == [200, 200]
        answer = await gateway.chat()
        assert is_refused(answer, 429, "rate_limit_exceeded")
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert "x-should-retry" not in answer.headers
        assert (await gateway.chat(user="bob")).status == 200
        assert len(default.requests) == 3


async def test_the_official_client_comes_back_when_one_of_its_requests_has_ended(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    limits = LimitsSection(concurrent_requests=1)
    async with serving(tmp_path, default, own, limits=limits) as gateway:
        may_end = asyncio.Event()
        default.expect((Until(may_end), *GOOD))
        first = asyncio.create_task(gateway.chat())
        await default.request()
        async with gateway.client(max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(model="m", messages=[])
        assert refused.value.code == "too_many_concurrent_requests"
        assert refused.value.response.headers["retry-after"] == "1"
        may_end.set()
        assert (await first).status == 200
        async with gateway.client(max_retries=0) as client:
            assert (await client.chat.completions.create(model="m", messages=[])).choices


async def test_a_client_that_leaves_makes_room(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    limits = LimitsSection(concurrent_requests=1)
    async with serving(tmp_path, default, own, limits=limits) as gateway:
        default.expect((Hang(0),))
        leaving = asyncio.create_task(gateway.chat())
        request = await default.request()
        assert is_refused(await gateway.chat(), 429, "too_many_concurrent_requests")
        leaving.cancel()
        await request.client_gone()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (await gateway.chat()).status == 200


async def test_when_closed_a_store_that_is_away_refuses_until_it_is_back(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    with redis_server(tmp_path) as store:
        limits = LimitsSection(store=store.address, when_store_is_down="closed")
        async with serving(tmp_path, default, own, limits=limits) as gateway:
            assert (await gateway.chat()).status == 200
            store.stop()
            for _ in range(3):
                answer = await gateway.chat()
                assert is_refused(answer, 503, "limits_unavailable")
                assert answer.headers["retry-after"] == "2"
            store.start()
            assert (await gateway.chat()).status == 200
            store.halt()
            # One that hangs is given up, too.
            assert is_refused(await gateway.chat(), 503, "limits_unavailable")
            store.go_on()
            assert (await gateway.chat()).status == 200
            assert len(default.requests) == 3


@pytest.mark.parametrize("away", [RedisServer.stop, RedisServer.halt])
async def test_while_its_store_is_away_a_gateway_counts_by_itself(
    tmp_path: Path,
    default: Provider,
    own: Provider,
    away: Callable[[RedisServer], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_store, "ASK_AGAIN_S", NEVER_S)
    with redis_server(tmp_path) as store:
        limits = LimitsSection(store=store.address, requests_per_minute=5)
        async with serving(tmp_path, default, own, limits=limits) as gateway:
            assert (await gateway.chat()).status == 200
            away(store)
            asked = [await gateway.chat() for _ in range(6)]
            assert [it.status for it in asked] == [200, 200, 200, 200, 200, 429]
            readiness = gateway.data_path.readiness
            assert await readiness.why_not() == ""
            assert "this gateway counts by itself" in await readiness.degraded()
            page = metrics_page(GatewayCollector(gateway.data_path)).body.decode()
            assert "byoai_gateway_limits_store_up 0.0" in page
            assert "byoai_gateway_limits_counted_alone_total 6.0" in page


async def test_gateways_with_one_store_count_together(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    with redis_server(tmp_path) as store:
        limits = LimitsSection(store=store.address, requests_per_minute=3)
        async with AsyncExitStack() as stack:
            one, two = [
                await stack.enter_async_context(serving(tmp_path, default, own, limits=limits))
                for _ in range(2)
            ]
            asked = [await it.chat() for it in (one, two, one, two, one)]
            assert [it.status for it in asked] == [200, 200, 200, 429, 429]
            assert (await two.chat(user="bob")).status == 200


# -- the database


async def test_an_sqlite_that_somebody_holds_keeps_answers_coming(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    database = DatabaseSection(url=sqlite(tmp_path).url, busy_timeout_s=0.5)
    async with serving(tmp_path, default, own, database=database) as gateway:
        await bring_own(gateway)
        holder = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)
        try:
            holder.execute("BEGIN IMMEDIATE")
            own.expect(refusal(401))
            answers = [await gateway.chat(user=user) for user in ("alice", "alice", "bob")]
            assert [it.status for it in answers] == [200, 200, 200]
            saving = await gateway.ask({"fallbackToDefault": False}, path=PREFERENCES)
            assert is_refused(saving, 503, "database_busy")
            holder.execute("ROLLBACK")
        finally:
            holder.close()
        assert len(await gateway.records()) == 3
        assert (await gateway.prefer(fallbackToDefault=False)).status == 200


# -- records


async def test_every_request_leaves_one_record_and_no_word_of_it(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    async with serving(tmp_path, default, own) as gateway:
        default.expect(
            GOOD,
            refusal(400),
            stream(token("a secret answer"), Die()),
            refusal(504),
            (Hang(0),),
        )
        said: Any = [{"role": "user", "content": "a secret question"}]
        for _ in range(4):
            await gateway.chat(messages=said)
        leaving = asyncio.create_task(gateway.chat(messages=said))
        request = await default.request(4)
        leaving.cancel()
        await request.client_gone()
        await asyncio.gather(leaving, return_exceptions=True)
        records = await gateway.records()
        assert [it.outcome for it in records] == [
            "ok",
            "rejected",
            "truncated",
            "provider_timeout",
            "client_left",
        ]
        assert len({it.request_id for it in records}) == len(records)
        assert "secret" not in repr(records)


async def test_what_is_refused_before_anybody_is_asked_leaves_its_record_too(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    async with serving(tmp_path, default, own) as gateway:
        await gateway.prefer(user="bob", aiProvider="self-hosted")
        assert (await gateway.chat(user="bob")).error["code"] == "tunnel_not_found"
        assert (await gateway.ask(b"{")).error["code"] == "invalid_json"
        assert (await gateway.ask({"model": "m"}, path="/v1/nothing")).status == 404
        assert [(it.user_id, it.outcome, it.attempts) for it in await gateway.records()] == [
            ("bob", "tunnel_not_found", 0),
            ("alice", "invalid_json", 0),
        ]
    assert not default.requests


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"ZZ\r\n", 400, "bad_request"),
        (b"%x\r\n" % 2000 + b"x" * 2000 + b"\r\n0\r\n\r\n", 413, "body_too_large"),
        (b"1", None, "client_left"),
    ],
    ids=["no chunk", "too large", "nothing more"],
)
async def test_a_body_that_cannot_be_read_is_recorded_as_what_it_was(
    tmp_path: Path,
    default: Provider,
    own: Provider,
    body: bytes,
    status: int | None,
    word: str,
) -> None:
    limits = LimitsSection(max_body_bytes=1000)
    async with serving(tmp_path, default, own, limits=limits) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
            f"authorization: {bearer('alice', gateway.clock)}\r\n\r\n"
        )
        writer.write(head.encode())
        await until(lambda: gateway.data_path.requests.in_flight == 1)
        writer.write(body)
        if status is None:
            writer.close()
        else:
            assert (await reader.readline()).split()[1] == b"%d" % status
            writer.close()
        await writer.wait_closed()
        await until(lambda: gateway.data_path.requests.in_flight == 0)
        assert [it.outcome for it in await gateway.records()] == [word]
        assert gateway.data_path.requests.outcomes == {word: 1}


# -- memory


@pytest.mark.parametrize("is_tls", [False, True])
async def test_what_ended_is_not_left_in_reference_cycles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_tls: bool
) -> None:
    context = None
    if is_tls:
        context = https(trusted_authority(tmp_path, monkeypatch), "127.0.0.1")
    patient = RouterSection(breaker_failures=1000)
    async with (
        providing(context) as provider,
        serving(
            tmp_path,
            provider,
            provider,
            router=patient,
            limits=LimitsSection(requests_per_minute=1000),
        ) as gateway,
    ):
        await gateway.chat()  # what is made once
        with cyclic_garbage() as left:
            for _ in range(5):
                for script in (GOOD, (Die(),), stream(token("a"), Die()), (b"nonsense\r\n\r\n",)):
                    provider.expect(script, script)
                    await gateway.chat()
                    await gateway.chat(stream=False)
                await leave_early(gateway, provider)
                await send_half(gateway)
            await until(lambda: not gateway.control.limits._under_way)
        assert not left


async def leave_early(gateway: Gateway, provider: Provider) -> None:
    """Ask for a stream, and hang up when it has begun."""
    provider.expect(stream(token("a"), Hang(0)))
    number = len(provider.requests)
    reader, writer = await asyncio.open_connection(*address(gateway))
    body = b'{"model": "m", "stream": true, "messages": []}'
    writer.write(raw_request(gateway, len(body)) + body)
    await reader.readuntil(b"data: ")
    writer.transport.abort()
    await (await provider.request(number)).client_gone()


async def send_half(gateway: Gateway) -> None:
    """Send a request with half of its body, and a chunk that is none."""
    for begin in (raw_request(gateway, 1000) + b"{", raw_request(gateway, None) + b"zz\r\n"):
        reader, writer = await asyncio.open_connection(*address(gateway))
        writer.write(begin)
        writer.write_eof()
        await reader.read()
        writer.close()


def address(gateway: Gateway) -> tuple[str, int]:
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def raw_request(gateway: Gateway, length: int | None) -> bytes:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = (
        f"POST {CHAT} HTTP/1.1",
        "host: gateway",
        f"authorization: {bearer('alice', gateway.clock)}",
        framing,
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()
