"""Tests of connections as values and stages, without HTTP's side of the call."""

import asyncio
import html
import json
from collections.abc import AsyncGenerator
from itertools import product
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_gateway.connection_test import sentences
from byoai_gateway.connection_test.course import LIMITS_S, run
from byoai_gateway.connection_test.first_token import first_token
from byoai_gateway.connection_test.names import check_offered, near
from byoai_gateway.connection_test.report import (
    Stage,
    StageFailed,
    StageSkipped,
    StageStatus,
)
from byoai_gateway.connection_test.tester import Submitted
from byoai_gateway.provider_config import DefaultProviderSection, RouterSection
from byoai_gateway.providers.compatible import DefaultProvider
from byoai_gateway.providers.outbound import Outbound, Unreachable, UnreachableReason
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.upstream import ProviderName, Upstream
from byoai_shared.api_errors import api_error
from byoai_shared.http1.head import RequestHead
from byoai_shared.secret import Secret
from support.loop_clock import NEVER_S
from support.provider import Provider, providing
from support.provider_script import Hang, Script, chat_answer, refusal, role, stream, token, whole

GET = RequestHead("GET", "/v1/models", ((b"host", b"127.0.0.1"),))
CANARY = "operators-canary"
KEY = Secret("sk-canary-0123456789")


class Scripted:
    """A probe that does at each stage what a test says."""

    provider = ProviderName.SELF_HOSTED
    model = "m"

    def __init__(self, **outcomes: Exception | str) -> None:
        self.outcomes = outcomes
        self.tried: list[str] = []

    async def _do(self, name: str) -> str:
        self.tried.append(name)
        outcome = self.outcomes.get(name, "well")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def reachable(self) -> str:
        return await self._do("reachable")

    async def authenticated(self) -> str:
        return await self._do("authenticated")

    async def has_model(self) -> str:
        return await self._do("model")

    async def answers(self) -> str:
        return await self._do("answer")


class Stuck(Scripted):
    """Never comes back from its last stage."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waiting = asyncio.Event()
        self.was_cancelled = False

    async def answers(self) -> str:
        self.is_waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return ""


def failing(kind: FailureKind, message: str = "it said no.") -> AttemptFailed:
    return AttemptFailed(Failure(kind, 502, api_error(502, kind.value, message)))


# -- the course


@pytest.mark.parametrize("at", range(4))
async def test_after_a_stage_that_failed_nothing_is_tried_and_every_stage_is_told(at: int) -> None:
    stages = list(Stage)
    probe = Scripted(**{stages[at].value: StageFailed("some_code", "it does not work")})
    report = await run(probe, None)
    assert [it.stage for it in report.stages] == stages
    assert probe.tried == [it.value for it in stages[: at + 1]]
    statuses = [it.status for it in report.stages]
    left = [StageStatus.SKIPPED] * (3 - at)
    assert statuses == [*[StageStatus.PASSED] * at, StageStatus.FAILED, *left]
    assert (report.stages[at].code, report.is_ok) == ("some_code", False)
    assert {it.latency_ms for it in report.stages[at + 1 :]} <= {None}


async def test_a_stage_that_cannot_tell_does_not_stop_the_others() -> None:
    report = await run(Scripted(model=StageSkipped("there is no list")), None)
    assert [it.status.value for it in report.stages] == ["passed", "passed", "skipped", "passed"]
    assert (report.is_ok, report.stages[2].message) == (True, "there is no list")


async def test_a_stage_that_takes_too_long_fails() -> None:
    probe = Stuck()
    report = await run(probe, None, {**LIMITS_S, Stage.ANSWER: 0.01})
    assert (report.stages[3].status, report.stages[3].code) == (StageStatus.FAILED, "timed_out")
    assert probe.was_cancelled


def test_every_stage_has_a_limit_and_the_whole_test_is_bounded() -> None:
    assert dict(zip(Stage, (10.0, 10.0, 10.0, 30.0), strict=True)) == LIMITS_S


async def test_a_cancelled_test_stops_where_it_is() -> None:
    probe = Stuck()
    test = asyncio.ensure_future(run(probe, None))
    await probe.is_waiting.wait()
    test.cancel()
    with pytest.raises(asyncio.CancelledError):
        await test
    assert probe.was_cancelled


@pytest.mark.parametrize(
    "outcome",
    [
        f"it works with {KEY.reveal()}",
        StageSkipped(f"skipped for {KEY.reveal()}"),
        StageFailed("code", f"refuses {KEY.reveal()}"),
        failing(FailureKind.FORBIDDEN, f"{KEY.reveal()} may not"),
    ],
)
async def test_a_key_that_a_provider_quotes_is_not_repeated(outcome: Exception | str) -> None:
    report = await run(Scripted(answer=outcome), KEY)
    assert KEY.reveal() not in repr(report)
    assert "***" in report.stages[3].message


ODD = Secret('sk-a"b\\c/d<e>&f+g')


@pytest.mark.parametrize(
    "quoted",
    [
        ODD.reveal(),
        json.dumps({"key": ODD.reveal()}),
        json.dumps(json.dumps({"key": ODD.reveal()})),
        json.dumps(ODD.reveal()).replace("/", r"\/"),
        json.dumps(ODD.reveal())
        .replace("<", r"\u003c")
        .replace(">", r"\u003e")
        .replace("&", r"\u0026"),
        repr(ODD.reveal()),
        html.escape(ODD.reveal()),
        quote(ODD.reveal(), safe=""),
    ],
)
async def test_a_key_is_not_repeated_however_it_is_written(quoted: str) -> None:
    outcome = failing(FailureKind.FORBIDDEN, f"{quoted} may not")
    report = await run(Scripted(answer=outcome), ODD)
    assert "***" in report.stages[3].message
    assert "sk-a" not in report.stages[3].message


@pytest.mark.parametrize(
    ("outcome", "instead"),
    [
        ("it works with ab", "this works"),
        (StageSkipped("skipped for ab"), "this cannot be tested"),
        (failing(FailureKind.FORBIDDEN, "ab may not"), "this does not work"),
    ],
)
async def test_what_quotes_a_very_short_key_is_said_in_our_words(
    outcome: Exception | str, instead: str
) -> None:
    report = await run(Scripted(answer=outcome, reachable="nothing of it here"), Secret("ab"))
    assert report.stages[0].message == "nothing of it here"
    assert report.stages[3].message.startswith(f"{instead};")
    assert "***" not in report.stages[3].message


def test_what_was_submitted_shows_no_key() -> None:
    submitted = Submitted(ProviderName.OPENROUTER, KEY, "m")
    assert KEY.reveal() not in f"{submitted!r} {submitted.preferences!r}"


def test_what_was_submitted_is_all_that_is_gone_by() -> None:
    openrouter = Submitted(ProviderName.OPENROUTER, KEY, "m").preferences
    assert (openrouter.openrouter_key, openrouter.openrouter_model) == (KEY, "m")
    assert openrouter.self_hosted_key is None
    server = Submitted(ProviderName.SELF_HOSTED, KEY, "m", url="https://a.example.com").preferences
    assert (server.self_hosted_key, server.self_hosted_url) == (KEY, "https://a.example.com")
    assert (server.openrouter_key, server.openrouter_model, server.tunnel_id) == (None, None, None)
    assert not server.fallback_to_default


# -- sentences


@pytest.mark.parametrize(("provider", "kind"), list(product(ProviderName, FailureKind)))
def test_every_failure_has_one_sentence_that_says_what_to_do(
    provider: ProviderName, kind: FailureKind
) -> None:
    failed = sentences.told(provider, failing(kind, f"{CANARY} broke."))
    sentence = str(failed)
    assert failed.code
    assert ";" in sentence
    assert not sentence.endswith(".")
    assert "\n" not in sentence
    if provider is ProviderName.DEFAULT:
        assert CANARY not in sentence
        assert "choose another" in sentence


@pytest.mark.parametrize("reason", list(UnreachableReason))
def test_every_way_not_to_reach_a_server_has_its_own_advice(reason: UnreachableReason) -> None:
    error = failing(FailureKind.UNREACHABLE)
    error.__cause__ = Unreachable(reason, "llm.example.com is away")
    failed = sentences.told(ProviderName.SELF_HOSTED, error)
    assert failed.code == reason.value
    assert str(failed).startswith("llm.example.com is away; ")
    others = {
        str(sentences.told(ProviderName.SELF_HOSTED, _caused(other)))
        for other in UnreachableReason
        if other is not reason
    }
    assert str(failed) not in others


def _caused(reason: UnreachableReason) -> AttemptFailed:
    error = failing(FailureKind.UNREACHABLE)
    error.__cause__ = Unreachable(reason, "llm.example.com is away")
    return error


@pytest.mark.parametrize("provider", list(ProviderName))
def test_slowness_is_told_with_the_time_that_was_given(provider: ProviderName) -> None:
    failed = sentences.too_slow(provider, 30)
    assert (failed.code, "30 s" in str(failed), "; " in str(failed)) == ("timed_out", True, True)


# -- names of models

OFFERED = ("openai/gpt-4o", "openai/gpt-4o-mini", "anthropic/claude-3.5-sonnet", "llama3.2:latest")


@pytest.mark.parametrize("name", ["openai/gpt-4o", "llama3.2", "llama3.2:latest"])
def test_a_model_that_is_offered_is_found(name: str) -> None:
    assert repr(name) in check_offered(name, OFFERED, "it")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("gpt-4o", "openai/gpt-4o"),
        ("OpenAI/GPT-4o", "openai/gpt-4o"),
        ("openai/gpt4o-mini", "openai/gpt-4o-mini"),
        ("claude-3.5-sonet", "anthropic/claude-3.5-sonnet"),
        ("llama3.1:latest", "llama3.2:latest"),
    ],
)
def test_a_near_name_is_suggested(name: str, nearest: str) -> None:
    assert near(name, OFFERED)[0] == nearest
    with pytest.raises(StageFailed, match="did you mean") as caught:
        check_offered(name, OFFERED, "it")
    assert repr(nearest) in str(caught.value)


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert near("zzzzzz", OFFERED) == []
    with pytest.raises(StageFailed, match="choose one of those"):
        check_offered("zzzzzz", OFFERED, "it")
    with pytest.raises(StageFailed, match="no models at all"):
        check_offered("any", (), "it")


@given(st.text(max_size=200), st.lists(st.text(max_size=200), max_size=100))
def test_suggestions_are_few_and_stand_in_the_list(name: str, offered: list[str]) -> None:
    close = near(name, offered)
    assert len(close) <= 3
    assert set(close) <= set(offered)


# -- the first token


@pytest.fixture
async def provider() -> AsyncGenerator[Provider]:
    async with providing() as running:
        yield running


@pytest.fixture
async def upstream(provider: Provider) -> AsyncGenerator[Upstream]:
    outbound = Outbound(NEVER_S)
    section = DefaultProviderSection(base_url=provider.url, model="m")
    router = RouterSection(silence_s=NEVER_S)
    yield DefaultProvider(section, router, outbound).upstream(is_fallback=False)
    outbound.close()


async def test_one_token_is_enough_and_the_rest_is_cut_off(
    provider: Provider, upstream: Upstream
) -> None:
    provider.expect(stream(role(), token("O"), Hang(0)))
    await first_token(upstream, None)
    request = await provider.request()
    await request.client_gone()
    assert request.json["stream"] is True
    assert request.json["max_tokens"] <= 16


@pytest.mark.parametrize("answer", [whole(chat_answer()), stream(role(), token("OK"))])
async def test_a_server_that_does_not_stream_has_answered_too(
    provider: Provider, upstream: Upstream, answer: Script
) -> None:
    provider.expect(answer)
    await first_token(upstream, None)


async def test_a_connection_that_the_server_let_go_of_is_no_failure(
    provider: Provider, upstream: Upstream
) -> None:
    connection = await upstream.acquire()
    provider.expect(whole({"data": []}))
    response = await connection.request(GET)
    await response.read(1000)
    upstream.release(connection)
    await provider.drop_all()
    await first_token(upstream, None)
    assert provider.connections == 2


async def test_a_cancelled_ask_cuts_the_connection(provider: Provider, upstream: Upstream) -> None:
    provider.expect(stream(role(), Hang(0)))
    asking = asyncio.ensure_future(first_token(upstream, None))
    request = await provider.request()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await request.client_gone()


async def test_a_refusal_that_is_not_about_the_limit_is_not_asked_again(
    provider: Provider, upstream: Upstream
) -> None:
    provider.expect(refusal(400, "messages must not be short"))
    with pytest.raises(AttemptFailed, match="must not be short"):
        await first_token(upstream, None)
    assert len(provider.requests) == 1


async def test_an_answer_that_is_an_error_after_all_is_a_failure(
    provider: Provider, upstream: Upstream
) -> None:
    provider.expect(whole({"error": {"message": "it is broken", "code": 500}}))
    with pytest.raises(AttemptFailed, match="it is broken"):
        await first_token(upstream, None)
