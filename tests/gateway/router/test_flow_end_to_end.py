"""How much is kept of an answer, and who waits for whom, through a running gateway."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import aiohttp
import pytest

from support.control import bearer
from support.gateway import CHAT, Gateway
from support.loop_clock import NEVER_S, pass_time, settle, stopped
from support.provider import Provider
from support.provider_script import (
    DONE,
    Endless,
    Hang,
    Pause,
    Script,
    Step,
    Until,
    event,
    finish,
    framed,
    head,
    role,
    stream,
    token,
    typed,
)

TOO_LONG = Pause(1.2 * NEVER_S)
"""Past the timers that the gateway of these tests has."""
STREAMED: dict[str, Any] = {"model": "m", "stream": True, "messages": []}
PIECE = token("x" * 50_000)
PIECES = 2000
"""100 MB: many times what sockets keep."""


class Counted:
    """A long answer as a script; each piece counts when it has been written."""

    def __init__(self, *end: Step) -> None:
        self.written = 0
        self._end = end

    def __iter__(self) -> Iterator[Step]:
        framing = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
        yield head(200, framing)
        piece = framed(PIECE)
        for _ in range(PIECES):
            yield piece
            self.written += len(PIECE)
        yield from (framed(it) for it in self._end)
        yield b"0\r\n\r\n"


@asynccontextmanager
async def streaming(
    gateway: Gateway, path: str = CHAT, body: Any = None
) -> AsyncGenerator[aiohttp.ClientResponse]:
    """An answer that is read by hand; left early, its connection is cut."""
    fields = {"authorization": bearer("alice", gateway.clock)}
    async with gateway.http.post(
        gateway.url + path, json=body or STREAMED, headers=fields
    ) as response:
        try:
            yield response
        finally:
            response.close()


# -- how much is kept


@pytest.mark.parametrize(
    ("endless", "reason"),
    [
        (role() * 500, "malformed_answer"),
        (b": PROCESSING\n\n" * 500, "malformed_answer"),
        (b"x" * 500_000, "malformed_answer"),
    ],
    ids=["roles", "comments", "a line without end"],
)
async def test_what_goes_on_and_says_nothing_is_neither_kept_nor_an_answer(
    bring_own: Gateway, own: Provider, default: Provider, endless: bytes, reason: str
) -> None:
    too_long = (endless, TOO_LONG) if reason == "first_token_timeout" else ()
    own.expect(stream(*too_long, Endless(endless)))
    answer = await bring_own.chat()
    assert (answer.status, answer.text) == (200, "Hello there")
    assert answer.headers["x-byoai-fallback-reason"] == reason
    await (await own.request()).client_gone()


async def test_a_long_beginning_is_kept_and_passed_on(gateway: Gateway, default: Provider) -> None:
    created = typed("response.created", response={"instructions": "x" * 1_000_000})
    begun = typed("response.in_progress", response={"instructions": "x" * 1_000_000})
    said = (created, begun, typed("response.output_text.delta", delta="a"))
    end = typed("response.completed", response={"status": "completed"})
    default.expect(stream(*said, end))
    answer = await gateway.ask({"model": "m", "stream": True}, path="/v1/responses")
    assert answer.body == b"".join((*said, end))


# -- who waits for whom


async def test_a_slow_client_holds_the_provider_back_and_is_not_its_silence(
    gateway: Gateway, default: Provider
) -> None:
    script = Counted(finish(), DONE)
    default.expect(cast("Script", script))
    async with streaming(gateway) as response:
        assert (await response.content.readexactly(9)) == PIECE[:9]
        written = -1
        while script.written != written:
            written = script.written
            await settle()
        assert written < PIECES * len(PIECE) / 2
        await pass_time(3 * NEVER_S)
        tail, size = b"", 9
        async for piece in response.content.iter_any():
            tail = (tail + piece)[-len(DONE) :]
            size += len(piece)
    assert tail == DONE
    assert size == PIECES * len(PIECE) + len(finish() + DONE)
    (record,) = await gateway.records()
    assert record.outcome == "ok"


async def test_a_provider_that_falls_silent_later_is_not_excused_by_a_slow_client(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(cast("Script", Counted(Hang(0))))
    async with streaming(gateway) as response:
        await response.content.readexactly(9)
        await pass_time(2 * NEVER_S)
        unread = PIECES * len(PIECE) - 9
        while unread:
            unread -= len(await response.content.read(unread))
        await pass_time(1.2 * NEVER_S)
        tail = await response.content.read()
    assert b'"code":"silence"' in tail
    assert DONE not in tail


@pytest.mark.parametrize(
    ("path", "script", "until"),
    [
        (CHAT, stream(Endless(token("again"))), b"again"),
        (CHAT, stream(token("once"), Hang(0)), b"once"),
        (CHAT, stream(token("once"), finish(), Hang(0)), b"once"),
        ("/v1/messages", stream(event({"type": "content_block_delta"}), Hang(0)), b"delta"),
        ("/v1/audio/speech", stream(Endless(b"sound")), b"sound"),
    ],
    ids=["never stops", "is silent", "is through", "anthropic", "bytes"],
)
async def test_a_client_that_leaves_frees_the_provider_at_once(
    gateway: Gateway, default: Provider, path: str, script: Script, until: bytes
) -> None:
    default.expect(script)
    async with AsyncExitStack() as client:
        response = await client.enter_async_context(streaming(gateway, path))
        await response.content.readuntil(until)
        with stopped():
            await client.aclose()
            await (await default.request()).client_gone()
    (record,) = await gateway.records()
    assert record.outcome == "client_left"


async def test_a_client_that_leaves_before_the_first_token_frees_the_provider_at_once(
    gateway: Gateway, default: Provider
) -> None:
    default.expect((Hang(0),))
    asking = asyncio.create_task(gateway.chat())
    request = await default.request()
    with stopped():
        asking.cancel()
        await request.client_gone()
    await asyncio.gather(asking, return_exceptions=True)


async def test_tokens_come_one_by_one_as_they_are_said(gateway: Gateway, default: Provider) -> None:
    was_read = asyncio.Event()
    default.expect(stream(token("a"), Until(was_read), token("b"), finish(), DONE))
    async with streaming(gateway) as response:
        await response.content.readuntil(token("a"))
        was_read.set()
        assert (await response.content.read()).startswith(token("b"))
