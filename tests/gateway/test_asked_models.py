"""Model servers' lists: asked for with patience, kept for a moment."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from byoai_gateway import asked_models
from byoai_gateway.asked_models import FAILED_S, FRESH_S, MAX_ANSWER_BYTES, AskedModels, Listed
from byoai_gateway.provider_config import DefaultProviderSection, RouterSection
from byoai_gateway.providers.compatible import CompatibleUpstream, DefaultProvider
from byoai_gateway.providers.outbound import Outbound
from byoai_gateway.router.failures import AttemptFailed, FailureKind
from byoai_shared.secret import Secret
from support.control import FakeClock
from support.loop_clock import NEVER_S
from support.provider import Provider, providing
from support.provider_script import MODEL, Close, Die, Hang, Script, Until, half, refusal, whole

NAME = ("alice", "somewhere")


@pytest.fixture
async def provider() -> AsyncGenerator[Provider]:
    async with providing() as made:
        yield made


@pytest.fixture
async def upstream(provider: Provider) -> AsyncGenerator[CompatibleUpstream]:
    outbound = Outbound(1.0)
    section = DefaultProviderSection(base_url=provider.url, key=Secret("a-key"))
    yield DefaultProvider(section, RouterSection(), outbound).upstream(is_fallback=False)
    outbound.close()


@pytest.fixture
def asked(clock: FakeClock) -> AskedModels:
    return AskedModels(clock)


def listing(*names: str) -> Script:
    return whole({"object": "list", "data": [{"id": name} for name in names]})


def names(listed: Listed) -> list[str]:
    return [model.id for model in listed.models]


async def failure(asked: AskedModels, upstream: CompatibleUpstream) -> FailureKind:
    with pytest.raises(AttemptFailed) as caught:
        await asked.of(NAME, upstream)
    return caught.value.failure.kind


async def test_it_asks_as_requests_do(
    asked: AskedModels, upstream: CompatibleUpstream, provider: Provider, clock: FakeClock
) -> None:
    listed = await asked.of(NAME, upstream)
    assert (names(listed), listed.fetched_at) == ([MODEL], clock())
    request = await provider.request()
    assert (request.method, request.target) == ("GET", "/v1/models")
    assert request.headers["authorization"] == "Bearer a-key"
    assert request.headers["x-request-id"]


async def test_a_list_is_kept_for_a_moment_and_for_its_name_only(
    asked: AskedModels, upstream: CompatibleUpstream, provider: Provider, clock: FakeClock
) -> None:
    provider.expect(listing("a"), listing("b"), listing("c"))
    assert names(await asked.of(NAME, upstream)) == ["a"]
    clock.advance(FRESH_S - 1)
    assert names(await asked.of(NAME, upstream)) == ["a"]
    assert names(await asked.of(("bob", "somewhere"), upstream)) == ["b"]
    clock.advance(1)
    assert names(await asked.of(NAME, upstream)) == ["c"]
    assert len(provider.requests) == 3


async def test_while_one_renews_it_the_others_get_what_is_known(
    asked: AskedModels, upstream: CompatibleUpstream, provider: Provider, clock: FakeClock
) -> None:
    may_answer = asyncio.Event()
    provider.expect(listing("old"), (Until(may_answer), *listing("new")))
    await asked.of(NAME, upstream)
    clock.advance(FRESH_S)
    renewing = asyncio.ensure_future(asked.of(NAME, upstream))
    await provider.request(1)
    assert names(await asked.of(NAME, upstream)) == ["old"]
    may_answer.set()
    assert names(await renewing) == ["new"]
    assert names(await asked.of(NAME, upstream)) == ["new"]


async def test_a_failure_is_kept_for_a_shorter_time(
    asked: AskedModels, upstream: CompatibleUpstream, provider: Provider, clock: FakeClock
) -> None:
    provider.expect(refusal(500))
    assert await failure(asked, upstream) is FailureKind.SERVER_ERROR
    assert await failure(asked, upstream) is FailureKind.SERVER_ERROR
    assert len(provider.requests) == 1
    clock.advance(FAILED_S)
    assert names(await asked.of(NAME, upstream)) == [MODEL]


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (refusal(401), FailureKind.KEY_REFUSED),
        (refusal(404), FailureKind.REJECTED),
        (whole({}, 302, {"location": "https://elsewhere.example"}), FailureKind.MALFORMED),
        (whole(b"<html>", kind="text/html"), FailureKind.MALFORMED),
        (whole({"error": {"message": "no"}}), FailureKind.MALFORMED),
        (whole(b" " * (MAX_ANSWER_BYTES + 1)), FailureKind.MALFORMED),
        (half({"data": [{"id": "a"}]}), FailureKind.TRUNCATED),
        ((Die(),), FailureKind.CONNECTION_LOST),
        ((b"nonsense\r\n\r\n", Close()), FailureKind.MALFORMED),
    ],
)
async def test_each_way_to_fail_has_its_name(
    asked: AskedModels,
    upstream: CompatibleUpstream,
    provider: Provider,
    script: Script,
    kind: FailureKind,
) -> None:
    provider.expect(script)
    assert await failure(asked, upstream) is kind


async def test_a_silent_server_is_not_waited_for(
    asked: AskedModels,
    upstream: CompatibleUpstream,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asked_models, "ASK_S", NEVER_S)
    provider.expect((Hang(),))
    assert await failure(asked, upstream) is FailureKind.FIRST_TOKEN_TIMEOUT
    await (await provider.request()).client_gone()


async def test_a_connection_that_the_server_let_go_of_is_replaced(
    asked: AskedModels, upstream: CompatibleUpstream, provider: Provider, clock: FakeClock
) -> None:
    provider.expect(listing("a"), (Die(),), listing("b"))
    await asked.of(NAME, upstream)
    clock.advance(FRESH_S)
    assert names(await asked.of(NAME, upstream)) == ["b"]
    assert [request.connection for request in provider.requests] == [0, 0, 1]


async def test_what_is_kept_is_bounded(
    asked: AskedModels,
    upstream: CompatibleUpstream,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asked_models, "MAX_LISTS", 2)
    for user in ("a", "b", "c", "b"):
        await asked.of((user,), upstream)
    assert len(provider.requests) == 3
    await asked.of(("a",), upstream)
    assert len(provider.requests) == 4
