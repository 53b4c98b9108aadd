"""What is kept of answers, and clients that do not take theirs, through a running gateway."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest

from byoai_gateway.config import LimitsSection
from byoai_gateway.provider_config import RouterSection
from byoai_gateway.router.keeping import FREE_BYTES, SHARES
from support.budgets import occupied
from support.chain import bring_own, chain
from support.control import FakeClock, bearer
from support.gateway import CHAT, Gateway, open_gateway
from support.loop_clock import NEVER_S, loop_time, pass_time, while_time_passes
from support.provider import HOST, Provider
from support.provider_script import (
    DONE,
    Endless,
    Hang,
    Script,
    chat_answer,
    finish,
    framed,
    head,
    role,
    stream,
    token,
    whole,
)
from support.waiting import until

MOST = 2 * 1024 * 1024
"""All that the strict gateway keeps at once; a user's share is a quarter."""
PIECE = FREE_BYTES + MOST // SHARES // 2
"""Two of these fill a share."""
STALL_S = NEVER_S
SLOWLY = 9_000_000
"""Several times what a system's buffer, which is refilled when a third of it is free, holds."""
BYTES_PER_STALL = 3_000_000
SPEECH = "/v1/audio/speech"
LONG = 7_000_000
"""More than sockets keep of what a client does not read."""


def dribbling(size: int) -> Script:
    """An answer in one piece, of no declared length, that does not come to its end."""
    framing = {"content-type": "application/json", "transfer-encoding": "chunked"}
    return head(200, framing), *(framed(it) for it in (b'{"a":"' + b"x" * (size - 6), Hang(0)))


def undeclared(data: bytes) -> Script:
    framing = {"content-type": "application/json", "transfer-encoding": "chunked"}
    return head(200, framing), b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)


def saying_nothing(size: int) -> Script:
    return stream(role() * (size // len(role())), Hang(0))


def without_end(size: int) -> Script:
    """A stream whose first event does not end."""
    return stream(b"data: " + b"x" * (size - 6), Hang(0))


@asynccontextmanager
async def gateway_with(
    directory: Path, default: Provider, own: Provider, **router: float
) -> AsyncGenerator[Gateway]:
    section = msgspec.convert({"breaker_failures": 1, **router}, RouterSection)
    limits = LimitsSection(concurrent_requests=4)
    config = chain(directory, default, own, router=section, limits=limits)
    async with open_gateway(config, FakeClock()) as gateway:
        yield gateway


@pytest.fixture
async def strict(tmp_path: Path, default: Provider, own: Provider) -> AsyncGenerator[Gateway]:
    """Alice asks her own provider, and would fall back."""
    async with gateway_with(tmp_path, default, own, buffered_bytes=MOST) as gateway:
        await bring_own(gateway)
        yield gateway


@pytest.fixture
async def impatient(tmp_path: Path, default: Provider, own: Provider) -> AsyncGenerator[Gateway]:
    async with gateway_with(tmp_path, default, own, client_stall_s=STALL_S) as gateway:
        yield gateway


@contextmanager
def asking(gateway: Gateway, *, is_stream: bool) -> Generator["asyncio.Task[object]"]:
    """A request of Alice's under way; she leaves at the end."""
    task: asyncio.Task[object] = asyncio.create_task(gateway.chat(stream=is_stream))
    try:
        yield task
    finally:
        task.cancel()


class Reader:
    """A client with small buffers, so that what it does not read is soon the gateway's."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def read(self, most_bytes: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, most_bytes)


@asynccontextmanager
async def reading(gateway: Gateway, *, is_stream: bool, path: str = CHAT) -> AsyncGenerator[Reader]:
    body = msgspec.json.encode({"model": "m", "stream": is_stream, "messages": []})
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: {bearer('alice', gateway.clock)}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (HOST, int(gateway.url.rpartition(":")[2])))
        raw = "".join(f"{line}\r\n" for line in (*lines, "")).encode() + body
        await loop.sock_sendall(connection, raw)
        yield Reader(connection)


# -- room for answers


@pytest.mark.parametrize(
    ("script", "is_stream"),
    [(dribbling, False), (saying_nothing, True), (without_end, True)],
    ids=["in one piece", "a stream that says nothing", "an event without end"],
)
async def test_answers_of_one_user_fill_no_more_than_a_share_and_others_pass(
    strict: Gateway,
    default: Provider,
    own: Provider,
    script: Callable[[int], Script],
    *,
    is_stream: bool,
) -> None:
    budget = strict.data_path.serving.budget
    own.always(script(PIECE - 1000))
    with asking(strict, is_stream=is_stream), asking(strict, is_stream=is_stream):
        await until(lambda: budget.used > 2 * (PIECE - FREE_BYTES - 2000))
        answer = await strict.chat(stream=is_stream)
        assert (answer.status, answer.error["code"]) == (429, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-byoai-attempts"] == "1"
        assert "x-byoai-fallback-reason" not in answer.headers
        await (await own.request(2)).client_gone()
        assert not default.requests

        default.expect(whole(chat_answer("x" * 3 * FREE_BYTES)))
        assert (await strict.chat(stream=False, user="bob")).status == 200
        assert budget.used_by("bob") == 0
        assert budget.used <= MOST // SHARES
    await until(lambda: budget.used == 0)
    own.always(whole(chat_answer()))
    # It was not the provider's fault: no breaker is open.
    answer = await strict.chat(stream=False)
    assert (answer.status, answer.headers["x-byoai-provider"]) == (200, "openrouter")


async def test_all_answers_together_fill_no_more_than_there_is_room_for(
    strict: Gateway, own: Provider
) -> None:
    budget = strict.data_path.serving.budget
    own.expect(dribbling(PIECE))
    with occupied(budget, PIECE // 2):
        answer = await strict.chat(stream=False)
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
    assert budget.used == 0


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_that_exceeds_its_users_share_is_refused_although_it_is_the_only_one(
    strict: Gateway, default: Provider, own: Provider, *, is_stream: bool
) -> None:
    size = FREE_BYTES + MOST // SHARES + 1000
    own.expect(without_end(size) if is_stream else dribbling(size))
    answer = await strict.chat(stream=is_stream)
    assert (answer.status, answer.error["code"]) == (413, "memory_share_exceeded")
    assert "retry-after" not in answer.headers
    assert answer.headers["x-byoai-attempts"] == "1"
    assert not default.requests
    assert strict.data_path.serving.budget.used == 0
    own.always(whole(chat_answer()))
    # It was not the provider's fault: no breaker is open.
    answer = await strict.chat(stream=False)
    assert (answer.status, answer.headers["x-byoai-provider"]) == (200, "openrouter")


async def test_an_event_that_outgrows_the_room_ends_its_stream_with_an_error(
    strict: Gateway, default: Provider
) -> None:
    budget = strict.data_path.serving.budget
    await strict.prefer(aiProvider="default")
    default.expect(stream(token("a"), b"data: " + b"x" * PIECE, Hang(0)))
    with budget.hold("alice", MOST // SHARES):
        answer = await strict.chat()
    assert (answer.text, answer.stream_error["code"]) == ("a", "overloaded")
    assert budget.used == 0


async def test_an_answer_that_fails_makes_room_for_the_next_ones(
    strict: Gateway, default: Provider, own: Provider
) -> None:
    own.expect(whole({**chat_answer("x" * PIECE), "error": {"message": "no", "code": 500}}))
    default.expect(whole(chat_answer("x" * PIECE)))
    with strict.data_path.serving.budget.hold("alice", MOST // SHARES - PIECE):
        # The second try, or the fallback, finds what the first has left.
        assert (await strict.chat(stream=False)).status == 200


# -- clients that take nothing


@pytest.mark.parametrize(
    ("path", "script", "is_stream"),
    [
        (CHAT, stream(Endless(token("x" * 50_000))), True),
        (SPEECH, stream(Endless(b"x" * 50_000), headers={"content-type": "audio/mpeg"}), False),
        (CHAT, whole(chat_answer("x" * LONG)), False),
    ],
    ids=["a stream", "bytes", "in one piece"],
)
async def test_a_client_that_reads_nothing_any_more_is_cut(
    impatient: Gateway, default: Provider, path: str, script: Script, *, is_stream: bool
) -> None:
    serving = impatient.data_path.serving
    default.expect(script)
    async with reading(impatient, path=path, is_stream=is_stream) as client:
        assert await client.read(9) == b"HTTP/1.1 "
        if not script[1:]:
            # It is the provider's no more, but what the client does not take still counts.
            await until(lambda: serving.budget.used > LONG - FREE_BYTES)
        # The watch looks several times in that period, each time whether some more was taken.
        ended = until(lambda: impatient.data_path.requests.in_flight == 0)
        await while_time_passes(ended, STALL_S / 5)
        if script[1:]:
            await (await default.request()).client_gone()
    assert serving.budget.used == 0
    (record,) = await impatient.records()
    assert record.outcome == "client_left"
    assert impatient.data_path.requests.outcomes["client_left"] == 1
    assert (await impatient.chat()).status == 200


@pytest.mark.parametrize(
    ("script", "is_stream"),
    [
        (stream(*[token("x" * 50_000)] * (SLOWLY // 50_000), finish(), DONE), True),
        (undeclared(msgspec.json.encode(chat_answer("x" * SLOWLY))), False),
    ],
    ids=["a stream", "in one piece"],
)
async def test_a_client_that_reads_slowly_is_never_cut(
    impatient: Gateway, default: Provider, script: Script, *, is_stream: bool
) -> None:
    default.expect(script)
    began_at, size = loop_time(), 0
    async with reading(impatient, is_stream=is_stream) as client:
        while size < SLOWLY or impatient.data_path.requests.in_flight:
            piece = await client.read(64 * 1024)
            assert piece
            size += len(piece)
            await pass_time(STALL_S * len(piece) / BYTES_PER_STALL)
    assert loop_time() - began_at > 2 * STALL_S
    (record,) = await impatient.records()
    assert record.outcome == "ok"
