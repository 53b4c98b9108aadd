"""A model server to order: it speaks OpenAI's shapes and misbehaves exactly as a request asks.

What it does stands in the request body under `fake` (the `openai` client passes it as
`extra_body`), so that tests that run side by side share one server. It notes every request it
saw and the moment at which a client was gone.
"""

import asyncio
import hashlib
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import BodyPartReader, web

MODELS = ("fake-model", "other/fake-model")


class Order(msgspec.Struct, frozen=True):
    """What one request is to get."""

    does: str = "answer"
    """`answer`, `stay_silent`, `hang`, `die_in_mid_answer`, `send_endless_headers`,
    `answer_500` or `answer_non_json`. A streamed chat can also `wait_to_go_on` after its first
    token, or `go_on_until_ended`."""
    tag: str = ""
    """By this a test finds its request again."""
    tokens: int = 5
    every_s: float = 0.0


class Body(msgspec.Struct, frozen=True):
    """The part of a request body that matters here."""

    model: str = ""
    stream: bool = False
    fake: Order = Order()


@dataclass(slots=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    gone: asyncio.Future[None] = field(repr=False)
    """Is done once the client was seen to be gone."""
    told: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """For a stream that waits to go on, or goes on until it is ended: set by the test."""


def token(number: int) -> str:
    """The n-th token of every answer: numbered, so that a missing one shows."""
    return f"t{number} "


def text(count: int) -> str:
    """A whole answer."""
    return "".join(token(number) for number in range(count))


Shape = Callable[[web.Request, Body, Seen], Awaitable[web.StreamResponse]]


class FakeModelServer:
    """The server's state; `serving` runs it."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Seen] = []
        self._changed = asyncio.Condition()
        self.app = web.Application(client_max_size=1024**3)
        self.app.router.add_get("/v1/models", self._models)
        self.app.router.add_get("/v1/models/{model:.+}", self._model)
        self.app.router.add_post("/v1/audio/transcriptions", self._transcribe)
        self.app.router.add_route("*", "/{path:.*}", self._answer)
        self._shapes: dict[str, Shape] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embed,
            "/v1/responses": self._respond,
        }

    async def arrival(self, tag: str, timeout_s: float = 50.0) -> Seen:
        """The request with this tag, now or when it comes."""
        wanted = f'"tag":"{tag}"'.encode()
        async with asyncio.timeout(timeout_s), self._changed:
            while True:
                for seen in self.requests:
                    if wanted in seen.body.replace(b": ", b":"):
                        return seen
                await self._changed.wait()

    async def _note(self, request: web.Request, body: bytes) -> Seen:
        gone = asyncio.get_running_loop().create_future()
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Seen(request.method, request.path, headers, body, gone)
        async with self._changed:
            self.requests.append(seen)
            self._changed.notify_all()
        return seen

    async def _models(self, request: web.Request) -> web.Response:
        models = [{"id": name, "object": "model", "owned_by": "fake"} for name in MODELS]
        return web.json_response({"object": "list", "data": models})

    async def _model(self, request: web.Request) -> web.Response:
        await self._note(request, b"")
        name = request.match_info["model"]
        return web.json_response({"id": name, "object": "model", "owned_by": "fake"})

    async def _transcribe(self, request: web.Request) -> web.Response:
        """Says what arrived, so that a test can compare it with what was sent."""
        fields: dict[str, str] = {}
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            content = bytes(await part.read())
            fields[str(part.name)] = f"{len(content)} {hashlib.sha256(content).hexdigest()}"
        await self._note(request, b"")
        return web.json_response({"text": fields.get("file", "no file")})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        seen = await self._note(request, raw)
        body = msgspec.json.decode(raw, type=Body) if raw else Body()
        try:
            return await self._obey(request, body, seen)
        except (asyncio.CancelledError, ConnectionError):
            # aiohttp cancels a handler, or fails its write, the moment its client is gone.
            if not seen.gone.done():
                seen.gone.set_result(None)
            raise

    async def _obey(self, request: web.Request, body: Body, seen: Seen) -> web.StreamResponse:
        match body.fake.does:
            case "stay_silent" | "hang":
                await asyncio.Event().wait()
                raise AssertionError("nobody ends the silence")
            case "send_endless_headers":
                return await send_endless_headers(request)
            case "answer_500":
                error = {"error": {"message": "out of memory", "code": 500}}
                return web.json_response(error, status=500)
            case "answer_non_json":
                return web.Response(status=502, text="<html>bad gateway</html>")
            case _:
                shape = self._shapes.get(request.path)
                if shape is None:
                    return web.json_response({"path": request.path})
                return await shape(request, body, seen)

    async def _chat(self, request: web.Request, body: Body, seen: Seen) -> web.StreamResponse:
        common = {"id": "chatcmpl-1", "created": 1, "model": body.model}
        if body.stream:
            chunks = (
                {
                    **common,
                    "object": "chat.completion.chunk",
                    "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
                }
                async for delta, reason in deltas(body.fake, seen.told)
            )
            return await send_events(request, chunks, body.fake)
        message = {"role": "assistant", "content": text(body.fake.tokens)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {**common, "object": "chat.completion", "choices": [choice]}
        return await send_whole(request, answer, body.fake)

    async def _completion(self, request: web.Request, body: Body, seen: Seen) -> web.StreamResponse:
        choice = {"index": 0, "text": text(body.fake.tokens), "finish_reason": "stop"}
        common = {"id": "cmpl-1", "object": "text_completion", "created": 1}
        answer = {**common, "model": body.model, "choices": [choice]}
        return await send_whole(request, answer, body.fake)

    async def _embed(self, request: web.Request, body: Body, seen: Seen) -> web.StreamResponse:
        data = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 1.0]}]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        answer = {"object": "list", "model": body.model, "data": data, "usage": usage}
        return await send_whole(request, answer, body.fake)

    async def _respond(self, request: web.Request, body: Body, seen: Seen) -> web.StreamResponse:
        nothing: list[str] = []
        part = {"type": "output_text", "text": text(body.fake.tokens), "annotations": nothing}
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
        answer: dict[str, Any] = {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": body.model,
            "output": [{**message, "content": [part]}],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": nothing,
        }
        return await send_whole(request, answer, body.fake)


async def deltas(
    order: Order, told: asyncio.Event
) -> AsyncIterator[tuple[dict[str, str], str | None]]:
    """The pieces of a streamed chat, at the pace that was asked for."""
    yield {"role": "assistant"}, None
    for number in itertools.count() if order.does == "go_on_until_ended" else range(order.tokens):
        if order.does == "go_on_until_ended" and told.is_set():
            break
        if order.does == "wait_to_go_on" and number:
            await told.wait()
        if order.every_s and number:
            await asyncio.sleep(order.every_s)
        yield {"content": token(number)}, None
    yield {}, "stop"


async def send_events(
    request: web.Request, events: AsyncIterator[Mapping[str, Any]], order: Order
) -> web.StreamResponse:
    """An SSE stream; it breaks off after some events when that is what was asked for."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    count = 0
    async for event in events:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        count += 1
        if order.does == "die_in_mid_answer" and count > order.tokens // 2:
            abort(request)
            return response
    await response.write(b"data: [DONE]\n\n")
    return response


async def send_whole(
    request: web.Request, answer: Mapping[str, Any], order: Order
) -> web.StreamResponse:
    """A JSON answer with its length; half of it when that is what was asked for."""
    body = json.dumps(answer).encode()
    if order.does != "die_in_mid_answer":
        return web.Response(body=body, content_type="application/json")
    response = web.StreamResponse(headers={"content-type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    abort(request)
    return response


async def send_endless_headers(request: web.Request) -> web.StreamResponse:
    """Header upon header until the client has had enough."""
    transport = request.transport
    assert transport is not None
    transport.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1_000_000):
        transport.write(b"x-filler-%d: %s\r\n" % (number, b"x" * 1000))
        await asyncio.sleep(0)
    raise AssertionError("a gigabyte of headers was taken")


def abort(request: web.Request) -> None:
    """The process dies: its sockets close without a word."""
    if request.transport is not None:
        request.transport.abort()


@asynccontextmanager
async def serving(port: int = 0) -> AsyncGenerator[FakeModelServer, None]:
    """Serve on loopback, on a port of the kernel's choice unless one is named."""
    server = FakeModelServer()
    runner = web.AppRunner(
        server.app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        host, bound = runner.addresses[0][:2]
        server.url = f"http://{host}:{bound}"
        yield server
    finally:
        await runner.cleanup()
