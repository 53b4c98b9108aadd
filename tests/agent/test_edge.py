import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from byoai_agent.admission import Admission
from byoai_agent.config import Limits
from byoai_agent.credentials import new_end_to_end
from byoai_agent.edge import Edge
from byoai_agent.models import Catalogue, Upstream, parse_target
from byoai_agent.policy import Policy
from byoai_agent.streams import Doors, LinkStreams
from byoai_agent.upstreams import UpstreamPool
from byoai_shared.errors import ByoaiError
from byoai_shared.http1.errors import ConnectionClosed, TruncatedMessage
from byoai_shared.http1.framing import Open
from byoai_shared.http1.incoming import BodySink
from byoai_shared.identity import GatewayIdentity, RelayIdentity
from byoai_shared.protocol.errors import ResetCode
from byoai_shared.secret import Secret
from byoai_shared.tls import Credentials, client_context, pinned_client_context, server_context
from support.authority import Authority
from support.garbage import cyclic_garbage
from support.inner import HOST, KEY, InnerClient, dial
from support.loop_clock import NEVER_S, stopped, while_time_passes
from support.model_server import FakeModelServer, serving, text
from support.wires import turns

CHAT = "/v1/chat/completions"
LIMITS = Limits(
    concurrent_requests=4,
    queued_requests=2,
    max_body_bytes=1_000_000,
    routing_body_bytes=100_000,
    routing_total_bytes=150_000,
    first_byte_s=30.0,
)
JSON = (b"content-type", b"application/json")
SERVICES = Authority("services")
GATEWAY = SERVICES.credentials(GatewayIdentity("gw-1"))
END_TO_END = new_end_to_end("abc")
assert HOST == "abc.tunnel.internal"


def chat(tag: str = "", *, model: str = "fake-model", stream: bool = False, **fake: Any) -> bytes:
    return msgspec.json.encode(
        {"model": model, "stream": stream, "messages": [], "fake": {"tag": tag, **fake}}
    )


async def nothing_new() -> None:
    """A look at the model servers that finds what is known."""


def gateway_context(credentials: Credentials | None = GATEWAY) -> ssl.SSLContext:
    pins = [END_TO_END.certificate_pem]
    if credentials is None:
        return client_context(server_ca_pem=pins[0], alpn=("http/1.1",))
    return pinned_client_context(pins, credentials)


class House:
    """An edge, and gateways that dial it."""

    def __init__(
        self,
        catalogue: Catalogue,
        limits: Limits = LIMITS,
        look_again: Callable[[], Awaitable[None]] = nothing_new,
    ) -> None:
        self.pool = UpstreamPool(connect_s=50.0)
        self.admission = Admission(
            concurrent=limits.concurrent_requests,
            queued=limits.queued_requests,
            wait_s=limits.queue_wait_s,
        )
        self.edge = Edge(
            policy=Policy(),
            catalogue=catalogue,
            pool=self.pool,
            admission=self.admission,
            limits=limits,
            look_again=look_again,
        )
        self.doors = Doors(
            server_context(
                Credentials(END_TO_END.certificate_pem, END_TO_END.key_pem),
                client_ca_pem=SERVICES.pem,
                alpn=("http/1.1",),
            ),
            (Secret("an-older-key"), Secret(KEY)),
        )
        self.streams = LinkStreams(self.edge.handle, self.doors, self.edge.http_limits)
        self.clients: list[InnerClient] = []

    async def client(self, credentials: Credentials | None = GATEWAY) -> InnerClient:
        client = await dial(self.streams.accept, gateway_context(credentials))
        self.clients.append(client)
        return client

    async def close(self) -> None:
        for client in self.clients:
            client.hang_up()
        self.pool.close()
        await turns(20)


@asynccontextmanager
async def house_of(
    *urls: str,
    limits: Limits = LIMITS,
    models: dict[str, list[str]] | None = None,
    look_again: Callable[[], Awaitable[None]] = nothing_new,
) -> AsyncGenerator[House]:
    named = models or {}
    upstreams = [
        Upstream(
            parse_target(url, Secret("local-key")),
            is_up=True,
            models=tuple({"id": name} for name in named.get(url, ["fake-model"])),
        )
        for url in urls
    ]
    house = House(Catalogue(upstreams), limits, look_again)
    try:
        yield house
    finally:
        await house.close()


@pytest_asyncio.fixture
async def server() -> AsyncGenerator[FakeModelServer]:
    async with serving() as running:
        yield running


@asynccontextmanager
async def raw_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncGenerator[str]:
    """A TCP server that answers as badly as a test wants."""
    busy: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        busy.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            busy.discard(task)
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        listening.close()
        for task in list(busy):
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        await listening.wait_closed()


def error_of(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


# -- who may come in


async def test_a_gateway_with_the_key_is_served(server: FakeModelServer) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        status, body = await client.ask("POST", CHAT, chat("plain"), JSON)
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"] == text(5)


async def test_keep_alive_serves_many_requests_on_one_stream(server: FakeModelServer) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        statuses = [(await client.ask("POST", CHAT, chat(), JSON))[0] for _ in range(5)]
    assert statuses == [200] * 5


async def test_a_peer_without_a_certificate_gets_nothing(server: FakeModelServer) -> None:
    async with house_of(server.url) as house:
        client = await house.client(None)  # TLS 1.3 tells a client late
        with pytest.raises(ByoaiError):
            await client.ask("POST", CHAT, chat("intruder"), JSON)
    assert server.requests == []


async def test_a_gateway_of_another_authority_gets_nothing(server: FakeModelServer) -> None:
    foreign = Authority("foreign").credentials(GatewayIdentity("gw-1"))
    async with house_of(server.url) as house:
        client = await house.client(foreign)
        with pytest.raises(ByoaiError):
            await client.ask("POST", CHAT, chat("intruder"), JSON)
    assert server.requests == []


async def test_a_relay_is_no_gateway(server: FakeModelServer) -> None:
    """The same authority signs relays, and a relay carries every stream."""
    relay = SERVICES.credentials(RelayIdentity("relay-1"))
    async with house_of(server.url) as house:
        client = await house.client(relay)
        with pytest.raises(ByoaiError):
            await client.ask("POST", CHAT, chat("intruder"), JSON)
        assert client.stream.reset_code is ResetCode.REFUSED
    assert server.requests == []


@pytest.mark.parametrize("key", [None, "", "wrong", KEY + "x", KEY[:-1], KEY.upper()])
async def test_a_wrong_key_is_refused(server: FakeModelServer, key: str | None) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        response = await client.request("POST", CHAT, chat("intruder"), JSON, key=key)
        error = error_of(await response.read(10_000))
    assert response.head.status == 401
    assert response.head.header(b"x-byoai-agent-error") == b"invalid_authentication_key"
    assert error["type"] == "authentication_error"
    assert server.requests == []


async def test_an_older_key_still_opens_during_rotation(server: FakeModelServer) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        response = await client.request("POST", CHAT, chat(), JSON, key="an-older-key")
        await response.read(10_000)
    assert response.head.status == 200


async def test_keys_change_under_a_standing_stream(server: FakeModelServer) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        assert (await client.ask("POST", CHAT, chat(), JSON))[0] == 200
        house.doors.keys = (Secret("newest"),)
        assert (await client.ask("POST", CHAT, chat(), JSON))[0] == 401


# -- what may be asked


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("GET", "/flush_cache"),
        ("GET", CHAT),
        ("POST", CHAT + "/"),
        ("POST", "/v1/chat/%63ompletions"),
        ("POST", "/v1/../v1/chat/completions"),
        ("POST", "/v1//chat/completions"),
    ],
)
async def test_a_path_outside_the_policy_is_not_found(
    server: FakeModelServer, method: str, target: str
) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        response = await client.request(method, target, chat("forbidden"), JSON)
        error = error_of(await response.read(10_000))
    assert response.head.status == 404
    assert error["code"] == "not_found"
    assert response.head.header(b"x-byoai-agent-error") == b"not_found"
    assert server.requests == []


async def test_the_request_is_built_anew(server: FakeModelServer) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        foreign = (
            (b"origin", b"https://evil.example"),
            (b"cookie", b"session=1"),
            (b"referer", b"https://evil.example/x"),
            (b"connection", b"x-hop"),
            (b"x-hop", b"1"),
            (b"x-request-id", b"req-1"),
        )
        await client.ask("POST", CHAT, chat("anew"), JSON, *foreign)
        seen = await server.arrival("anew")
    assert seen.headers["host"] == server.url.removeprefix("http://")
    assert seen.headers["authorization"] == "Bearer local-key"
    assert seen.headers["x-request-id"] == "req-1"
    assert not seen.headers.keys() & {"origin", "cookie", "referer", "x-hop"}


# -- bodies


async def test_a_body_over_the_limit_is_refused_before_it_is_read(
    server: FakeModelServer,
) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        announced = (b"content-length", b"%d" % (LIMITS.max_body_bytes + 1))
        response = await client.request("POST", CHAT, NeverSent(), JSON, announced)
        error = error_of(await response.read(10_000))
    assert response.head.status == 413
    assert response.head.header(b"x-byoai-agent-error") == b"body_too_large"
    assert "1000000" in error["message"]
    assert server.requests == []


class NeverSent:
    """A body that is announced and never comes."""

    def attach(self, sink: BodySink) -> None:
        sink.attached(self)
        sink.flush()

    def detach(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


async def test_a_body_of_unknown_length_over_the_limit_is_cut_short(
    server: FakeModelServer,
) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        response = await client.request("POST", CHAT, Pieces(40, 50_000), JSON)
        await response.read(10_000)
    assert response.head.status == 413


class Pieces(NeverSent):
    """A chunked body, as fast as it is taken."""

    def __init__(self, count: int, size: int) -> None:
        self._left = count
        self._piece = b"x" * size
        self._sink: BodySink | None = None
        self._paused = False

    def attach(self, sink: BodySink) -> None:
        self._sink = sink
        sink.attached(self)
        asyncio.get_running_loop().call_soon(self._send)

    def detach(self) -> None:
        self._sink = None

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        if self._sink is None or self._paused:
            return
        self._left -= 1
        if self._left:
            self._sink.write(self._piece)
            asyncio.get_running_loop().call_soon(self._send)
        else:
            self._sink.finish(self._piece)


async def test_an_upload_streams_through_whole(server: FakeModelServer) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        body = head + b"a" * 900_000 + b"\r\n--b--\r\n"
        status, answer = await client.ask(
            "POST",
            "/v1/audio/transcriptions",
            body,
            (b"content-type", b"multipart/form-data; boundary=b"),
        )
    assert status == 200
    assert json.loads(answer)["text"].startswith("900000 ")


# -- several model servers


async def test_requests_go_to_the_server_that_has_the_model(server: FakeModelServer) -> None:
    async with serving() as other:
        models = {server.url: ["a"], other.url: ["b"]}
        async with house_of(server.url, other.url, models=models) as house:
            client = await house.client()
            for model in ("a", "b", "b"):
                status, _ = await client.ask("POST", CHAT, chat(model, model=model), JSON)
                assert status == 200
        assert [len(one.requests) for one in (server, other)] == [1, 2]


async def test_a_form_is_routed_by_its_model_field(server: FakeModelServer) -> None:
    async with serving() as other:
        models = {server.url: ["a"], other.url: ["whisper"]}
        async with house_of(server.url, other.url, models=models) as house:
            client = await house.client()
            body = (
                b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
                b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--b--\r\n'
            )
            content_type = (b"content-type", b"multipart/form-data; boundary=b")
            await client.ask("POST", "/v1/audio/transcriptions", body, content_type)
        assert [len(one.requests) for one in (server, other)] == [0, 1]


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (CHAT, b'{"model": "a", "model": "b"}', "more than one field 'model'"),
        (CHAT, b'{"model": "a", "Model": "b"}', "'Model', which some readers take"),
        (
            "/v1/audio/transcriptions",
            b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nx\r\n' * 2 + b"--b--",
            "more than one field 'model'",
        ),
    ],
)
async def test_an_ambiguous_model_is_refused_with_the_reason(
    server: FakeModelServer, path: str, body: bytes, reason: str
) -> None:
    async with serving() as other:
        models = {server.url: ["a"], other.url: ["b"]}
        async with house_of(server.url, other.url, models=models) as house:
            client = await house.client()
            content_type = (b"content-type", b"multipart/form-data; boundary=b")
            status, answer = await client.ask("POST", path, body, content_type)
            assert (status, error_of(answer)["code"]) == (400, "invalid_body")
            assert reason in error_of(answer)["message"]
        assert not server.requests
        assert not other.requests


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (chat(model="c"), 404, "model_not_found"),
        (b'{"messages": []}', 404, "model_not_found"),
        (b"not json", 400, "invalid_body"),
        (b'{"model": "a", "Model": "b"}', 400, "invalid_body"),
        (b'{"model": "a"' + b" " * 100_000 + b"}", 413, "body_too_large"),
    ],
)
async def test_what_cannot_be_routed(
    server: FakeModelServer, body: bytes, status: int, code: str
) -> None:
    async with serving() as other:
        models = {server.url: ["a"], other.url: ["b"]}
        async with house_of(server.url, other.url, models=models) as house:
            client = await house.client()
            found, answer = await client.ask("POST", CHAT, body, JSON)
            assert (found, error_of(answer)["code"]) == (status, code)
            # What was set aside for the body was given back.
            assert (await client_again(house)) == 200
        assert len(server.requests) == 1


async def client_again(house: House) -> int:
    client = await house.client()
    body = b'{"model": "a", "pad": "' + b"x" * 90_000 + b'"}'
    return (await client.ask("POST", CHAT, body, JSON))[0]


async def test_bodies_held_for_routing_are_bounded_in_all(server: FakeModelServer) -> None:
    async with serving() as other:
        models = {server.url: ["a"], other.url: ["b"]}
        async with house_of(server.url, other.url, models=models) as house:
            slow, other_client = await house.client(), await house.client()
            announced = (b"content-length", b"90000")
            waiting = asyncio.create_task(slow.request("POST", CHAT, NeverSent(), JSON, announced))
            await turns(20)
            response = await other_client.request("POST", CHAT, b"x" * 90_000, JSON)
            await response.read(10_000)
            assert response.head.status == 429
            assert response.head.header(b"retry-after") == b"1"
            slow.hang_up()
            with pytest.raises(ConnectionClosed):
                await waiting
            await turns(20)
            assert await client_again(house) == 200


async def test_a_model_that_has_just_appeared_is_found(server: FakeModelServer) -> None:
    async with serving() as other:
        catalogue = Catalogue(
            [
                Upstream(parse_target(server.url), is_up=True, models=({"id": "a"},)),
                Upstream(parse_target(other.url), is_up=True, models=({"id": "b"},)),
            ]
        )

        async def look() -> None:
            catalogue.upstreams[1].models = ({"id": "b"}, {"id": "new"})

        house = House(catalogue, look_again=look)
        client = await house.client()
        status, _ = await client.ask("POST", CHAT, chat(model="new"), JSON)
        await house.close()
    assert status == 200


async def test_lists_are_merged(server: FakeModelServer) -> None:
    async with serving() as other:
        models = {server.url: ["a", "x/y"], other.url: ["b"]}
        async with house_of(server.url, other.url, models=models) as house:
            client = await house.client()
            status, body = await client.ask("GET", "/v1/models")
            one = await client.ask("GET", "/v1/models/x%2Fy")
            none = await client.ask("GET", "/v1/models/zzz")
    assert status == 200
    assert [entry["id"] for entry in json.loads(body)["data"]] == ["a", "x/y", "b"]
    assert (one[0], json.loads(one[1])["id"]) == (200, "x/y")
    assert (none[0], error_of(none[1])["code"]) == (404, "model_not_found")


async def test_no_model_server_at_all() -> None:
    async with house_of() as house:
        client = await house.client()
        for method, target in (("POST", CHAT), ("GET", "/v1/models")):
            status, body = await client.ask(method, target, chat(), JSON)
            assert (status, error_of(body)["code"]) == (502, "upstream_unreachable")


# -- load


async def test_beyond_the_queue_there_is_429_with_a_time(server: FakeModelServer) -> None:
    async with house_of(server.url) as house, AsyncExitStack() as stack:
        places = LIMITS.concurrent_requests + LIMITS.queued_requests
        pending = [
            asyncio.create_task(
                (await house.client()).ask("POST", CHAT, chat(f"s{n}", does="hang"), JSON)
            )
            for n in range(places)
        ]
        for task in pending:
            stack.callback(task.cancel)
        for number in range(LIMITS.concurrent_requests):
            await server.arrival(f"s{number}")
        client = await house.client()
        response = await client.request("POST", CHAT, chat("late"), JSON)
        error = error_of(await response.read(10_000))
        assert response.head.status == 429
        assert int(response.head.header(b"retry-after") or 0) >= 1
        assert error["type"] == "rate_limit_error"
        assert house.admission.in_flight == LIMITS.concurrent_requests
        assert house.admission.waiting == LIMITS.queued_requests
        for one in house.clients:
            one.hang_up()
        await asyncio.gather(*pending, return_exceptions=True)
        await turns(20)
        assert (house.admission.in_flight, house.admission.waiting) == (0, 0)


# -- callers that go away


@pytest.mark.parametrize("does", ["stay_silent", "answer"])
async def test_a_caller_that_goes_away_frees_the_model_server(
    server: FakeModelServer, does: str
) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        body = chat("left", stream=True, does=does, tokens=10_000, every_s=0.01)
        request = asyncio.create_task(client.request("POST", CHAT, body, JSON))
        seen = await server.arrival("left")
        if does == "answer":
            await request
        with stopped():
            client.hang_up()
            await seen.gone
        await asyncio.gather(request, return_exceptions=True)
        assert house.admission.in_flight == 0


# -- model servers that misbehave


async def test_one_that_refuses(unused_url: str) -> None:
    async with house_of(unused_url) as house:
        client = await house.client()
        response = await client.request("POST", CHAT, chat(), JSON)
        error = error_of(await response.read(10_000))
    assert response.head.status == 502
    assert response.head.header(b"x-byoai-agent-error") == b"upstream_unreachable"
    assert unused_url in error["message"]


@pytest_asyncio.fixture
async def unused_url() -> str:
    async with raw_server(lambda _reader, _writer: asyncio.sleep(0)) as url:
        return url


async def test_one_that_is_silent_for_too_long(server: FakeModelServer) -> None:
    limits = msgspec.structs.replace(LIMITS, first_byte_s=NEVER_S)
    async with house_of(server.url, limits=limits) as house:
        client = await house.client()
        asking = client.ask("POST", CHAT, chat("slow", does="hang"), JSON)
        status, body = await while_time_passes(asking, NEVER_S / 3)
        seen = await server.arrival("slow")
        assert (status, error_of(body)["code"]) == (504, "upstream_timeout")
        await seen.gone
        assert (await client.ask("POST", CHAT, chat(), JSON))[0] == 200


async def test_one_that_closes_without_an_answer() -> None:
    async with raw_server(lambda _reader, _writer: asyncio.sleep(0)) as url, house_of(url) as house:
        client = await house.client()
        status, body = await client.ask("POST", CHAT, chat(), JSON)
    assert (status, error_of(body)["code"]) == (502, "upstream_disconnected")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.7\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x-filler: yes\r\n" * 10_000,
    ],
)
async def test_one_that_speaks_no_http(answer: bytes) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        await asyncio.Event().wait()

    async with raw_server(serve) as url, house_of(url) as house:
        client = await house.client()
        status, body = await client.ask("POST", CHAT, chat(), JSON)
    assert (status, error_of(body)["code"]) == (502, "upstream_protocol_error")


async def test_one_with_endless_headers(server: FakeModelServer) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        status, body = await client.ask("POST", CHAT, chat(does="send_endless_headers"), JSON)
    assert (status, error_of(body)["code"]) == (502, "upstream_protocol_error")


@pytest.mark.parametrize("stream", [True, False])
async def test_one_that_dies_in_mid_answer_is_never_taken_for_whole(
    server: FakeModelServer, *, stream: bool
) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        body = chat(does="die_in_mid_answer", tokens=500, stream=stream)
        with pytest.raises((TruncatedMessage, ConnectionClosed)):
            await client.ask("POST", CHAT, body, JSON)
        assert house.admission.in_flight == 0


@pytest.mark.parametrize(("does", "status"), [("answer_500", 500), ("answer_non_json", 502)])
async def test_its_own_errors_pass_as_they_are(
    server: FakeModelServer, does: str, status: int
) -> None:
    async with house_of(server.url) as house:
        client = await house.client()
        response = await client.request("POST", CHAT, chat(does=does), JSON)
        await response.read(10_000)
    assert response.head.status == status
    assert response.head.header(b"x-byoai-agent-error") is None


@pytest.mark.parametrize("announced", [b"Connection: close\r\n", b""])
async def test_an_answer_that_ends_with_its_connection_is_whole_and_in_chunks(
    announced: bytes,
) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + announced + b"\r\nhello")
        await writer.drain()

    async with raw_server(serve) as url, house_of(url) as house:
        client = await house.client()
        response = await client.request("POST", CHAT, chat(), JSON)
        assert await response.read(100) == b"hello"
        assert response.body.framing is not Open.UNTIL_CLOSE


EARLY = (
    b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/json\r\n"
    b'Content-Length: 29\r\n\r\n{"error":{"message":"large"}}'
)


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("size", [1_000, 300_000, 3_000_000, 20_000_000])
@pytest.mark.parametrize("models", [1, 2])
async def test_an_answer_before_the_body_was_read_is_passed_on(
    size: int, models: int, is_reset: bool
) -> None:
    """With several servers the body is held to read its model; with one it is streamed."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EARLY)
        if is_reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    limits = msgspec.structs.replace(
        LIMITS, max_body_bytes=1 << 26, routing_body_bytes=1 << 26, routing_total_bytes=1 << 26
    )
    async with raw_server(serve) as url, raw_server(serve) as other:
        urls = (url, other)[:models]
        named = {url: ["fake-model"], other: ["other"]}
        async with house_of(*urls, models=named, limits=limits) as house:
            body = chat(pad="x" * size)
            for _ in range(5):
                client = await house.client()
                response = await client.request("POST", CHAT, body, JSON)
                assert response.head.status == 413
                assert response.head.header(b"x-byoai-agent-error") is None
                assert await response.read(1_000) == EARLY.partition(b"\r\n\r\n")[2]


async def test_an_answer_without_length_is_whole_when_the_server_closes() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
        b'{"id":"c1","object":"chat.completion","created":1,"model":"m1","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}]}'
    )

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with raw_server(serve) as url, house_of(url) as house:
        client = await house.client()
        status, body = await client.ask("POST", CHAT, chat(), JSON)
    assert (status, body) == (200, answer.partition(b"\r\n\r\n")[2])


async def test_a_list_while_the_server_loads_its_model_says_so() -> None:
    target = parse_target("http://127.0.0.1:1")
    loading = Upstream(target, is_up=False, is_waiting=True, fault="it is loading its model")
    house = House(Catalogue([loading]))
    client = await house.client()
    response = await client.request("GET", "/v1/models", b"", JSON)
    error = error_of(await response.read(1_000))
    await house.close()
    assert response.head.status == 503
    assert response.head.header(b"retry-after") == b"5"
    assert "it is loading its model" in error["message"]


async def test_an_answer_whose_connection_is_reset_is_never_ended_in_order() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await writer.drain()
        await begun.wait()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    begun = asyncio.Event()
    async with raw_server(serve) as url, house_of(url) as house:
        client = await house.client()
        response = await client.request("POST", CHAT, chat(), JSON)
        assert await response.body.peek(bool) == b"hello"
        begun.set()
        with pytest.raises(TruncatedMessage):
            await response.read(100)


# -- draining


async def test_draining_resets_idle_streams_so_that_a_retry_is_safe(
    server: FakeModelServer,
) -> None:
    async with house_of(server.url) as house:
        idle, busy = await house.client(), await house.client()
        await idle.ask("POST", CHAT, chat(), JSON)
        body = chat("busy", stream=True, tokens=20, every_s=0.01)
        response = await busy.request("POST", CHAT, body, JSON)
        house.streams.drain()
        assert idle.stream.reset_code is ResetCode.NOT_PROCESSED
        assert busy.stream.reset_code is None
        whole = await response.read(1 << 20)
        assert whole.endswith(b"data: [DONE]\n\n")
        await turns(20)
        assert not busy.connection.is_reusable


async def test_a_renewed_end_to_end_certificate_serves_new_streams(
    server: FakeModelServer,
) -> None:
    async with house_of(server.url) as house:
        standing = await house.client()
        fresh = new_end_to_end("abc")
        house.doors.context = server_context(
            Credentials(fresh.certificate_pem, fresh.key_pem), client_ca_pem=SERVICES.pem
        )
        with pytest.raises(ByoaiError):
            await house.client()
        context = pinned_client_context([fresh.certificate_pem], GATEWAY)
        client = await dial(house.streams.accept, context)
        house.clients.append(client)
        for one in (standing, client):
            assert (await one.ask("POST", CHAT, chat(), JSON))[0] == 200


async def test_what_ended_is_not_left_in_reference_cycles(server: FakeModelServer) -> None:
    async with house_of(server.url) as house:
        with cyclic_garbage() as left:
            for number in range(5):
                await ended_in_order(house)
                await hung_up_on(house, server, f"cycles-{number}")
                with pytest.raises(ByoaiError):
                    await (await house.client(None)).ask("GET", "/v1/models")
            house.clients.clear()
            await turns(50)
        assert not left


async def ended_in_order(house: House) -> None:
    client = await house.client()
    assert (await client.ask("POST", CHAT, chat(stream=True), JSON))[0] == 200
    assert (await client.ask("GET", "/nothing"))[0] == 404
    client.connection.close()


async def hung_up_on(house: House, server: FakeModelServer, tag: str) -> None:
    client = await house.client()
    await client.request("POST", CHAT, chat(tag, stream=True, does="go_on_until_ended"), JSON)
    client.hang_up()
    with stopped():
        await (await server.arrival(tag)).gone
