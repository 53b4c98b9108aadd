"""The routes from a client to the scripted provider: straight, and each way through a gateway.

The gateway, the relay and the agent are real processes; the provider is in this one and stands
for the operator's AI service, the user's own model server, an https address and OpenRouter.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trustme

from demo.settings import Settings
from demo.stack import HOST, DefaultProvider, Stack
from support.internet import https
from support.provider import Provider, providing
from support.provider_script import MODEL

from .answers import WRONG_KEY, Answers

DIRECT: Final = "direct"
ROUTES: Final = (DIRECT, "default", "tunnel", "url", "openrouter")
OPENROUTER_KEY: Final = "sk-or-v1-of-a-client-test"
GATEWAY_SETTINGS: Settings = {
    "default_provider.anthropic_messages": True,
    # Cases fail on purpose, many at once: no breaker may decide about the others.
    "router.breaker_failures": 1000,
    "limits.requests_per_minute": 100_000,
    "self_hosted.url_networks": [f"{HOST}/32"],
}


@dataclass(frozen=True, slots=True)
class Route:
    """Where a client sends its requests, and the keys it uses."""

    name: str
    base_url: str
    """Up to and with /v1."""
    key: str = field(repr=False)
    wrong_key: str = field(repr=False)

    @property
    def is_gateway(self) -> bool:
        """Whether a gateway is between the client and the provider."""
        return self.name != DIRECT


@asynccontextmanager
async def open_routes(answers: Answers, scratch: Path) -> AsyncGenerator[dict[str, Route], None]:
    """Start everything; yields the routes by name."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(scratch / "ca.pem"))
    os.environ["SSL_CERT_FILE"] = str(scratch / "ca.pem")  # the gateway trusts what its host does
    async with AsyncExitStack() as parts:
        provider = await parts.enter_async_context(providing())
        secure = await parts.enter_async_context(providing(https(authority, HOST)))
        provider.otherwise = secure.otherwise = answers
        settings: Settings = {**GATEWAY_SETTINGS, "openrouter.base_url": provider.url}
        operators = DefaultProvider(provider.url, MODEL, "operators-key")
        agent: Settings = {"allowed.groups": ["images"]}
        stack = Stack(scratch, gateway=settings, agent=agent, default_provider=operators)
        await parts.enter_async_context(stack)
        tokens = await _users(stack, provider, secure)
        gateway = f"{stack.gateway_url}/v1"
        routes = [Route(name, gateway, key, f"{key[:-4]}AAAA") for name, key in tokens.items()]
        direct = Route(DIRECT, provider.url, "any-key", WRONG_KEY)
        yield {route.name: route for route in (direct, *routes)}


async def _users(stack: Stack, provider: Provider, secure: Provider) -> dict[str, str]:
    """The token of one user for each way through the gateway."""
    tunnel = await stack.open_tunnel("tunnel", [provider.url.removesuffix("/v1")])
    tokens = {name: await stack.user_token(name) for name in ("default", "url", "openrouter")}
    await stack.choose(tokens["url"], {"aiProvider": "self-hosted", "selfHostedUrl": secure.url})
    await stack.choose(
        tokens["openrouter"], {"aiProvider": "openrouter", "openRouterApiKey": OPENROUTER_KEY}
    )
    return {**tokens, "tunnel": tunnel.token}
