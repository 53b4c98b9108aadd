import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_agent.control import Gateway, GatewayRefused, GatewayUnreachable
from byoai_shared.enrolment import TokenRequest
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import Handler, ServerConnection
from byoai_shared.identity import GatewayIdentity
from byoai_shared.keys import key_to_pem, new_key
from byoai_shared.tls import Credentials, server_context
from support.authority import Authority
from support.fake_gateway import FakeGateway, Refusing, running
from support.proxy import proxy_to

ASKING = TokenRequest(assertion="a.b.c")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@asynccontextmanager
async def far_gateway() -> AsyncGenerator[tuple[FakeGateway, Gateway, int]]:
    """A gateway with a name that only a proxy can resolve."""
    fake = FakeGateway()
    certificate = named_certificate(fake.gateway_ca, "gateway.test")
    async with running(fake, server_context(certificate, client_ca_pem=None)):
        port = int(fake.url.rpartition(":")[2])
        fake.url = f"https://gateway.test:{port}"
        yield fake, Gateway(fake.url, ca_pem=fake.gateway_ca.pem), port


def named_certificate(authority: Authority, host: str) -> Credentials:
    key = new_key()
    certificate = authority.certificate(GatewayIdentity("gw"), key, hosts=(host,))
    return Credentials(certificate.public_bytes(Encoding.PEM), key_to_pem(key))


@pytest.mark.parametrize("kind", ["http", "socks5", "socks5h"])
async def test_calls_go_by_the_proxy(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with far_gateway() as (fake, gateway, port), proxy_to(port) as (proxy, address):
        monkeypatch.setenv("ALL_PROXY", f"{kind}://{address}")
        await gateway.greet()
        assert fake.calls == ["/healthz"]
        (asked,) = proxy.asked
        assert b"gateway.test" in asked


async def test_a_proxy_that_says_no_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with far_gateway() as (fake, gateway, port), proxy_to(port) as (proxy, address):
        proxy.answer = b"HTTP/1.1 403 Forbidden\r\n\r\n"
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:hidden@{address}")
        with pytest.raises(GatewayUnreachable, match=f"the proxy http://{address}") as failed:
            await gateway.greet()
        assert "hidden" not in str(failed.value)
        assert fake.calls == []


async def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy_to(1) as (_, address):
        pass
    monkeypatch.setenv("ALL_PROXY", f"socks5://{address}")
    with pytest.raises(GatewayUnreachable, match="the proxy"):
        await Gateway("https://gateway.test").greet()


async def test_a_name_that_is_not_in_the_certificate() -> None:
    fake = FakeGateway()
    certificate = named_certificate(fake.gateway_ca, "gateway.test")
    async with running(fake, server_context(certificate, client_ca_pem=None)):
        gateway = Gateway(fake.url, ca_pem=fake.gateway_ca.pem)
        with pytest.raises(GatewayUnreachable, match=r"is not trusted.*address is wrong"):
            await gateway.greet()


async def test_a_refusal_carries_code_and_clock() -> None:
    async with running(FakeGateway()) as fake:
        fake.refusals = [Refusing(403, "tunnel_revoked", "it was revoked")]
        fake.clock_offset_s = 1000
        with pytest.raises(GatewayRefused, match="it was revoked") as refused:
            await Gateway(fake.url).token(ASKING)
    assert (refused.value.status, refused.value.code) == (403, "tunnel_revoked")
    assert refused.value.server_time == pytest.approx(fake.now(), abs=5)


async def test_any_answer_shows_that_the_gateway_is_there() -> None:
    async with running(FakeGateway()) as fake:
        fake.refusals = [Refusing(503, "unavailable")]
        await Gateway(fake.url).greet()


@pytest.mark.parametrize("body", [b"<html>sign in to the hotel</html>", b"{}", b"[]"])
async def test_what_is_no_gateway(body: bytes) -> None:
    async def handle(request: ServerRequest) -> None:
        await request.read(100_000)
        request.respond(200, (), body)

    async with serving(handle) as url:
        with pytest.raises(GatewayUnreachable, match="did not respond like a BYOAI gateway"):
            await Gateway(url).token(ASKING)


async def test_a_redirect_is_not_followed() -> None:
    async def handle(request: ServerRequest) -> None:
        await request.read(100_000)
        request.respond(302, ((b"location", b"http://elsewhere.test/"),))

    async with serving(handle) as url:
        with pytest.raises(GatewayRefused, match="status 302"):
            await Gateway(url).token(ASKING)


async def test_an_endless_answer_is_cut_off() -> None:
    async def handle(request: ServerRequest) -> None:
        await request.read(100_000)
        request.respond(200, (), b"x" * 2_000_000)

    async with serving(handle) as url:
        with pytest.raises(GatewayUnreachable, match="did not answer properly"):
            await Gateway(url).token(ASKING)


@asynccontextmanager
async def serving(handle: Handler) -> AsyncGenerator[str]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ServerConnection(handle), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


def test_addresses_keep_their_path() -> None:
    gateway = Gateway("https://gateway.test/byoai/")
    assert gateway.endpoint("/agent/v1/token") == "https://gateway.test/byoai/agent/v1/token"
