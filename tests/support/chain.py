"""Settings of a gateway before two providers: the operator's, and one that is a user's own."""

from pathlib import Path
from typing import Final

import msgspec

from byoai_gateway.config import GatewayConfig
from byoai_gateway.provider_config import (
    DefaultProviderSection,
    OpenRouterSection,
    RouterSection,
)
from byoai_shared.secret import Secret
from support.control import gateway_config
from support.gateway import Gateway
from support.loop_clock import NEVER_S
from support.provider import Provider

FIRST_TOKEN_S: Final = NEVER_S
KEY: Final = "sk-or-v1-alices-own-key"


def chain(
    directory: Path,
    default: Provider,
    own: Provider,
    plans: tuple[str, ...] = (),
    /,
    **changes: msgspec.Struct,
) -> GatewayConfig:
    """`own` stands for OpenRouter; the other is for `plans`, or all.

    `changes` replace whole sections.
    """
    config = msgspec.structs.replace(
        gateway_config(directory),
        relays=(),
        router=RouterSection(),
        default_provider=DefaultProviderSection(
            base_url=default.url,
            key=Secret("the-operators-key"),
            model="default-model",
            plans=plans,
            first_token_s=FIRST_TOKEN_S,
        ),
        openrouter=OpenRouterSection(base_url=own.url, first_token_s=FIRST_TOKEN_S),
    )
    return msgspec.structs.replace(config, **changes)


async def bring_own(gateway: Gateway, *, user: str = "alice", fallback: bool = True) -> None:
    """Let a user ask their own provider, and the default one if that fails."""
    await gateway.prefer(
        user=user,
        aiProvider="openrouter",
        openRouterApiKey=KEY,
        openRouterModelPreference="own/model",
        fallbackToDefault=fallback,
    )
