from collections.abc import Mapping
from pathlib import Path

import pytest

from byoai_gateway.config import (
    DatabaseSection,
    GatewayConfig,
    LimitsSection,
    ListenSection,
    PublicSection,
    RelaySection,
    UsersSection,
)
from byoai_gateway.config_check import check, is_safe_url
from byoai_gateway.provider_config import (
    DefaultProviderSection,
    OpenRouterSection,
    RouterSection,
    SelfHostedSection,
)
from byoai_shared.config import ConfigError
from byoai_shared.secret import Secret


def of_default(
    *,
    base_url: str | None = None,
    key: Secret | None = None,
    model: str | None = None,
    models: Mapping[str, str] | None = None,
) -> GatewayConfig:
    """Settings with this default provider."""
    section = DefaultProviderSection(
        base_url=base_url, key=key, model=model, models=dict(models or {})
    )
    return GatewayConfig(default_provider=section)


def test_the_defaults_can_be_started_with() -> None:
    check(GatewayConfig())


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (GatewayConfig(public=PublicSection(url="http://a.example")), "https"),
        (GatewayConfig(public=PublicSection(url="a.example")), "https"),
        (GatewayConfig(listen=ListenSection(certificate=Path("c"))), "both or neither"),
        (GatewayConfig(users=UsersSection(secret=Secret("short"))), "too short"),
        (
            GatewayConfig(users=UsersSection(secret=Secret("s" * 32), jwks_url="https://a")),
            "not both",
        ),
        (GatewayConfig(users=UsersSection(jwks_url="http://a.example/jwks")), "https"),
        (GatewayConfig(limits=LimitsSection(trusted_proxies=("10.0.0.1/8",))), "trusted_proxies"),
        (
            GatewayConfig(relays=(RelaySection(address="ws://r", gateway_address="wss://r"),)),
            "wss",
        ),
        (
            GatewayConfig(relays=(RelaySection(address="wss://", gateway_address="wss://r"),)),
            "wss://host:port",
        ),
        (
            GatewayConfig(relays=(RelaySection(address="wss://r:x", gateway_address="wss://r"),)),
            "wss://host:port",
        ),
        (
            GatewayConfig(relays=(RelaySection(address="wss://r", gateway_address="wss://s"),) * 2),
            "twice",
        ),
        (
            GatewayConfig(openrouter=OpenRouterSection(base_url="openrouter.ai/api/v1")),
            "openrouter.base_url: .* must begin with https://",
        ),
        (
            GatewayConfig(
                default_provider=DefaultProviderSection(base_url="https://key@llm.example/v1")
            ),
            "default_provider.base_url: .* no more",
        ),
        (GatewayConfig(openrouter=OpenRouterSection(title="two\r\nlines")), "openrouter.title"),
        (GatewayConfig(openrouter=OpenRouterSection(referer="https://a\n")), "openrouter.referer"),
        (GatewayConfig(openrouter=OpenRouterSection(referer="https://a b")), "openrouter.referer"),
        (GatewayConfig(public=PublicSection(url="https://a\n")), "public.url"),
        (GatewayConfig(users=UsersSection(jwks_url="https://a /jwks")), "users.jwks_url"),
        (
            GatewayConfig(relays=(RelaySection(address="wss://r\n", gateway_address="wss://s"),)),
            "wss://host:port",
        ),
        (GatewayConfig(database=DatabaseSection(url="sqlite+aiosqlite:///a\n")), "database.url"),
        (GatewayConfig(database=DatabaseSection(url="gateway.db")), "database.url"),
        (GatewayConfig(limits=LimitsSection(store=Secret("redis://a b"))), "limits.store"),
        (GatewayConfig(limits=LimitsSection(store=Secret("redis://h/x"))), "limits.store"),
        (of_default(base_url="https://a /v1"), "default_provider.base_url: .* blank"),
        (of_default(base_url="https://a/v1\n"), "default_provider.base_url: .* line break"),
        (of_default(base_url="https://a:0/v1"), "default_provider.base_url: .* no more"),
        (of_default(base_url=""), "default_provider.base_url: .* https"),
        (of_default(base_url="https://a/vé"), "default_provider.base_url: .* ASCII"),
        (
            of_default(base_url="https://a/openai/v1/chat/completions"),
            "default_provider.base_url: .* write https://a/openai/v1$",
        ),
        (of_default(base_url="https://a/models"), "base_url: .* write https://a/v1$"),
        (
            GatewayConfig(openrouter=OpenRouterSection(base_url="https://a/api/v1/completions")),
            "openrouter.base_url: .* write https://a/api/v1$",
        ),
        (of_default(key=Secret("sk-key\n")), "default_provider.key contains"),
        (of_default(key=Secret("")), "default_provider.key is empty"),
        (of_default(model="small\n"), "default_provider.model:"),
        (of_default(models={"small": " big"}), "default_provider.models.small:"),
        (of_default(models={"": "big"}), "default_provider.models:"),
        (
            GatewayConfig(self_hosted=SelfHostedSection(url_networks=("10.0.0.1/8",))),
            "self_hosted.url_networks: .* none",
        ),
        *(
            (
                GatewayConfig(router=RouterSection(request_headers=("x-tenant", name))),
                f"router.request_headers: .* cannot go to providers: .*{why}",
            )
            for name, why in {
                "authorization": "of a user",
                "x-api-key": "of a user",
                "cookie": "of a user",
                "host": "sets it",
                "x-request-id": "sets it",
                "x-byoai-timeout": "sets it",
                "connection": "one connection",
                "proxy-authorization": "one connection",
                "transfer-encoding": "one connection",
                "X-Tenant": "lower case",
                "x tenant": "lower case",
                "x-tenant\n": "lower case",
                "": "lower case",
            }.items()
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(config: GatewayConfig, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check(config)


def test_headers_of_users_may_be_named() -> None:
    check(GatewayConfig(router=RouterSection(request_headers=("x-tenant", "baggage"))))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example", True),
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://[::1]:1", True),
        ("http://127.0.0.1.example.com", False),
        ("http://10.0.0.1", False),
        ("https://", False),
        ("ftp://127.0.0.1", False),
        ("https://a.example\n", False),
        ("https://a.example /jwks", False),
        ("https://[", False),
    ],
)
def test_plain_http_is_for_this_host_only(url: str, *, expected: bool) -> None:
    assert is_safe_url(url) is expected
