"""One request's way through retry, fallback, breaker and deadline, in a running gateway."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from byoai_gateway import data_path
from byoai_gateway.provider_config import OpenRouterSection, RouterSection
from byoai_gateway.providers.openrouter import OpenRouterUpstream
from byoai_gateway.router.classify import (
    address_refused,
    agent_absent,
    tunnel_busy,
    unreachable,
)
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.router import Router
from byoai_gateway.router.upstream import ProviderName
from byoai_gateway.users import User, Users
from byoai_shared.http1.client import ClientConnection
from support.chain import bring_own, chain
from support.control import FakeClock, bearer
from support.gateway import Answer, Gateway, open_gateway
from support.loop_clock import NEVER_S, loop_time, pass_time, stopped
from support.provider import Provider
from support.provider_script import (
    DONE,
    Die,
    Hang,
    Pause,
    Until,
    chat_stream,
    finish,
    refusal,
    stream,
    token,
)

GOOD = chat_stream("Hello", " there")
FAILURES = 2
OPEN_S = 30.0
RULES = RouterSection(breaker_failures=FAILURES, breaker_open_s=OPEN_S)


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The breaker's clock."""
    clock = FakeClock(time.monotonic())
    monkeypatch.setattr(data_path, "Router", partial(Router, clock=clock))
    return clock


@pytest.fixture
def by_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router's clock is the loop's, which the tests move on."""
    monkeypatch.setattr(data_path, "Router", partial(Router, clock=loop_time))


@asynccontextmanager
async def routing(
    directory: Path, default: Provider, own: Provider, **changes: msgspec.Struct
) -> AsyncGenerator[Gateway]:
    sections: dict[str, msgspec.Struct] = {"router": RULES, **changes}
    async with open_gateway(chain(directory, default, own, **sections), FakeClock()) as gateway:
        yield gateway


@pytest.fixture
async def breaking(
    tmp_path: Path, ticks: FakeClock, default: Provider, own: Provider
) -> AsyncGenerator[Gateway]:
    """Alice's own provider has failed so often that it is left alone."""
    async with routing(tmp_path, default, own) as gateway:
        await bring_own(gateway, fallback=False)
        own.expect(*[refusal(504)] * FAILURES)
        for _ in range(FAILURES):
            assert (await gateway.chat()).error["code"] == "provider_timeout"
        yield gateway


def told(answer: Answer) -> tuple[int, str, str, str | None]:
    """Status, attempts, provider and the fallback's reason."""
    headers = answer.headers
    return (
        answer.status,
        headers["x-byoai-attempts"],
        headers["x-byoai-provider"],
        headers.get("x-byoai-fallback-reason"),
    )


# -- the breaker


async def test_an_open_breaker_asks_nobody_and_says_when_to_come_back(
    breaking: Gateway, own: Provider
) -> None:
    answer = await breaking.chat()
    assert told(answer) == (503, "0", "openrouter", None)
    assert answer.error["code"] == "breaker_open"
    assert answer.headers["retry-after"] == str(round(OPEN_S))
    assert len(own.requests) == FAILURES
    assert [it.attempts for it in await breaking.records()] == [1] * FAILURES + [0]


async def test_an_open_breaker_is_one_users_and_one_providers(
    breaking: Gateway, own: Provider
) -> None:
    await bring_own(breaking, user="bob")
    assert told(await breaking.chat(user="bob")) == (200, "1", "openrouter", None)
    await breaking.prefer(aiProvider="default")
    assert told(await breaking.chat()) == (200, "1", "default", None)


async def test_while_it_is_open_the_fallback_answers(breaking: Gateway, own: Provider) -> None:
    await breaking.prefer(fallbackToDefault=True)
    assert told(await breaking.chat()) == (200, "1", "default", "breaker_open")
    assert len(own.requests) == FAILURES


async def test_exactly_one_of_many_requests_tries_again(
    breaking: Gateway, ticks: FakeClock, own: Provider
) -> None:
    ticks.advance(OPEN_S)
    others_done = asyncio.Event()
    own.expect((Until(others_done), *GOOD))
    asking = [asyncio.create_task(breaking.chat()) for _ in range(8)]
    under_way = set(asking)
    while len(under_way) > 1:
        done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        assert {it.result().error["code"] for it in done} == {"breaker_open"}
    others_done.set()
    answers = await asyncio.gather(*asking)
    assert sorted(it.status for it in answers) == [200] + [503] * 7
    assert len(own.requests) == FAILURES + 1
    assert (await breaking.chat()).status == 200


async def test_a_try_that_fails_opens_it_for_the_whole_time(
    breaking: Gateway, ticks: FakeClock, own: Provider
) -> None:
    ticks.advance(OPEN_S)
    own.expect(refusal(504))
    assert (await breaking.chat()).error["code"] == "provider_timeout"
    ticks.advance(OPEN_S - 1)
    assert (await breaking.chat()).error["code"] == "breaker_open"
    ticks.advance(1)
    assert (await breaking.chat()).status == 200


async def test_a_try_whose_client_left_lets_the_next_one_try(
    breaking: Gateway, ticks: FakeClock, own: Provider
) -> None:
    ticks.advance(OPEN_S)
    own.expect((Hang(0),))
    trying = asyncio.create_task(breaking.chat())
    request = await own.request(FAILURES)
    assert (await breaking.chat()).error["code"] == "breaker_open"
    trying.cancel()
    await request.client_gone()
    await asyncio.gather(trying, return_exceptions=True)
    assert (await breaking.chat()).status == 200
    outcomes = [it.outcome for it in await breaking.records()]
    assert outcomes.count("client_left") == 1


async def test_uploads_that_clients_break_off_say_nothing_about_the_provider(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    async with routing(tmp_path, default, own) as gateway:
        default.always((Hang(0),))
        head = (
            "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: {bearer('alice', gateway.clock)}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(FAILURES):
            port = int(gateway.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + b"5\r\n--b\r\n\r\n")
            while default.connections <= number:  # noqa: ASYNC110 -- nobody says so
                await asyncio.sleep(0.001)
            writer.write_eof()
            await reader.read()
            writer.close()
            await writer.wait_closed()
        default.always(GOOD)
        assert told(await gateway.chat()) == (200, "1", "default", None)


# -- what is an attempt


def attempts(gateway: Gateway) -> dict[tuple[str, str], int]:
    return dict(gateway.data_path.serving.router.attempts.outcomes)


@pytest.mark.parametrize(
    ("failure", "asked"),
    [
        (agent_absent(FailureKind.AGENT_OFFLINE, "it left", 5.0), 0),
        (tunnel_busy(), 0),
        (address_refused(ProviderName.OPENROUTER, "it is private"), 0),
        (unreachable(ProviderName.OPENROUTER), 2),
    ],
    ids=["offline", "busy", "refused by us", "refused by them"],
)
async def test_who_is_known_to_be_away_is_not_asked(
    tmp_path: Path,
    default: Provider,
    own: Provider,
    monkeypatch: pytest.MonkeyPatch,
    failure: Failure,
    asked: int,
) -> None:
    async def acquire(_: OpenRouterUpstream) -> ClientConnection:
        raise AttemptFailed(failure)

    monkeypatch.setattr(OpenRouterUpstream, "acquire", acquire)
    async with routing(tmp_path, default, own, router=RouterSection()) as gateway:
        await bring_own(gateway, fallback=False)
        answer = await gateway.chat()
        assert told(answer) == (failure.status, str(asked), "openrouter", None)
        counted = {("openrouter", failure.kind.value): asked} if asked else {}
        assert attempts(gateway) == counted
        await gateway.prefer(fallbackToDefault=True)
        expected = (200, str(asked + 1), "default", failure.kind.value)
        assert told(await gateway.chat()) == expected


async def test_a_provider_that_refuses_connections_is_tried_twice(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # held, not listened at
        section = OpenRouterSection(base_url=f"http://127.0.0.1:{held.getsockname()[1]}/v1")
        async with routing(tmp_path, default, own, openrouter=section) as gateway:
            await bring_own(gateway, fallback=False)
            answer = await gateway.chat()
            assert told(answer) == (502, "2", "openrouter", None)
            assert answer.error["code"] == "unreachable"
            assert attempts(gateway) == {("openrouter", "unreachable"): 2}


async def test_what_a_provider_does_not_have_is_no_attempt_and_no_try_of_an_open_breaker(
    breaking: Gateway, ticks: FakeClock, own: Provider
) -> None:
    async def score() -> Answer:
        return await breaking.ask({"model": "m"}, path="/v1/score")

    counted = attempts(breaking)
    assert told(await score()) == (404, "0", "openrouter", None)
    ticks.advance(OPEN_S)
    may_answer = asyncio.Event()
    own.expect((Until(may_answer), *GOOD))
    trying = asyncio.create_task(breaking.chat())
    await own.request(FAILURES)
    answer = await score()
    assert (answer.error["code"], told(answer)[1]) == ("endpoint_not_found", "0")
    assert attempts(breaking) == counted
    assert (await breaking.chat()).error["code"] == "breaker_open"
    may_answer.set()
    assert (await trying).status == 200


@pytest.mark.parametrize("fallback", [True, False])
async def test_a_breaker_that_opened_before_the_retry_does_not_hide_why(
    tmp_path: Path, default: Provider, own: Provider, *, fallback: bool
) -> None:
    rules = RouterSection(breaker_failures=1)
    async with routing(tmp_path, default, own, router=rules) as gateway:
        await bring_own(gateway, fallback=fallback)
        own.always(refusal(503))
        answer = await gateway.chat()
        if fallback:
            assert told(answer) == (200, "2", "default", "server_error")
        else:
            assert told(answer) == (503, "1", "openrouter", None)
            assert answer.error["code"] == "server_error"
        assert len(own.requests) == 1


async def test_a_fallback_that_was_not_asked_is_not_told_of(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    async with routing(tmp_path, default, own) as gateway:
        await bring_own(gateway)
        own.always(refusal(504))
        answer = await gateway.ask({"model": "m", "messages": []}, path="/v1/messages")
        assert told(answer) == (504, "1", "openrouter", None)
        assert answer.error["code"] == "provider_timeout"
        assert len(default.requests) == 0
        (record,) = await gateway.records()
        assert (record.provider, record.fallback_reason) == ("openrouter", None)
        assert (record.outcome, record.attempts) == ("provider_timeout", 1)


# -- one deadline


@pytest.mark.usefixtures("by_the_loop")
async def test_a_slow_provider_and_a_slow_fallback_end_by_one_deadline(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    rules = RouterSection(deadline_s=2 * NEVER_S, first_keep_alive_s=10 * NEVER_S)
    slow = OpenRouterSection(base_url=own.url, first_token_s=NEVER_S)
    async with routing(tmp_path, default, own, router=rules, openrouter=slow) as gateway:
        await bring_own(gateway)
        own.always((Hang(),))
        default.always((Hang(),))
        answer = await gateway.chat()
        assert told(answer) == (504, "2", "default", "first_token_timeout")
        assert answer.error["code"] == "deadline"
        assert answer.headers["x-should-retry"] == "false"


@pytest.mark.usefixtures("by_the_loop")
async def test_what_was_left_of_the_deadline_is_no_measure_of_the_fallback(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    rules = RouterSection(
        deadline_s=2 * NEVER_S,
        first_keep_alive_s=10 * NEVER_S,
        breaker_failures=1,
        breaker_open_s=10 * NEVER_S,
    )
    slow = OpenRouterSection(base_url=own.url, first_token_s=NEVER_S)
    async with routing(tmp_path, default, own, router=rules, openrouter=slow) as gateway:
        await bring_own(gateway)
        own.always((Hang(),))
        default.expect((Hang(),))
        answer = await gateway.chat()
        assert (answer.status, answer.error["code"]) == (504, "deadline")
        assert "the time for this request was over" in answer.error["message"]
        assert told(await gateway.chat()) == (200, "1", "default", "breaker_open")
        assert [it.outcome for it in await gateway.records()] == ["deadline", "ok"]


@pytest.mark.usefixtures("by_the_loop")
async def test_a_stream_that_moves_has_no_limit_in_time(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    rules = RouterSection(deadline_s=2 * NEVER_S, whole_answer_s=NEVER_S, silence_s=NEVER_S)
    section = OpenRouterSection(base_url=own.url, first_token_s=NEVER_S)
    async with routing(tmp_path, default, own, router=rules, openrouter=section) as gateway:
        await bring_own(gateway)
        beats = [step for _ in range(10) for step in (token("a"), Pause(0.9 * NEVER_S))]
        own.expect(stream(*beats, finish(), DONE))
        answer = await gateway.chat()
        assert (answer.text, answer.events[-1]) == ("a" * 10, b"[DONE]")
        assert told(answer) == (200, "1", "openrouter", None)


async def test_connecting_is_within_the_deadline(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    rules = RouterSection(
        deadline_s=NEVER_S, connect_s=2 * NEVER_S, first_keep_alive_s=10 * NEVER_S
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes a connection, never speaks TLS
        silent.setblocking(False)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/v1"
        changes = {"router": rules, "openrouter": OpenRouterSection(base_url=url)}
        async with routing(tmp_path, default, own, **changes) as gateway:
            await bring_own(gateway)
            asking = asyncio.create_task(gateway.chat())
            connection, _ = await asyncio.get_running_loop().sock_accept(silent)
            with connection:
                await pass_time(1.2 * NEVER_S)
                answer = await asking
    assert told(answer) == (504, "1", "openrouter", None)


@pytest.mark.parametrize(
    ("owns", "defaults", "expected"),
    [
        ([503, None], [], (200, "2", "openrouter", None)),
        ([503, 503], [None], (200, "3", "default", "server_error")),
        # The retry is the request's: the fallback has none left.
        ([503, 503], [503], (503, "3", "default", "server_error")),
        ([504], [503, None], (200, "3", "default", "provider_timeout")),
        ([504], [503, 503], (503, "3", "default", "provider_timeout")),
        ([400], [], (400, "1", "openrouter", None)),
    ],
)
async def test_one_retry_and_one_fallback_in_all(
    tmp_path: Path,
    default: Provider,
    own: Provider,
    owns: list[int | None],
    defaults: list[int | None],
    expected: tuple[int, str, str, str | None],
) -> None:
    async with routing(tmp_path, default, own) as gateway:
        await bring_own(gateway)
        for provider, statuses in ((own, owns), (default, defaults)):
            provider.expect(*(GOOD if it is None else refusal(it) for it in statuses))
        answer = await gateway.chat()
        assert told(answer) == expected
        assert (len(own.requests), len(default.requests)) == (len(owns), len(defaults))
        (record,) = await gateway.records()
        assert (record.attempts, record.provider) == (int(expected[1]), expected[2])


@pytest.mark.usefixtures("by_the_loop")
async def test_a_wait_that_does_not_fit_the_deadline_leaves_time_for_the_fallback(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    async with routing(tmp_path, default, own, router=RouterSection(deadline_s=2.0)) as gateway:
        await bring_own(gateway)
        own.always(refusal(429, headers={"retry-after": "4"}))
        with stopped():
            assert told(await gateway.chat()) == (200, "2", "default", "rate_limited")
        assert len(own.requests) == 1


async def test_a_second_look_at_the_token_is_within_the_deadline(
    tmp_path: Path, default: Provider, own: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, looks = Users.authenticate, 0
    is_looked_again = asyncio.Event()

    async def authenticate(self: Users, authorization: str | None) -> User:
        nonlocal looks
        looks += 1
        if looks > 1:
            is_looked_again.set()
            await asyncio.Event().wait()
        return await check(self, authorization)

    rules = RouterSection(deadline_s=NEVER_S, first_keep_alive_s=10 * NEVER_S)
    async with routing(tmp_path, default, own, router=rules) as gateway:
        await bring_own(gateway)
        own.always(refusal(504))
        monkeypatch.setattr(Users, "authenticate", authenticate)
        asking = asyncio.create_task(gateway.chat())
        await is_looked_again.wait()
        await pass_time(1.2 * NEVER_S)
        assert told(await asking) == (504, "1", "openrouter", None)
        assert (looks, len(default.requests)) == (2, 0)


# -- what never falls back


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "and then?", "previous_response_id": "resp_1"}),
        ("/v1/responses", {"input": "and then?", "conversation": "conv_1"}),
        ("/v1/responses", {"input": "stored, as every answer is unless it is refused"}),
        ("/v1/chat/completions", {"messages": [], "store": True}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"file": {"file_id": "file-1"}}]}]},
        ),
    ],
)
async def test_what_changes_a_providers_state_is_asked_once(
    tmp_path: Path, default: Provider, own: Provider, path: str, body: dict[str, Any]
) -> None:
    """A provider that failed may have stored something; one that refused by 429 has not."""
    async with routing(tmp_path, default, own) as gateway:
        await bring_own(gateway, fallback=False)
        own.expect(refusal(503))
        answer = await gateway.ask({"model": "m", **body}, path=path)
        assert told(answer) == (503, "1", "openrouter", None)
        own.expect(refusal(429, headers={"retry-after": "0"}))
        assert told(await gateway.ask({"model": "m", **body}, path=path))[1] == "2"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "and then?", "previous_response_id": "resp_1"}),
        ("/v1/responses", {"input": "and then?", "conversation": "conv_1"}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"file": {"file_id": "file-1"}}]}]},
        ),
    ],
)
async def test_what_is_kept_at_a_provider_stays_with_it(
    tmp_path: Path, default: Provider, own: Provider, path: str, body: dict[str, Any]
) -> None:
    async with routing(tmp_path, default, own) as gateway:
        await bring_own(gateway)
        own.always(refusal(503))
        answer = await gateway.ask({"model": "m", **body}, path=path)
        assert told(answer) == (503, "1", "openrouter", None)
        assert len(default.requests) == 0


async def test_an_upload_that_is_not_kept_is_sent_once(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    async def pieces() -> AsyncGenerator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        yield b"x" * 1_000_000
        yield b"\r\n--b--\r\n"

    async with routing(tmp_path, default, own) as gateway:
        default.always(refusal(503))
        fields = {
            "authorization": bearer("alice", gateway.clock),
            "content-type": "multipart/form-data; boundary=b",
        }
        url = gateway.url + "/v1/audio/transcriptions"
        async with gateway.http.post(url, data=pieces(), headers=fields) as response:
            assert response.status == 503
            assert response.headers["x-byoai-attempts"] == "1"
        assert len(default.requests) == 1


async def test_a_fallback_gets_nothing_that_was_for_the_users_own_provider(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    async with routing(tmp_path, default, own) as gateway:
        await bring_own(gateway)
        own.expect((Die(),))
        answer = await gateway.chat(
            provider={"sort": "price"}, models=["a/b"], transforms=[], route="fallback"
        )
        assert told(answer) == (200, "2", "default", "connection_lost")
        request = await default.request()
        assert request.json.keys() == {"model", "stream", "messages", "stream_options"}
        assert request.json["model"] == "default-model"
        assert request.headers["authorization"] == "Bearer the-operators-key"
        assert b"alices-own-key" not in request.body + str(request.headers).encode()
