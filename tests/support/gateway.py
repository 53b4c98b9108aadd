"""A gateway in this process, its public door on loopback, before providers that tests order."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from openai import AsyncOpenAI
from sqlalchemy import select

from byoai_gateway.config import GatewayConfig
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.data_path import DataPath, open_data_path
from byoai_gateway.schema import usage_records
from byoai_gateway.server import listening
from support.control import FakeClock, bearer

CHAT = "/v1/chat/completions"
PREFERENCES = "/api/user-preferences/ai-provider"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway said."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool = True
    """Whether HTTP says that nothing is missing."""

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        return error

    @property
    def events(self) -> list[bytes]:
        """The data of each event, comments left out."""
        lines = self.body.replace(b"\r\n", b"\n").split(b"\n")
        return [line[6:] for line in lines if line.startswith(b"data: ")]

    @property
    def text(self) -> str:
        """What a streamed chat says."""
        chunks = [msgspec.json.decode(it) for it in self.events if it != b"[DONE]"]
        choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def stream_error(self) -> dict[str, Any]:
        """The error that a stream ended with."""
        last = msgspec.json.decode(self.events[-1])
        assert last["choices"][0]["finish_reason"] == "error"
        error: dict[str, Any] = last["error"]
        return error


@dataclass
class Gateway:
    """A running gateway and its one HTTP client."""

    url: str
    control: ControlPlane
    data_path: DataPath
    clock: FakeClock
    http: aiohttp.ClientSession

    async def ask(
        self,
        body: Any = None,
        *,
        path: str = CHAT,
        method: str = "POST",
        user: str = "alice",
        plan: str = "pro",
        **headers: str,
    ) -> Answer:
        """One request of a user, its answer read to the end."""
        fields = {"authorization": bearer(user, self.clock, plan=plan), **headers}
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        sent = {"content-type": "application/json", **fields}
        async with self.http.request(
            method, self.url + path, data=None if body is None else data, headers=sent
        ) as response:
            pieces: list[bytes] = []
            is_whole = True
            try:
                async for piece, _ in response.content.iter_chunks():
                    pieces.append(piece)
            except aiohttp.ClientError:
                is_whole = False
            return Answer(response.status, response.headers, b"".join(pieces), is_whole)

    async def chat(self, *, stream: bool = True, user: str = "alice", **fields: Any) -> Answer:
        """Ask for a chat."""
        body: dict[str, Any] = {
            "model": "provider-model",
            "stream": stream,
            "messages": [],
            **fields,
        }
        return await self.ask(body, user=user)

    async def prefer(self, *, user: str = "alice", plan: str = "pro", **settings: Any) -> Answer:
        """Save a user's settings."""
        answer = await self.ask(settings, path=PREFERENCES, user=user, plan=plan)
        assert answer.status == 200, answer.body
        return answer

    def client(self, user: str = "alice", **options: Any) -> AsyncOpenAI:
        """The official client."""
        key = bearer(user, self.clock).removeprefix("Bearer ")
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, **options)

    async def records(self) -> list[Any]:
        """The usage records, once they are written."""
        await self.control.usage.flush()
        async with self.control.database.reading() as connection:
            rows = await connection.execute(
                select(usage_records).order_by(usage_records.c.record_id)
            )
            return list(rows)


@asynccontextmanager
async def open_gateway(config: GatewayConfig, clock: FakeClock) -> AsyncGenerator[Gateway]:
    """Serve; without relays unless the settings name some."""
    listen = msgspec.structs.replace(config.listen, port=0, drain_s=0)
    config = msgspec.structs.replace(config, listen=listen)
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(open_control_plane(config, clock))
        data_path = await stack.enter_async_context(open_data_path(control))
        address = await stack.enter_async_context(listening(control, data_path, asyncio.Event()))
        # The test's own limit ends what hangs; one by the loop's clock would end what a test skips.
        patient = aiohttp.ClientTimeout(total=None)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=patient))
        yield Gateway(f"http://{address}", control, data_path, clock, http)
