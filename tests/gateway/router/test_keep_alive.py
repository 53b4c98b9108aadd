"""Comments while a user's own model is silent before its answer, and what follows them."""

import asyncio
import gzip
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import APIError

from byoai_gateway.provider_config import (
    DefaultProviderSection,
    OpenRouterSection,
    RouterSection,
    SelfHostedSection,
)
from byoai_gateway.providers.compatible import CompatibleUpstream
from byoai_shared.http1.client import ClientConnection
from support.control import FakeClock, bearer, gateway_config
from support.gateway import CHAT, Gateway, open_gateway
from support.internet import https, trusted_authority
from support.loop_clock import NEVER_S, pass_time
from support.provider import HOST, Provider, providing
from support.provider_script import (
    DONE,
    Die,
    Hang,
    Pause,
    Script,
    Until,
    chat_answer,
    chat_events,
    error_event,
    finish,
    refusal,
    role,
    stream,
    token,
    whole,
)

KEEP_ALIVE_S = 0.1 * NEVER_S
FIRST_TOKEN_S = NEVER_S
STREAMED: dict[str, Any] = {"model": "provider-model", "stream": True, "messages": []}
COMMENT = b": keep-alive\n\n"
SLOW = Pause(1.1 * KEEP_ALIVE_S, times=3)
SOUND = b"".join((*chat_events("Hello", " there")[:-2], DONE))
"""Without the usage, which nobody asks for here."""


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Provider]:
    """Alice's own model server, at an https address."""
    context = https(trusted_authority(tmp_path, monkeypatch), HOST)
    async with providing(context) as provider:
        yield provider


@asynccontextmanager
async def self_hosting(
    directory: Path,
    clock: FakeClock,
    house: Provider,
    default: Provider,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> AsyncGenerator[Gateway]:
    """A gateway whose user Alice asks her own server, and nobody else."""
    config = msgspec.structs.replace(
        gateway_config(directory),
        relays=(),
        router=RouterSection(
            first_keep_alive_s=min(KEEP_ALIVE_S, keep_alive_s),
            keep_alive_s=keep_alive_s,
            silence_s=NEVER_S,
        ),
        self_hosted=SelfHostedSection(url_networks=("127.0.0.0/8",), first_token_s=NEVER_S),
        default_provider=DefaultProviderSection(
            base_url=default.url, key=None, first_token_s=NEVER_S
        ),
        openrouter=OpenRouterSection(base_url=default.url, first_token_s=NEVER_S),
    )
    async with open_gateway(config, clock) as gateway:
        await gateway.prefer(aiProvider="self-hosted", selfHostedUrl=house.url)
        yield gateway


@pytest.fixture
async def hosted(
    tmp_path: Path, clock: FakeClock, house: Provider, default: Provider
) -> AsyncGenerator[Gateway]:
    async with self_hosting(tmp_path, clock, house, default) as gateway:
        yield gateway


def comments(body: bytes) -> tuple[int, bytes]:
    """How many comments an answer begins with, and what is behind them."""
    count = 0
    while body.startswith(COMMENT):
        body = body.removeprefix(COMMENT)
        count += 1
    return count, body


def tale(attempts: int, provider: str = "self-hosted", reason: str | None = None) -> bytes:
    """What a stream says that its head could not say any more."""
    told = f": x-byoai-attempts: {attempts}\n: x-byoai-provider: {provider}\n"
    told += f": x-byoai-fallback-reason: {reason}\n" if reason else ""
    told += ": x-byoai-model: provider-model\n"
    return f"{told}\n".encode()


# -- comments


async def test_comments_come_in_time_and_the_head_with_the_first(
    hosted: Gateway, house: Provider
) -> None:
    may_answer = asyncio.Event()
    house.expect((Until(may_answer), *stream(*chat_events("Hello", " there"))))
    fields = {"authorization": bearer("alice", hosted.clock)}
    asking = asyncio.ensure_future(
        hosted.http.post(hosted.url + CHAT, json=STREAMED, headers=fields)
    )
    await house.request()
    await pass_time(0.9 * KEEP_ALIVE_S)
    assert not asking.done()
    await pass_time(0.2 * KEEP_ALIVE_S)
    async with await asking as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert "x-request-id" in response.headers
        assert "x-byoai-provider" not in response.headers
        assert await response.content.readexactly(len(COMMENT)) == COMMENT
        for _ in (2, 3):
            reading = asyncio.create_task(response.content.readexactly(len(COMMENT)))
            await pass_time(0.8 * KEEP_ALIVE_S)
            assert not reading.done()
            await pass_time(0.4 * KEEP_ALIVE_S)
            assert await reading == COMMENT
        may_answer.set()
        _, rest = comments(await response.read())
    assert rest == tale(1) + SOUND


@pytest.mark.parametrize("begin", [(), (role(),)], ids=["no head yet", "a role already"])
async def test_they_stop_with_the_first_token(
    hosted: Gateway, house: Provider, begin: tuple[bytes, ...]
) -> None:
    events = (token("a"), SLOW, token("b"), finish(), DONE)
    house.expect((SLOW, *stream(*begin, *events)) if not begin else stream(*begin, SLOW, *events))
    answer = await hosted.chat()
    count, rest = comments(answer.body)
    assert count >= 2
    assert COMMENT not in rest
    assert (answer.text, answer.events[-1]) == ("ab", b"[DONE]")


async def test_a_quick_answer_has_none(hosted: Gateway) -> None:
    answer = await hosted.chat()
    assert (answer.body, answer.headers["x-byoai-provider"]) == (SOUND, "self-hosted")


async def test_they_are_no_answer_and_no_excuse(hosted: Gateway, house: Provider) -> None:
    """The time for the first token passes while the client is told to wait."""
    house.always((SLOW, Hang()))
    answer = await hosted.chat()
    count, rest = comments(answer.body)
    assert count >= 3
    assert rest.startswith(tale(1))
    assert answer.stream_error["code"] == "first_token_timeout"
    (record,) = await hosted.records()
    assert (record.outcome, record.first_token_ms) == ("first_token_timeout", None)


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        ((SLOW, *refusal(504)), "provider_timeout"),
        ((SLOW, *refusal(400, "too long", code="context_length_exceeded")),
         "context_length_exceeded"),
        ((SLOW, Die()), "connection_lost"),
        ((SLOW, *stream(role())), "truncated"),
        ((SLOW, *stream(role(), token("so far"), Die())), "truncated"),
        ((SLOW, *stream(token("so far"), error_event("it broke"))), "error_in_answer"),
    ],
)  # fmt: skip
async def test_what_fails_behind_them_is_told_in_the_stream(
    hosted: Gateway, house: Provider, default: Provider, broken: Script, code: str
) -> None:
    house.always(broken)
    answer = await hosted.chat()
    assert (answer.status, answer.is_whole) == (200, True)
    count, rest = comments(answer.body)
    assert count >= 2
    assert rest.startswith(tale(1))
    assert answer.stream_error["code"] == code
    assert b"[DONE]" not in answer.events
    assert len(default.requests) == 0


async def test_a_fallback_behind_them_is_told_in_comments(hosted: Gateway, house: Provider) -> None:
    await hosted.prefer(fallbackToDefault=True)
    house.always((SLOW, *refusal(504)))
    answer = await hosted.chat()
    _, rest = comments(answer.body)
    assert rest == tale(2, "default", "provider_timeout") + SOUND
    (record,) = await hosted.records()
    assert (record.provider, record.fallback_reason) == ("default", "provider_timeout")


async def test_a_retry_behind_them_is_told_too(hosted: Gateway, house: Provider) -> None:
    house.expect((SLOW, *refusal(503)))
    _, rest = comments((await hosted.chat()).body)
    assert rest == tale(2) + SOUND


async def test_an_answer_in_one_piece_behind_them_is_one_event(
    hosted: Gateway, house: Provider
) -> None:
    house.expect((SLOW, *whole(msgspec.json.format(msgspec.json.encode(chat_answer())))))
    answer = await hosted.chat()
    _, rest = comments(answer.body)
    assert rest.startswith(tale(1) + b"data: {")
    assert (answer.text, answer.events[-1], len(answer.events)) == ("Hello there", b"[DONE]", 2)


@pytest.mark.parametrize(
    "script",
    [
        whole(b" " * (8 * 1024 * 1024) + b"{}"),
        whole(gzip.compress(b"{}"), headers={"content-encoding": "gzip"}),
        stream(gzip.compress(DONE), headers={"content-encoding": "gzip"}),
    ],
    ids=["too large to look at", "compressed", "compressed events"],
)
async def test_bytes_that_are_no_events_do_not_come_behind_them(
    hosted: Gateway, house: Provider, script: Script
) -> None:
    house.expect((SLOW, *script))
    answer = await hosted.chat()
    _, rest = comments(answer.body)
    assert rest.startswith(tale(1) + b"data: {")
    assert answer.stream_error["code"] == "malformed_answer"
    house.expect((SLOW, *script))
    await hosted.prefer(fallbackToDefault=True)
    _, rest = comments((await hosted.chat()).body)
    assert rest == tale(2, "default", "malformed_answer") + SOUND


async def test_the_official_client_reads_past_them(hosted: Gateway, house: Provider) -> None:
    house.expect(
        (SLOW, *stream(*chat_events("Hello", " there"))),
        (SLOW, *stream(token("so far"), error_event("it broke"))),
    )
    async with hosted.client(max_retries=2) as client:

        async def said() -> AsyncIterator[str]:
            chunks = await client.chat.completions.create(model="m", messages=[], stream=True)
            async for chunk in chunks:
                yield chunk.choices[0].delta.content or ""

        assert "".join([it async for it in said()]) == "Hello there"
        with pytest.raises(APIError, match="it broke"):
            _ = [it async for it in said()]
    assert len(house.requests) == 2


async def test_a_client_that_leaves_meanwhile_ends_the_work(
    hosted: Gateway, house: Provider
) -> None:
    house.expect((SLOW, Hang(0)))
    fields = {"authorization": bearer("alice", hosted.clock)}
    async with hosted.http.post(hosted.url + CHAT, json=STREAMED, headers=fields) as response:
        await response.content.readexactly(len(COMMENT))
        response.close()
    await (await house.request()).client_gone()


# -- wherever the wait is


async def test_they_come_while_the_connection_is_made(
    hosted: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, may_connect = CompatibleUpstream.acquire, asyncio.Event()
    is_connecting = asyncio.Event()

    async def acquire(self: CompatibleUpstream) -> ClientConnection:
        is_connecting.set()
        await may_connect.wait()
        return await connect(self)

    monkeypatch.setattr(CompatibleUpstream, "acquire", acquire)
    fields = {"authorization": bearer("alice", hosted.clock)}
    asking = asyncio.ensure_future(
        hosted.http.post(hosted.url + CHAT, json=STREAMED, headers=fields)
    )
    await is_connecting.wait()
    for _ in range(2):
        await pass_time(1.1 * KEEP_ALIVE_S)
    async with await asking as response:
        assert await response.content.readexactly(2 * len(COMMENT)) == 2 * COMMENT
        may_connect.set()
        _, rest = comments(await response.read())
    assert rest == tale(1) + SOUND


async def test_they_go_on_while_a_retry_is_waited_for(
    tmp_path: Path, clock: FakeClock, house: Provider, default: Provider
) -> None:
    house.expect(refusal(503, headers={"retry-after": "4"}))
    async with self_hosting(tmp_path, clock, house, default, keep_alive_s=1.0) as hosted:
        asking = asyncio.create_task(hosted.chat())
        await house.request()
        for _ in range(5):
            await pass_time(1.1)
        count, rest = comments((await asking).body)
    assert count >= 3
    assert rest == tale(2) + SOUND


async def test_they_go_on_while_the_fallback_is_asked(
    hosted: Gateway, house: Provider, default: Provider
) -> None:
    await hosted.prefer(fallbackToDefault=True)
    may_answer = asyncio.Event()
    house.always((SLOW, *refusal(504)))
    default.expect((Until(may_answer), *stream(*chat_events("Hello", " there"))))
    fields = {"authorization": bearer("alice", hosted.clock)}
    async with hosted.http.post(hosted.url + CHAT, json=STREAMED, headers=fields) as response:
        await default.request()
        for _ in range(5):
            await pass_time(1.1 * KEEP_ALIVE_S)
        # More than there was time for before.
        assert await response.content.readexactly(8 * len(COMMENT)) == 8 * COMMENT
        may_answer.set()
        _, rest = comments(await response.read())
    assert rest == tale(2, "default", "provider_timeout") + SOUND


async def test_they_begin_while_the_fallback_is_asked(
    hosted: Gateway, house: Provider, default: Provider
) -> None:
    await hosted.prefer(fallbackToDefault=True)
    house.always(refusal(504))
    default.expect((SLOW, *stream(*chat_events("Hello", " there"))))
    count, rest = comments((await hosted.chat()).body)
    assert count >= 2
    assert rest == tale(2, "default", "provider_timeout") + SOUND


# -- none


async def test_they_can_be_turned_off(
    tmp_path: Path, clock: FakeClock, house: Provider, default: Provider
) -> None:
    async with self_hosting(tmp_path, clock, house, default, keep_alive_s=0) as gateway:
        house.expect((SLOW, *stream(*chat_events("Hello", " there"))))
        answer = await gateway.chat()
    assert (answer.body, answer.headers["x-byoai-provider"]) == (SOUND, "self-hosted")


async def test_whole_answers_wait_in_silence(hosted: Gateway, house: Provider) -> None:
    house.expect((SLOW, *whole(chat_answer())), (SLOW, *whole({"data": []})))
    assert (await hosted.chat(stream=False)).json == chat_answer()
    answer = await hosted.ask({"model": "m", "stream": True}, path="/v1/embeddings")
    assert answer.json == {"data": []}


# -- on every path, and what else is a sign of life


@pytest.mark.parametrize("chosen", ["default", "openrouter"])
async def test_every_provider_is_waited_for_with_comments(
    hosted: Gateway, default: Provider, chosen: str
) -> None:
    settings: dict[str, Any] = {
        "openRouterApiKey": "sk-or-v1-alices-own-key",
        "openRouterModelPreference": "provider-model",
    }
    await hosted.prefer(aiProvider=chosen, **settings)
    default.expect((SLOW, *stream(*chat_events("Hello", " there"))))
    count, rest = comments((await hosted.chat()).body)
    assert count >= 2
    assert rest == tale(1, chosen) + SOUND


async def test_a_providers_own_comments_are_shown_once_the_stream_has_begun(
    hosted: Gateway, house: Provider
) -> None:
    may_begin, may_answer = asyncio.Event(), asyncio.Event()
    answered = stream(b": loading\n\n", Until(may_answer), *chat_events("Hello", " there"))
    house.expect((SLOW, Until(may_begin), *answered))
    fields = {"authorization": bearer("alice", hosted.clock)}
    async with hosted.http.post(hosted.url + CHAT, json=STREAMED, headers=fields) as response:
        await response.content.readexactly(len(COMMENT))
        may_begin.set()
        shown = await response.content.readuntil(b": loading\n\n")
        may_answer.set()
        _, rest = comments(await response.read())
    assert comments(shown)[1] == b": loading\n\n"
    assert rest == tale(1) + SOUND


async def test_comments_that_came_with_the_answer_stay_where_they_were(
    hosted: Gateway, house: Provider
) -> None:
    house.expect(stream(b": queued\n\n", *chat_events("Hello", " there")))
    assert (await hosted.chat()).body == b": queued\n\n" + SOUND


@pytest.mark.parametrize("life", [b": PROCESSING\n\n", role()], ids=["comment", "role"])
async def test_a_provider_that_shows_life_is_not_too_late(
    hosted: Gateway, house: Provider, life: bytes
) -> None:
    """In all it takes three times what a silence may."""
    beats = [step for _ in range(6) for step in (life, Pause(FIRST_TOKEN_S / 2))]
    house.expect(stream(*beats, *chat_events("Hello", " there")))
    answer = await hosted.chat()
    assert (answer.text, answer.events[-1]) == ("Hello there", b"[DONE]")


async def test_an_event_that_comes_in_pieces_is_a_sign_of_life(
    hosted: Gateway, house: Provider
) -> None:
    pieces = [step for _ in range(6) for step in (b" ", Pause(FIRST_TOKEN_S / 2))]
    house.expect(
        stream(b"data: {", *pieces, b'"choices": []}\n\n', *chat_events("Hello", " there"))
    )
    assert (await hosted.chat()).text == "Hello there"


HALF = Pause(0.6 * FIRST_TOKEN_S)


async def test_a_head_and_blank_lines_are_signs_of_life(hosted: Gateway, house: Provider) -> None:
    events = stream(HALF, b"\n\n", HALF, b"\n\n", HALF, *chat_events("Hello", " there"))
    house.expect((HALF, *events))
    assert (await hosted.chat()).text == "Hello there"


async def test_blanks_before_an_answer_in_one_piece_are_signs_of_life(
    hosted: Gateway, house: Provider
) -> None:
    most = Pause(0.6 * RouterSection().whole_answer_s)
    body = msgspec.json.encode(chat_answer())
    kind = {"content-type": "application/json"}
    house.expect(stream(b" ", most, b" ", most, b" ", most, body, headers=kind))
    assert (await hosted.chat(stream=False)).json == chat_answer()
