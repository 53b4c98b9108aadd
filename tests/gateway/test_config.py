import tomllib
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from byoai_gateway import config as module
from byoai_gateway.config import (
    PREFIX,
    GatewayConfig,
    LimitsSection,
    ListenSection,
    PublicSection,
    RelaySection,
    UsersSection,
    check,
    is_safe_url,
)
from byoai_gateway.config_section import Section
from byoai_gateway.provider_config import (
    DefaultProviderSection,
    OpenRouterSection,
    SelfHostedSection,
)
from byoai_shared.config import ConfigError, describe, load
from byoai_shared.secret import Secret

SECTIONS = [
    value
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Section) and value is not Section
]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_described(section: type[Section]) -> None:
    for name, hint in get_type_hints(section, include_extras=True).items():
        metas = [it for it in getattr(hint, "__metadata__", ()) if isinstance(it, msgspec.Meta)]
        assert any(meta.description for meta in metas), f"{section.__name__}.{name}"
        if name.endswith("_s"):
            assert any((meta.extra or {}).get("unit") == "s" for meta in metas), name


def test_the_sample_is_toml() -> None:
    text = describe(GatewayConfig)
    assert "[listen]" in text
    # Required fields of [[relays]] have no value to show.
    tomllib.loads("\n".join(line for line in text.splitlines() if "# required" not in line))


def test_settings_of_all_three_sources(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        'listen.port = 1\nlisten.host = "::1"\npublic.url = "https://a.example"\n'
        '[[relays]]\naddress = "wss://r:1"\ngateway_address = "wss://r:2"\n'
    )
    config = load(
        GatewayConfig,
        file=file,
        environ={"BYOAI_GATEWAY_LISTEN__PORT": "2", "BYOAI_GATEWAY_USERS__SECRET": "s" * 32},
        prefix=PREFIX,
        flags={"log.form": "console"},
    )
    assert (config.listen.host, config.listen.port) == ("::1", 2)
    assert config.users.secret == Secret("s" * 32)
    assert config.log.form == "console"
    assert config.relays == (RelaySection(address="wss://r:1", gateway_address="wss://r:2"),)
    check(config)


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
        (
            GatewayConfig(self_hosted=SelfHostedSection(url_networks=("10.0.0.1/8",))),
            "self_hosted.url_networks: .* none",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(config: GatewayConfig, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check(config)


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
    ],
)
def test_plain_http_is_for_this_host_only(url: str, *, expected: bool) -> None:
    assert is_safe_url(url) is expected
