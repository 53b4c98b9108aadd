"""A user's model server at an address of theirs: over TLS, through the guard, and nowhere else."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import trustme

from byoai_gateway.provider_config import (
    DefaultProviderSection,
    RouterSection,
    SelfHostedSection,
)
from byoai_gateway.providers.outbound import AddressInfo
from byoai_shared.secret import Secret
from support.control import FakeClock, bearer, gateway_config
from support.gateway import CHAT, PREFERENCES, Answer, Gateway, open_gateway
from support.internet import https
from support.loop_clock import NEVER_S
from support.provider import Provider, providing
from support.provider_script import Die, head

NAME = "llm.example.com"
KEY = "the-key-of-alices-server"
LOOPBACK = ("127.0.0.1/32",)

Opening = Callable[..., AbstractAsyncContextManager[Gateway]]


class Names:
    """A name server that answers differently each time; the last answer stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        del host
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in found
        ]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """The system trusts this authority."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


@pytest.fixture
async def own(authority: trustme.CA) -> AsyncGenerator[Provider]:
    """The user's server."""
    async with providing(https(authority, "127.0.0.1", NAME)) as provider:
        yield provider


@pytest.fixture
async def inner() -> AsyncGenerator[Provider]:
    """The operator's own provider: what users' addresses must not reach."""
    async with providing() as provider:
        yield provider


@pytest.fixture
def opening(tmp_path: Path, clock: FakeClock, inner: Provider) -> Opening:
    """Makes gateways on one database, whose settings differ."""

    def opened(*networks: str, base_url: str | None = None) -> AbstractAsyncContextManager[Gateway]:
        config = gateway_config(
            tmp_path,
            router=RouterSection(
                connect_s=NEVER_S,
                silence_s=NEVER_S,
                whole_answer_s=NEVER_S,
                request_headers=("x-tenant",),
            ),
            default_provider=DefaultProviderSection(
                base_url=base_url or inner.url, key=Secret("the-operators-key")
            ),
            self_hosted=SelfHostedSection(url_networks=networks, first_token_s=NEVER_S),
        )
        return open_gateway(msgspec.structs.replace(config, relays=()), clock)

    return opened


def named(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> None:
    """Let names mean these addresses, one answer for each dial."""
    resolve = Names(*answers).resolve
    monkeypatch.setattr("byoai_gateway.providers.outbound.addresses_of", resolve)


async def choose(gateway: Gateway, url: str, **settings: Any) -> None:
    await gateway.prefer(
        **{"aiProvider": "self-hosted", "selfHostedUrl": url, "selfHostedAuthKey": KEY, **settings}
    )


async def attention(gateway: Gateway) -> dict[str, str]:
    answer = await gateway.ask(path=PREFERENCES, method="GET")
    return {it["setting"]: it["code"] for it in answer.json["needsAttention"]}


def is_last_word(answer: Answer, status: int, code: str) -> bool:
    assert (answer.status, answer.error["code"]) == (status, code), answer.body
    return answer.headers["x-should-retry"] == "false"


def may_pass(answer: Answer, status: int, code: str) -> bool:
    assert (answer.status, answer.error["code"]) == (status, code), answer.body
    return "x-should-retry" not in answer.headers


# -- a sound server


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
async def test_a_stream_comes_from_the_users_server_with_its_key(
    opening: Opening, own: Provider, path: str
) -> None:
    async with opening(*LOOPBACK) as gateway:
        await choose(gateway, f"https://127.0.0.1:{own.port}{path}")
        answer = await gateway.chat()
        assert (answer.status, answer.text, answer.events[-1]) == (200, "Hello there", b"[DONE]")
        assert answer.headers["x-byoai-provider"] == "self-hosted"
        asked = await own.request()
        assert asked.target == "/v1/chat/completions"
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        assert asked.headers["host"] == f"127.0.0.1:{own.port}"
        assert asked.headers["cdn-loop"] == "byoai"
        shown = await gateway.ask(path=PREFERENCES, method="GET")
        assert KEY.encode() not in shown.body


@pytest.mark.usefixtures("trusted")
async def test_every_call_of_a_server_without_a_key_goes_below_its_own_path(
    opening: Opening, own: Provider
) -> None:
    async with opening(*LOOPBACK) as gateway:
        await choose(gateway, f"https://127.0.0.1:{own.port}/llm/v1/", selfHostedAuthKey=None)
        assert (await gateway.chat(stream=False)).status == 200
        assert (
            await gateway.ask({"model": "m", "input": "x"}, path="/v1/embeddings?a=b")
        ).status == 200
        assert (await gateway.ask(path="/v1/models", method="GET")).status == 200
    assert [it.target for it in own.requests] == [
        "/llm/v1/chat/completions",
        "/llm/v1/embeddings?a=b",
        "/llm/v1/models",
    ]
    assert own.connections == 1
    assert not any("authorization" in it.headers for it in own.requests)


@pytest.mark.usefixtures("trusted")
async def test_a_users_server_gets_the_headers_that_the_operator_named(
    opening: Opening, own: Provider
) -> None:
    async with opening(*LOOPBACK) as gateway:
        await choose(gateway, f"https://127.0.0.1:{own.port}")
        sent = {"x-tenant": "a", "x-other": "b", "x-api-key": "sk-canary"}
        await gateway.ask({"model": "m", "messages": []}, **sent)
        headers = (await own.request()).headers
    assert headers["x-tenant"] == "a"
    assert not headers.keys() & {"x-other", "x-api-key"}


# -- what may be saved

REFUSED_WHEN_SAVED = [
    "http://llm.example.com",
    "ftp://llm.example.com",
    "llm.example.com",
    "https://",
    "https://alice@llm.example.com",
    "https://alice:secret@llm.example.com",
    "https://llm.example.com@127.0.0.1",
    "https://llm.example.com?x=1",
    "https://llm.example.com#x",
    "https://llm.example.com\\@127.0.0.1",
    "https://llm.example.com:22",
    "https://llm.example.com:0",
    "https://llm.example.com:65536",
    "https://llm.example.com/a/../../api",
    "https://llm.example.com/%2e%2e/api",
    "https://llm.example.com..",
    "https://localhost",
    "https://localhost.",
    "https://LOCALHOST",
    "https://gateway",
    "https://db.internal",
    "https://printer.local.",
    "https://127.0.0.1",
    "https://127.0.0.1.",
    "https://127.1",
    "https://2130706433",
    "https://0x7f000001",
    "https://0x7f.0.0.1",
    "https://0177.0.0.1",
    "https://0.0.0.0",
    "https://10.0.0.1",
    "https://172.16.0.1",
    "https://192.168.0.1",
    "https://100.100.100.200",
    "https://169.254.169.254",
    "https://168.63.129.16",
    "https://224.0.0.1",
    "https://255.255.255.255",
    "https://[::1]",
    "https://[::]",
    "https://[::ffff:127.0.0.1]",
    "https://[::ffff:a9fe:a9fe]",
    "https://[64:ff9b::7f00:1]",
    "https://[64:ff9b:1::a9fe:a9fe]",
    "https://[2002:7f00:1::1]",
    "https://[2001::1]",
    "https://[fe80::1%25eth0]",
    "https://[fd00::1]",
    "https://[ff02::1]",
    "https://\N{CIRCLED DIGIT ONE}27.0.0.1",
    "https://127\N{IDEOGRAPHIC FULL STOP}0\N{IDEOGRAPHIC FULL STOP}0\N{IDEOGRAPHIC FULL STOP}1",
    "https://\N{FULLWIDTH LATIN SMALL LETTER L}ocalhost",
    "https://loca\N{SOFT HYPHEN}lhost",
    "https://\N{FULLWIDTH DIGIT ONE}0.0.0.1",
    "https://xn--.example.com\N{ZERO WIDTH JOINER}",
    "https://llm.example.com /",
]


async def test_an_address_that_leads_inside_is_refused_at_its_field_and_nothing_is_saved(
    opening: Opening,
) -> None:
    async with opening() as gateway:
        for url in REFUSED_WHEN_SAVED:
            body = {"aiProvider": "self-hosted", "selfHostedUrl": url, "selfHostedAuthKey": KEY}
            answer = await gateway.ask(body, path=PREFERENCES)
            assert (answer.status, answer.error["param"]) == (400, "selfHostedUrl"), url
            assert answer.json["fields"].keys() == {"selfHostedUrl"}
            assert KEY.encode() not in answer.body
        shown = (await gateway.ask(path=PREFERENCES, method="GET")).json
        assert (shown["aiProvider"], shown["selfHostedUrl"]) == ("default", None)
        await choose(gateway, f"https://{NAME.upper()}.:8443/v1")


@pytest.mark.usefixtures("trusted")
async def test_what_was_allowed_once_is_refused_when_it_no_longer_is(
    opening: Opening, own: Provider
) -> None:
    async with opening(*LOOPBACK) as gateway:
        await choose(gateway, f"https://127.0.0.1:{own.port}")
        assert (await gateway.chat()).status == 200
    async with opening() as gateway:
        answer = await gateway.chat()
        assert (answer.status, answer.error["code"]) == (403, "address_refused")
        assert answer.error["param"] == "selfHostedUrl"
    assert len(own.requests) == 1


# -- names that change their meaning


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    "inside", ["127.0.0.2", "169.254.169.254", "10.0.0.1", "::1", "::ffff:10.0.0.1"]
)
async def test_a_name_that_leads_elsewhere_at_the_next_dial_is_refused_there(
    opening: Opening, own: Provider, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    named(monkeypatch, ["127.0.0.1"], [inside], ["127.0.0.1"])
    async with opening(*LOOPBACK) as gateway:
        await choose(gateway, f"https://{NAME}:{own.port}")
        assert (await gateway.chat()).status == 200
        await own.drop_all()
        answer = await gateway.chat()
        assert is_last_word(answer, 502, "address_refused")
        assert "private or reserved" in answer.error["message"]
        assert inside not in answer.error["message"]
        assert answer.headers["x-byoai-attempts"] == "0"
        assert await attention(gateway) == {"selfHostedUrl": "address_refused"}
        assert (await gateway.chat()).status == 200
        assert await attention(gateway) == {}


async def test_an_address_refused_at_the_dial_may_fall_back_without_the_users_key(
    opening: Opening, inner: Provider, own: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, ["127.0.0.1"])
    async with opening() as gateway:
        await choose(gateway, f"https://{NAME}:{own.port}", fallbackToDefault=True)
        answer = await gateway.chat()
        assert answer.text == "Hello there"
        assert answer.headers["x-byoai-fallback-reason"] == "address_refused"
    asked = await inner.request()
    assert asked.headers["authorization"] == "Bearer the-operators-key"
    assert KEY not in repr(asked)
    assert own.connections == 0


@pytest.mark.usefixtures("trusted")
async def test_a_connection_that_the_operator_may_use_is_never_lent_to_a_user(
    opening: Opening, own: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, ["127.0.0.1"])
    async with opening(base_url=f"https://{NAME}:{own.port}/v1") as gateway:
        assert (await gateway.chat()).headers["x-byoai-provider"] == "default"
        await choose(gateway, f"https://{NAME}:{own.port}/v1")
        assert is_last_word(await gateway.chat(), 502, "address_refused")
        assert (await gateway.chat(user="bob")).status == 200
    assert (own.connections, len(own.requests)) == (1, 2)


# -- other ways around


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_error_and_its_aim_is_kept_to_ourselves(
    opening: Opening, own: Provider, inner: Provider, status: int
) -> None:
    aim = f"{inner.url}/secrets"
    own.always((head(status, {"location": aim, "content-length": "0"}),))
    async with opening(*LOOPBACK) as gateway:
        await choose(gateway, f"https://127.0.0.1:{own.port}")
        for stream in (True, False):
            answer = await gateway.chat(stream=stream)
            assert is_last_word(answer, 502, "malformed_answer")
            assert f"a redirect ({status})" in answer.error["message"]
            assert "location" not in answer.headers
            assert aim.encode() not in answer.body
    assert (len(own.requests), inner.connections) == (2, 0)


@pytest.mark.usefixtures("trusted")
async def test_the_environment_sets_no_proxy(
    opening: Opening, own: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with providing() as proxy:
        for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        async with opening(*LOOPBACK) as gateway:
            await choose(gateway, f"https://127.0.0.1:{own.port}")
            assert (await gateway.chat()).text == "Hello there"
        assert proxy.connections == 0


# -- TLS


async def test_a_certificate_of_a_stranger_is_named_as_the_reason(
    opening: Opening, own: Provider
) -> None:
    async with opening(*LOOPBACK) as gateway:
        await choose(gateway, f"https://127.0.0.1:{own.port}")
        answer = await gateway.chat()
        assert may_pass(answer, 502, "unreachable")
        assert "TLS with 127.0.0.1 failed: its certificate" in answer.error["message"]
    assert own.requests == []


async def test_a_certificate_for_another_name_is_named_as_the_reason(
    opening: Opening, trusted: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, ["127.0.0.1"])
    async with (
        providing(https(trusted, "other.example.com")) as other,
        opening(*LOOPBACK) as gateway,
    ):
        await choose(gateway, f"https://{NAME}:{other.port}")
        answer = await gateway.chat()
        assert may_pass(answer, 502, "unreachable")
        assert f"TLS with {NAME} failed: its certificate" in answer.error["message"]
        assert "not valid for" in answer.error["message"]
        assert other.requests == []


async def test_a_server_without_tls_and_one_that_is_not_there_are_told_apart(
    opening: Opening,
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # held, not listened at
        async with (
            await asyncio.start_server(answer, "127.0.0.1", 0) as server,
            opening(*LOOPBACK) as gateway,
        ):
            await choose(gateway, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            plain = await gateway.chat()
            await choose(gateway, f"https://127.0.0.1:{held.getsockname()[1]}")
            absent = await gateway.chat()
    assert may_pass(plain, 502, "unreachable")
    assert may_pass(absent, 502, "unreachable")
    assert "TLS with 127.0.0.1 failed: it speaks no TLS" in plain.error["message"]
    assert "refused" in absent.error["message"]
    assert plain.headers["x-byoai-attempts"] == absent.headers["x-byoai-attempts"] == "2"


# -- ourselves


@asynccontextmanager
async def leading_to(url: str, context: ssl.SSLContext) -> AsyncGenerator[int]:
    """A TLS door whose other side is the gateway, as a load balancer's is; its port."""
    aim = urlsplit(url)

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(aim.hostname, aim.port)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(carry(reader, forth))
            tasks.create_task(carry(back, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_user_whose_server_is_this_service_is_told_so_at_the_second_request(
    opening: Opening, trusted: trustme.CA, clock: FakeClock, inner: Provider
) -> None:
    async with (
        opening(*LOOPBACK) as gateway,
        leading_to(gateway.url, https(trusted, "127.0.0.1")) as port,
    ):
        token = bearer("alice", clock).removeprefix("Bearer ")
        url = f"https://127.0.0.1:{port}"
        await choose(gateway, url, selfHostedAuthKey=token, fallbackToDefault=True)
        answer = await gateway.chat()
        assert is_last_word(answer, 508, "loop_detected")
        assert "selfHostedUrl" in answer.error["message"]
        assert answer.headers["x-byoai-attempts"] == "1"
        assert await attention(gateway) == {"selfHostedUrl": "loop_detected"}
        assert [it.outcome for it in await gateway.records()] == ["rejected"]
    assert inner.requests == []


@pytest.mark.parametrize(
    ("loop", "status"), [("cloudflare; loops=1", 200), ("cloudflare, byoai", 508)]
)
async def test_a_request_that_a_gateway_made_is_not_served(
    opening: Opening, inner: Provider, loop: str, status: int
) -> None:
    async with opening() as gateway:
        body: dict[str, Any] = {"model": "m", "messages": []}
        answer = await gateway.ask(body, path=CHAT, **{"cdn-loop": loop})
        assert answer.status == status
        if status == 508:
            assert is_last_word(answer, 508, "loop_detected")
    assert len(inner.requests) == (status == 200)


# -- a server that breaks


@pytest.mark.usefixtures("trusted")
async def test_a_server_that_cuts_its_tls_connection_in_the_middle_is_said_to_have_broken_off(
    opening: Opening, own: Provider
) -> None:
    beginning = b'data: {"choices":[{"delta":{"content":"so far"}}]}\n\n'
    fields = {"content-type": "text/event-stream", "connection": "close"}
    own.expect((head(200, fields), beginning, Die()))
    async with opening(*LOOPBACK) as gateway:
        await choose(gateway, f"https://127.0.0.1:{own.port}")
        answer = await gateway.chat()
        assert (answer.status, answer.text) == (200, "so far")
        assert answer.stream_error["code"] == "truncated"
