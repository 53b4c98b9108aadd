"""The scripted provider does what it is told: without that, no test of the router proves much."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest

from byoai_shared.identity import RelayIdentity
from support.authority import Authority
from support.provider import Provider, Request, providing
from support.provider_script import (
    DONE,
    Close,
    Die,
    Endless,
    Hang,
    Script,
    Until,
    bytewise,
    chat_answer,
    chat_events,
    half,
    head,
    long_token,
    refusal,
    responses_events,
    role,
    stream,
    stream_to_close,
    token,
    typed,
    whole,
)

STREAMED = {"model": "m", "stream": True}


@pytest.fixture
async def provider() -> AsyncGenerator[Provider, None]:
    async with providing() as running:
        yield running


@pytest.fixture
async def client() -> AsyncGenerator[aiohttp.ClientSession, None]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        yield session


async def post(client: aiohttp.ClientSession, provider: Provider) -> tuple[int, bytes]:
    async with client.post(f"{provider.url}/chat/completions", json=STREAMED) as response:
        return response.status, await response.read()


async def test_without_orders_it_answers_as_it_should(
    client: aiohttp.ClientSession, provider: Provider
) -> None:
    status, body = await post(client, provider)
    assert (status, body) == (200, b"".join(chat_events("Hello", " there")))
    async with client.post(f"{provider.url}/chat/completions", json={}) as response:
        assert await response.json() == chat_answer()
    async with client.get(f"{provider.url}/models") as response:
        assert (await response.json())["object"] == "list"


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("completions", DONE),
        ("messages", typed("message_stop")),
        ("responses", responses_events("Hello", " there")[-1]),
    ],
)
async def test_it_speaks_each_dialect(
    client: aiohttp.ClientSession, provider: Provider, path: str, last: bytes
) -> None:
    async with client.post(f"{provider.url}/{path}", json=STREAMED) as response:
        body = await response.read()
    assert b"Hello" in body
    assert body.endswith(last)


async def test_orders_are_obeyed_one_by_one_on_a_connection_that_is_kept(
    client: aiohttp.ClientSession, provider: Provider
) -> None:
    provider.expect(
        refusal(429, headers={"retry-after": "2"}), whole(b"<p>", 502, kind="text/html")
    )
    assert [(await post(client, provider))[0] for _ in range(3)] == [429, 502, 200]
    assert [request.connection for request in provider.requests] == [0, 0, 0]
    noted = provider.requests[0]
    assert (noted.method, noted.target, noted.json) == ("POST", "/v1/chat/completions", STREAMED)
    assert not noted.gone.done()


async def test_an_event_is_held_back_until_the_test_says_so(
    client: aiohttp.ClientSession, provider: Provider
) -> None:
    goes_on = asyncio.Event()
    provider.expect(stream(token("a"), Until(goes_on), DONE))
    async with client.post(f"{provider.url}/chat/completions", json=STREAMED) as response:
        assert await response.content.readany() == token("a")
        goes_on.set()
        assert await response.read() == DONE


@pytest.mark.parametrize(
    "script",
    [
        stream(token("a"), token("b")[:20], Die()),
        stream(token("a"), token("b")[:20], Close()),
        half(chat_answer()),
    ],
)
async def test_an_answer_breaks_off(
    client: aiohttp.ClientSession, provider: Provider, script: Script
) -> None:
    provider.expect(script)
    with pytest.raises(aiohttp.ClientPayloadError):
        await post(client, provider)


async def test_a_connection_is_reset(client: aiohttp.ClientSession, provider: Provider) -> None:
    provider.always((Die(with_reset=True),))
    with pytest.raises(aiohttp.ClientOSError):
        await post(client, provider)


async def test_a_connection_ends_as_soon_as_it_begins(
    client: aiohttp.ClientSession, provider: Provider
) -> None:
    provider.greeting = (Die(),)
    with pytest.raises(aiohttp.ClientError):
        await post(client, provider)
    assert provider.requests == []


async def test_a_stream_that_ends_with_its_connection_is_whole(
    client: aiohttp.ClientSession, provider: Provider
) -> None:
    provider.expect(stream_to_close(token("a"), DONE))
    assert await post(client, provider) == (200, token("a") + DONE)


async def test_it_answers_over_tls(client: aiohttp.ClientSession, tmp_path: Path) -> None:
    authority = Authority("web")
    credentials = authority.credentials(RelayIdentity("provider"))
    file = tmp_path / "provider.pem"
    file.write_bytes(credentials.certificate_pem + credentials.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    trust = ssl.create_default_context(cadata=authority.pem.decode())
    async with (
        providing(context) as provider,
        client.get(f"{provider.url}/models", ssl=trust) as response,
    ):
        assert response.status == 200
        assert provider.url.startswith("https://")


async def test_every_byte_comes_by_itself(
    client: aiohttp.ClientSession, provider: Provider
) -> None:
    events = (role(), token("a"), DONE)
    provider.expect(tuple(bytewise(stream(*events))))
    assert (await post(client, provider))[1] == b"".join(events)


async def test_a_line_of_five_megabytes(client: aiohttp.ClientSession, provider: Provider) -> None:
    provider.expect(stream(long_token(), DONE))
    assert (await post(client, provider))[1] == long_token() + DONE


@pytest.mark.parametrize(
    "script",
    [(Hang(0),), (head(200, {"content-length": "5"}), Hang(0)), stream(Endless(token("a")))],
)
async def test_the_moment_a_client_leaves_is_noted(
    client: aiohttp.ClientSession, provider: Provider, script: Script
) -> None:
    provider.expect(script)
    asking = asyncio.create_task(post(client, provider))
    request: Request = await provider.request()
    assert not request.gone.done()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await request.client_gone()
