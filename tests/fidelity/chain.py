"""One gateway with all four routes, before a provider that answers each case as ordered."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from openai import AsyncOpenAI

from byoai_gateway.config import UsersSection
from byoai_gateway.users import User, mint
from byoai_shared.secret import Secret
from demo.settings import Settings
from demo.stack import PREFERENCES, USER_PLAN, DefaultProvider, Stack, port_of
from fidelity.model import CLIENT_READS, Case, Outcome, Received, Route, Seen
from fidelity.observation import seen
from fidelity.official import STREAMS, WHOLES, outcome_of
from fidelity.wire import Address, Answer, Message, Reads, exchange
from support.internet import https, trusted_authority
from support.provider import Provider, Request, providing
from support.provider_script import Script, Until, whole

STRAIGHT: Final = "straight"
PATIENCE_S: Final = 20.0
LIFETIME_S: Final = 3600.0
OFFERED: Final = "/api/ai/models"
MODELS: Final = ("provider-model", "small", "whisper", "speech", "pictures", "vectors")
"""Offered by the provider and by the operator, under the same names."""
NOT_OFFERED: Final = ("vendor/huge", "gpt-4o-transcribe")
"""Offered by the provider alone."""
LIST: Final = {
    "object": "list",
    "data": [
        {"id": name, "object": "model", "owned_by": "fake"} for name in (*MODELS, *NOT_OFFERED)
    ],
}
LISTS: Final = frozenset({"/v1/models", "/v1/models/user"})
GATEWAY: Final[Settings] = {
    "limits.requests_per_minute": 100_000_000,
    "limits.concurrent_requests": 1024,
    # Failures are ordered here, by the dozen.
    "router.breaker_failures": 1_000_000,
    "router.keep_alive_s": 0,
    "default_provider.anthropic_messages": True,
    "self_hosted.url_networks": ["127.0.0.1/32"],
    **{f"default_provider.models.{name}": name for name in MODELS},
}
RELAY: Final[Settings] = {
    "limits.streams_per_tunnel": 1024,
    "limits.opens_per_s": 1024,
    "limits.opens_burst": 1024,
}
AGENT: Final[Settings] = {
    "limits.concurrent_requests": 1024,
    "allowed.groups": ["audio-speech", "audio-translations", "images"],
}


@dataclass
class Ordered:
    """Which script answers which request, known by its user agent, and what has arrived."""

    orders: dict[str, tuple[Case, asyncio.Event]] = field(
        default_factory=dict[str, tuple[Case, asyncio.Event]]
    )
    received: dict[str, list[Received]] = field(default_factory=dict[str, list[Received]])

    def answer(self, request: Request) -> Script:
        """Answer a request of a case as its case says; an agent's look at the models as ever."""
        marker = request.headers.get("user-agent", "")
        if marker not in self.orders:
            return whole(LIST) if request.target in LISTS else whole({}, 404)
        self.received.setdefault(marker, []).append(
            Received(
                request.method,
                request.target.removeprefix("/v1"),
                request.headers.get("content-type", ""),
                request.body,
            )
        )
        case, reads = self.orders[marker]
        script = case.answer
        if case.refused and case.refused in request.body:
            script = case.refusal
        elif case.then and len(self.received[marker]) > 1:
            script = case.then
        return tuple(Until(reads) if step is CLIENT_READS else step for step in script)

    def order(self, marker: str, case: Case) -> asyncio.Event:
        """Answer requests with this marker so; the event lets the script go on (`CLIENT_READS`)."""
        reads = asyncio.Event()
        self.orders[marker] = case, reads
        return reads


@dataclass
class Chain:
    """Everything that a case needs: where to send it, and what the provider has got."""

    ordered: Ordered
    stack: Stack
    addresses: Mapping[str, Address]
    clients: Mapping[str, AsyncOpenAI]

    async def views(self, case: Case) -> Mapping[str, Seen]:
        """What is seen of a case straight and on every route."""
        names = (STRAIGHT, *Route)
        async with self._prepared(case):
            found = await asyncio.gather(*(self._view(case, name) for name in names))
        return dict(zip(names, found, strict=True))

    @asynccontextmanager
    async def _prepared(self, case: Case) -> AsyncGenerator[None]:
        """Let the users do what they did before a case, and change it back after it."""
        tokens = [self.addresses[route].token for route in Route]
        for route in case.listed:
            token = self.addresses[route].token
            # A new key has a list of its own: one that is kept may age at any moment.
            await self.stack.choose(token, {"selfHostedAuthKey": case.name.replace(" ", "-")})
            await self.stack.call("GET", OFFERED, token)
        if not case.settings:
            yield
            return
        before = [await self.stack.call("GET", PREFERENCES, it) for it in tokens]
        await self._choose(tokens, [case.settings] * len(tokens))
        yield
        await self._choose(tokens, [{name: it[name] for name in case.settings} for it in before])

    async def _choose(self, tokens: list[str], settings: list[Mapping[str, Any]]) -> None:
        changes = zip(tokens, settings, strict=True)
        await asyncio.gather(*(self.stack.choose(token, it) for token, it in changes))

    async def _view(self, case: Case, name: str) -> Seen:
        marker = f"{case.name}; {name}"
        raw, official = self._raw(case, name, marker), self._official(case, name, f"{marker}; sdk")
        answer, outcome = await asyncio.gather(raw, official)
        return seen(case, answer, tuple(self.ordered.received.get(marker, ())), outcome)

    async def _raw(self, case: Case, name: str, marker: str) -> Answer:
        ask, address = case.ask, self.addresses[name]
        fields = (("user-agent", marker), *ask.headers)
        if address.token:
            scheme = "Bearer " if ask.key_header == "authorization" else ""
            fields = (*fields, (ask.key_header, scheme + address.token))
        if ask.method == "POST":
            fields = (*fields, ("content-type", ask.content_type))
        message = Message(ask.method, f"/v1{ask.path}", fields, ask.body)
        reads = Reads(self.ordered.order(marker, case), case.awaited)
        return await exchange(address.port, message, reads)

    async def _official(self, case: Case, name: str, marker: str) -> Outcome | None:
        ask = case.ask
        if not case.has_sdk or ask.path not in (STREAMS if ask.is_stream else WHOLES):
            return None
        reads = self.ordered.order(marker, case)
        return await outcome_of(self.clients[name], ask, marker, reads)


@asynccontextmanager
async def open_chain(directory: Path) -> AsyncGenerator[Chain]:
    """Start the gateway, a relay and an agent, and let one user choose each provider."""
    ordered = Ordered()
    async with AsyncExitStack() as parts:
        patch = parts.enter_context(pytest.MonkeyPatch.context())
        # The programs start with it, and trust the certificate of the user's server.
        authority = trusted_authority(directory, patch)
        plain = await parts.enter_async_context(providing())
        secure = await parts.enter_async_context(providing(https(authority, "127.0.0.1")))
        plain.otherwise = secure.otherwise = ordered.answer
        settings: Settings = {**GATEWAY, "openrouter.base_url": plain.url}
        default = DefaultProvider(plain.url, MODELS[0], "the-operators-key")
        stack = Stack(
            directory, gateway=settings, relay=RELAY, agent=AGENT, default_provider=default
        )
        await parts.enter_async_context(stack)
        tokens = await choose(stack, plain, secure)
        port = port_of(stack.gateway_url)
        addresses = {STRAIGHT: Address(plain.port)}
        clients = {STRAIGHT: official(plain.url, "a-key")}
        for route, token in tokens.items():
            addresses[route] = Address(port, token)
            clients[route] = official(f"{stack.gateway_url}/v1", token)
        for client in clients.values():
            parts.push_async_callback(client.close)
        yield Chain(ordered, stack, addresses, clients)


def official(url: str, key: str) -> AsyncOpenAI:
    """The official client; its own retries would hide what was answered."""
    return AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_S)


async def choose(stack: Stack, plain: Provider, secure: Provider) -> Mapping[Route, str]:
    """One user for each route; answers their tokens."""
    settings: dict[Route, dict[str, Any]] = {
        Route.DEFAULT: {"aiProvider": "default"},
        Route.OPENROUTER: {
            "aiProvider": "openrouter",
            "openRouterApiKey": "sk-or-v1-of-a-test",
            "openRouterModelPreference": MODELS[0],
        },
        Route.URL: {
            "aiProvider": "self-hosted",
            "selfHostedUrl": f"https://127.0.0.1:{secure.port}/v1",
            "selfHostedAuthKey": "the-key-of-a-server",
        },
        Route.TUNNEL: {"selfHostedModelPreference": MODELS[0]},
    }
    await stack.open_tunnel(Route.TUNNEL.value, [plain.url.removesuffix("/v1")])
    secret = (stack.directory / "users-secret").read_text()
    tokens = {route: minted(route.value, secret) for route in settings}
    await asyncio.gather(*(stack.choose(tokens[route], it) for route, it in settings.items()))
    return tokens


def minted(user: str, secret: str) -> str:
    """A user's token; the gateway's command for it would take a process for each."""
    users = UsersSection(secret=Secret(secret))
    return mint(User(user, USER_PLAN), users, time.time(), LIFETIME_S)
