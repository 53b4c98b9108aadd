"""What clients send, through a running gateway: large, slow, broken, too much at once."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import openai
import pytest

from byoai_gateway.config import LimitsSection, ListenSection
from byoai_gateway.provider_config import DefaultProviderSection, RouterSection
from byoai_gateway.router.keeping import SHARES
from support.budgets import occupied
from support.control import FakeClock, bearer, gateway_config
from support.gateway import CHAT, Gateway, open_gateway
from support.loop_clock import NEVER_S, pass_time, settle, while_time_passes
from support.provider import HOST, Provider
from support.provider_script import Hang, chat_answer, whole
from support.waiting import until

MOST = 1_000_000
"""The largest body that the gateway of these tests takes, and all that it keeps of one user's."""
STALLED_S = NEVER_S
TRANSCRIPTIONS = "/v1/audio/transcriptions"
FORM_HEAD = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nw\r\n--x\r\n'


@pytest.fixture
async def strict(tmp_path: Path, clock: FakeClock, default: Provider) -> AsyncGenerator[Gateway]:
    """A gateway that takes and keeps little, and does not wait for long."""
    config = msgspec.structs.replace(
        gateway_config(tmp_path),
        relays=(),
        listen=ListenSection(body_timeout_s=STALLED_S),
        limits=LimitsSection(max_body_bytes=MOST),
        router=RouterSection(buffered_bytes=MOST * SHARES),
        default_provider=DefaultProviderSection(base_url=default.url),
    )
    async with open_gateway(config, clock) as gateway:
        yield gateway


class Wire:
    """A client's connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)

    async def head(self) -> tuple[int, dict[str, str]]:
        """The next head: its status and its headers, their names in lower case."""
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(": ") for line in lines if line)
        return int(first.split()[1]), {name.lower(): value for name, _, value in pairs}

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        body = await self.reader.readexactly(int(headers["content-length"]))
        return status, headers, body


@asynccontextmanager
async def wire(
    gateway: Gateway, *headers: str, path: str = CHAT, user: str = "alice"
) -> AsyncGenerator[Wire]:
    """A connection on which a request has begun."""
    port = int(gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection(HOST, port)
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: {bearer(user, gateway.clock)}",
        "Content-Type: application/json",
        *headers,
    )
    writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def chat_body(size: int = 0) -> bytes:
    """A chat of exactly `size` bytes, if that is enough for one."""
    bare = b'{"model":"m","messages":[],"user":"%b"}'
    return bare % (b"u" * (size - len(bare % b"")))


async def filled(it: Wire) -> int:
    """Send until nobody takes any more; return how many bytes that was."""
    sent = 0
    while True:
        it.send(bytes(MOST))
        sent += MOST
        draining = asyncio.ensure_future(it.writer.drain())
        await settle()
        if not draining.done():
            draining.cancel()
            return sent
        await draining


def code_of(body: bytes) -> str:
    code: str = msgspec.json.decode(body)["error"]["code"]
    return code


# -- size


@pytest.mark.parametrize(("size", "status"), [(MOST, 200), (MOST + 1, 413)])
async def test_a_body_may_be_as_large_as_is_set(
    strict: Gateway, default: Provider, size: int, status: int
) -> None:
    answer = await strict.ask(chat_body(size))
    assert answer.status == status
    assert [len(it.body) for it in default.requests] == ([size] if status == 200 else [])


async def test_200_mb_are_refused_before_they_came_and_whoever_sends_on_sees_it(
    strict: Gateway, default: Provider
) -> None:
    async with wire(strict, "Content-Length: 200000000") as it:
        status, headers, body = await it.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert code_of(body)
        it.send(bytes(100_000))  # it is read, not answered with a reset
        assert await it.reader.read() == b""
    assert not default.requests


async def test_a_body_in_chunks_is_refused_when_it_has_become_too_large(
    strict: Gateway, default: Provider
) -> None:
    async with wire(strict, "Transfer-Encoding: chunked") as it:
        it.send(*[b"20000\r\n", bytes(0x20000), b"\r\n"] * 9)
        status, headers, _ = await it.answer()
        assert (status, headers["connection"]) == (413, "close")
    assert not default.requests


async def test_the_official_client_sees_the_refusal_of_a_large_body_and_does_not_repeat_it(
    strict: Gateway, default: Provider
) -> None:
    async with strict.client(max_retries=2) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x" * 10 * MOST}]
            )
    assert caught.value.status_code == 413
    assert not default.requests


@pytest.mark.parametrize(("size", "first"), [(60, 100), (200_000_000, 413)])
async def test_a_client_that_asks_before_it_sends_is_told_at_once(
    strict: Gateway, default: Provider, size: int, first: int
) -> None:
    async with wire(strict, f"Content-Length: {size}", "Expect: 100-continue") as it:
        status, _ = await it.head()
        assert status == first
        if first == 100:
            it.send(chat_body(size))
            assert (await it.answer())[0] == 200
    assert len(default.requests) == (first == 100)


async def test_a_large_upload_is_not_kept(tmp_path: Path, clock: FakeClock) -> None:
    """A provider that does not read holds the client back; meanwhile nothing is kept here."""
    size = 90 * MOST
    may_read = asyncio.Event()
    taken = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        await may_read.wait()
        while taken < size:
            taken += len(await reader.read(MOST))
        (answer,) = whole({"text": "hello"})
        assert isinstance(answer, bytes)
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    config = msgspec.structs.replace(
        gateway_config(tmp_path),
        relays=(),
        default_provider=DefaultProviderSection(base_url=f"http://{HOST}:{port}/v1"),
    )
    async with (
        server,
        open_gateway(config, clock) as gateway,
        wire(gateway, f"Content-Length: {size}", path=TRANSCRIPTIONS) as it,
    ):
        it.send(FORM_HEAD)
        sent = len(FORM_HEAD) + await filled(it)
        assert sent < size / 2  # all of it in the sockets' buffers
        assert gateway.data_path.serving.budget.used == 0
        may_read.set()
        it.send(bytes(size - sent))
        assert (await it.answer())[0] == 200
    assert taken == size


# -- time, and how many at once


@pytest.mark.parametrize("begun", [b"", b'{"model"'], ids=["nothing", "a part"])
async def test_a_body_that_stops_coming_is_given_up(
    strict: Gateway, default: Provider, begun: bytes
) -> None:
    async with wire(strict, "Content-Length: 60") as it:
        it.send(begun)
        status, headers, _ = await while_time_passes(it.answer(), 0.2 * STALLED_S)
        assert (status, headers["connection"]) == (408, "close")
    assert not default.requests


async def test_a_body_that_comes_slowly_is_waited_for(strict: Gateway) -> None:
    body = chat_body(6000)
    async with wire(strict, "Content-Length: 6000") as it:
        for at in range(0, 6000, 500):
            it.send(body[at : at + 500])
            await pass_time(STALLED_S / 3)
        assert (await it.answer())[0] == 200


async def test_a_body_that_drips_is_not_waited_for(strict: Gateway) -> None:
    body = chat_body(6000)
    async with wire(strict, "Content-Length: 6000") as it:
        for at in range(4):
            it.send(body[at : at + 1])
            await pass_time(STALLED_S / 3)
        status, headers, _ = await it.answer()
        assert (status, headers["connection"]) == (408, "close")


async def test_what_finds_no_room_comes_back_in_a_moment(
    strict: Gateway, default: Provider
) -> None:
    budget = strict.data_path.serving.budget
    size = MOST // 2 + 1
    body = chat_body(size)
    with occupied(budget, MOST):
        async with wire(strict, f"Content-Length: {size}") as it:
            it.send(body[:9])
            await until(lambda: budget.used > (SHARES - 1) * MOST)
            async with wire(strict, f"Content-Length: {size}", user="bob") as other:
                status, headers, said = await other.answer()
            assert (status, headers["retry-after"], code_of(said)) == (503, "1", "overloaded")
            assert "x-should-retry" not in headers
            it.send(body[9:])
            assert (await it.answer())[0] == 200
    assert budget.used == 0
    assert (await strict.ask(body)).status == 200
    assert [len(it.body) for it in default.requests] == [size] * 2


@pytest.mark.parametrize("framing", [f"Content-Length: {MOST + 1}", "Transfer-Encoding: chunked"])
async def test_no_request_gets_more_than_its_users_share(
    tmp_path: Path, clock: FakeClock, default: Provider, framing: str
) -> None:
    config = msgspec.structs.replace(
        gateway_config(tmp_path),
        relays=(),
        router=RouterSection(buffered_bytes=MOST * SHARES),
        default_provider=DefaultProviderSection(base_url=default.url),
    )
    async with open_gateway(config, clock) as gateway:
        budget = gateway.data_path.serving.budget
        async with wire(gateway, framing) as it:
            if framing.startswith("Transfer"):
                it.send(*[b"20000\r\n", bytes(0x20000), b"\r\n"] * 9)
            status, headers, said = await it.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert code_of(said) == "memory_share_exceeded"
        assert "retry-after" not in headers
        assert not default.requests
        await until(lambda: budget.used == 0)
        async with gateway.client(max_retries=2) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x" * MOST}]
                )
        assert caught.value.status_code == 413
        assert (await gateway.ask(chat_body(MOST))).status == 200


async def test_a_client_that_leaves_in_the_middle_makes_room(strict: Gateway) -> None:
    budget = strict.data_path.serving.budget
    async with wire(strict, f"Content-Length: {MOST}") as it:
        it.send(b"{")
        await until(lambda: budget.used > 0)
    await until(lambda: budget.used == 0)


async def test_a_body_in_chunks_counts_as_what_has_come(strict: Gateway, default: Provider) -> None:
    budget = strict.data_path.serving.budget
    default.expect((Hang(0),))
    body = chat_body(60)
    async with wire(strict, "Transfer-Encoding: chunked") as it:
        it.send(b"1\r\n" + body[:1] + b"\r\n")
        await until(lambda: budget.used == 1)
        it.send(b"%x\r\n" % 59 + body[1:] + b"\r\n0\r\n\r\n")
        assert (await default.request()).body == body
        assert budget.used == 60
    await until(lambda: budget.used == 0)


# -- what stands in it

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b'{"model": "m"} {}', "invalid_json", None),
        (b'\xff{"model": "m"}', "invalid_json", None),
        (b'{"model": NaN}', "invalid_json", None),
        (b'"text"', "invalid_body", None),
        (b"null", "invalid_body", None),
        (b'{"messages": %b}' % DEEP, "invalid_json", None),
        (b'{"model": %b}' % DEEP, "invalid_json", None),
        (b'{"stream": "yes"}', "invalid_body", "stream"),
        (b'{"stream": 1}', "invalid_body", "stream"),
        (b'{"stream": true, "stream_options": 1}', "invalid_body", "stream_options"),
        (b'{"model": 5}', "invalid_body", "model"),
        (b'{"model": "%b"}' % (b"m" * 201), "invalid_body", "model"),
        (b'{"model": "a\\nb"}', "invalid_body", "model"),
    ],
)
async def test_rubbish_is_named_and_reaches_nobody(
    gateway: Gateway, default: Provider, body: bytes, code: str, param: str | None
) -> None:
    answer = await gateway.ask(body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)
    assert not default.requests


@pytest.mark.parametrize(
    ("body", "is_stream"),
    [
        (b'{"stream": null, "model": null}', False),
        (b'{"stream": false, "stream": true}', True),
        (b'{"stream": true, "stream": false}', False),
        (b' {"messages":\n[] , "model":"m"}\n', False),
    ],
)
async def test_odd_bodies_are_read_as_providers_read_them(
    gateway: Gateway, default: Provider, body: bytes, *, is_stream: bool
) -> None:
    answer = await gateway.ask(body)
    assert (answer.status, answer.text if is_stream else answer.json) == (
        200,
        "Hello there" if is_stream else chat_answer(),
    )
    assert (await default.request()).json.get("stream", False) in {is_stream, None}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
async def test_json_is_json_whatever_it_is_called(
    gateway: Gateway, default: Provider, kind: str
) -> None:
    answer = await gateway.ask({"model": "m"}, **{"content-type": kind})
    assert answer.status == 200
    assert (await default.request()).headers["content-type"] == kind


async def test_a_body_in_chunks_reaches_the_provider_with_its_length(
    strict: Gateway, default: Provider
) -> None:
    async with wire(strict, "Transfer-Encoding: chunked") as it:
        for byte in chat_body(60):
            it.send(b"1\r\n%c\r\n" % byte)
        it.send(b"0\r\n\r\n")
        assert (await it.answer())[0] == 200
    request = await default.request()
    assert (request.body, request.headers["content-length"]) == (chat_body(60), "60")
