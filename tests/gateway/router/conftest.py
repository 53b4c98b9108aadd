"""A gateway whose default provider, and a user's own one, misbehave as ordered."""

from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from byoai_gateway.provider_config import (
    DefaultProviderSection,
    OpenRouterSection,
    RouterSection,
)
from byoai_shared.secret import Secret
from support.control import FakeClock, gateway_config
from support.gateway import Gateway, open_gateway
from support.loop_clock import NEVER_S
from support.provider import Provider

# The tests move the loop's clock to let these pass; by themselves none of them does.
FIRST_TOKEN_S = NEVER_S
SILENCE_S = NEVER_S
CONNECT_S = NEVER_S


@pytest.fixture
async def gateway(
    tmp_path: Path, clock: FakeClock, default: Provider, own: Provider
) -> AsyncGenerator[Gateway]:
    config = msgspec.structs.replace(
        gateway_config(tmp_path),
        relays=(),
        router=RouterSection(
            connect_s=CONNECT_S,
            silence_s=SILENCE_S,
            whole_answer_s=NEVER_S,
            client_stall_s=10 * NEVER_S,
            first_keep_alive_s=10
            * NEVER_S,  # or a comment would begin the answer while the clock is moved
        ),
        default_provider=DefaultProviderSection(
            base_url=default.url,
            key=Secret("the-operators-key"),
            model="default-model",
            anthropic_messages=True,
            first_token_s=FIRST_TOKEN_S,
        ),
        openrouter=OpenRouterSection(base_url=own.url, first_token_s=FIRST_TOKEN_S),
    )
    async with open_gateway(config, clock) as gateway:
        yield gateway


@pytest.fixture
async def bring_own(gateway: Gateway) -> Gateway:
    """Alice asks her own provider, and the default one if that fails."""
    await gateway.prefer(
        aiProvider="openrouter",
        openRouterApiKey="sk-or-v1-alices-own-key",
        openRouterModelPreference="own/model",
        fallbackToDefault=True,
    )
    return gateway
