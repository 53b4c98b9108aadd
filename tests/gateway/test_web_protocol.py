"""What the web application cannot read, asked for over the public door byte by byte."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from support.control import FakeClock, bearer, gateway_config, joined_agent
from support.garbage import cyclic_garbage
from support.gateway import PREFERENCES, Gateway, open_gateway

CANARY = "a-canary-that-nobody-repeats"
REGISTER = "POST /api/tunnel/register"
LIST = "GET /api/tunnel"


@pytest.fixture
async def gateway(tmp_path: Path, clock: FakeClock) -> AsyncGenerator[Gateway]:
    config = msgspec.structs.replace(gateway_config(tmp_path), relays=())
    async with open_gateway(config, clock) as gateway:
        yield gateway


async def ask(gateway: Gateway, call: str, headers: str, body: bytes = b"") -> tuple[int, str]:
    """Send exactly this as alice; answers the status, and the answer as it came."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    authorization = f"Authorization: {bearer('alice', gateway.clock)}\r\n"
    writer.write(f"{call} HTTP/1.1\r\n{authorization}{headers}\r\n".encode() + body)
    try:
        async with asyncio.timeout(50):
            answer = (await reader.read()).decode()
    finally:
        writer.close()
        await writer.wait_closed()
    return int(answer.split(" ", 2)[1]), answer


@pytest.mark.parametrize(
    ("call", "headers", "body", "status"),
    [
        (LIST, f"x-no-host: {CANARY}\r\n", b"", 400),
        (f"GET http://[{CANARY}", "Host: x\r\n", b"", 400),
        (REGISTER, "Host: x\r\nTransfer-Encoding: chunked\r\n", CANARY.encode() + b"\r\n", 400),
        (REGISTER, "Host: x\r\nTransfer-Encoding: chunked\r\n", b"1\r\n{\r\nzz\r\n", 400),
        (REGISTER, "Host: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n", b"{}", 400),
        (REGISTER, "Host: x\r\nContent-Encoding: br\r\nContent-Length: 2\r\n", b"{}", 400),
        (REGISTER, f"Host: x\r\nExpect: {CANARY}\r\nContent-Length: 2\r\n", b"{}", 417),
    ],
)
async def test_what_is_no_http_is_refused_in_our_shape_and_not_repeated(
    gateway: Gateway,
    caplog: pytest.LogCaptureFixture,
    call: str,
    headers: str,
    body: bytes,
    status: int,
) -> None:
    with caplog.at_level(logging.DEBUG):
        found, answer = await ask(gateway, call, headers, body)
    assert found == status
    error = msgspec.json.decode(answer.partition("\r\n\r\n")[2])["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert CANARY not in answer
    assert "aiohttp/" not in answer
    assert CANARY not in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("size", [8_000, 12_000, 60_000])
async def test_a_head_may_be_as_large_everywhere_as_the_door_takes_it(
    gateway: Gateway, size: int
) -> None:
    for call, headers in (
        (LIST, f"Host: x\r\nx-large: {'a' * size}\r\n"),
        (f"{LIST}?x={'a' * size}", "Host: x\r\n"),
    ):
        assert (await ask(gateway, call, headers))[0] == 200


async def test_a_compressed_body_is_not_blown_up(gateway: Gateway) -> None:
    headers = "Host: x\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n"
    status, answer = await ask(gateway, REGISTER, headers, b"{}")
    assert (status, "modelInfo" in answer) == (400, True)


async def test_what_ended_is_not_left_in_reference_cycles(gateway: Gateway) -> None:
    tunnel_id = (await joined_agent(gateway.control)).tunnel_id
    paths = ("/api/tunnel", f"/api/tunnel/status/{tunnel_id}", PREFERENCES)
    calls = [(f"GET {path}", "Host: x\r\n", 200) for path in paths]
    calls.append((LIST, "x-no-host: x\r\n", 400))
    with cyclic_garbage() as left:
        for _ in range(2):
            for call, headers, status in calls:
                assert (await ask(gateway, call, headers))[0] == status
    assert not left
