import msgspec
import pytest

from byoai_gateway.config import GatewayConfig, LimitsSection, RelaySection, UsersSection
from byoai_gateway.config_warnings import config_warnings
from byoai_gateway.provider_config import DefaultProviderSection, OpenRouterSection, RouterSection
from byoai_shared.secret import Secret

COMPLETE = GatewayConfig(
    users=UsersSection(secret=Secret("s" * 32), audience="gateway"),
    relays=(RelaySection(address="wss://a", gateway_address="wss://b"),),
    default_provider=DefaultProviderSection(base_url="https://llm.example/v1"),
)


def test_complete_settings_warn_of_nothing() -> None:
    assert config_warnings(COMPLETE) == ()


def test_what_the_defaults_cannot_do_is_named() -> None:
    found = config_warnings(GatewayConfig())
    settings = [it.setting for it in found]
    assert settings == ["users", "relays", "default_provider.base_url"]
    assert all(it.next and str(it).startswith(it.setting) for it in found)


@pytest.mark.parametrize(
    "users",
    [UsersSection(secret=Secret("s" * 32)), UsersSection(jwks_url="https://app.example/jwks")],
)
def test_tokens_for_any_audience_are_named_with_what_that_means(users: UsersSection) -> None:
    (warning,) = config_warnings(msgspec.structs.replace(COMPLETE, users=users))
    assert (warning.event, warning.setting) == ("users.audience_unset", "users.audience")
    assert "issued for another service" in warning.reason


@pytest.mark.parametrize(("most", "is_named"), [(1000, False), (1001, True)])
def test_bodies_that_could_not_be_kept_are_named(most: int, *, is_named: bool) -> None:
    config = msgspec.structs.replace(
        COMPLETE,
        limits=LimitsSection(max_body_bytes=most),
        router=RouterSection(buffered_bytes=4003),
    )
    found = config_warnings(config)
    assert [it.setting for it in found] == ["limits.max_body_bytes"] * is_named
    for warning in found:
        assert "1000 bytes at most" in warning.reason
        assert "router.buffered_bytes to 4004 or more" in warning.next


@pytest.mark.parametrize("url", ["https://llm.example", "https://llm.example/openai/"])
def test_an_address_without_a_version_is_doubtful(url: str) -> None:
    default = GatewayConfig(default_provider=DefaultProviderSection(base_url=url))
    warning = config_warnings(default)[-1]
    assert warning.setting == "default_provider.base_url"
    assert warning.next.endswith(f"write {url.rstrip('/')}/v1")
    openrouter = GatewayConfig(openrouter=OpenRouterSection(base_url=url))
    assert config_warnings(openrouter)[-1].setting == "openrouter.base_url"


@pytest.mark.parametrize("path", ["/openai/v1", "/api/v1", "/v1beta/openai", "/api/paas/v4"])
def test_other_prefixes_are_usual(path: str) -> None:
    section = DefaultProviderSection(base_url=f"https://llm.example{path}")
    config = GatewayConfig(default_provider=section)
    assert [it.event for it in config_warnings(config)] == ["users.unset", "relays.unset"]
