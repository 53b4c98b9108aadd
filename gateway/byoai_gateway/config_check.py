"""Refuses settings that cannot work together or would be unsafe, before anything is started.

Pure, and only about what types cannot say: each field by itself is checked where it is read.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from byoai_gateway import rate_windows
from byoai_gateway.config import GatewayConfig, RelaySection, UsersSection
from byoai_gateway.provider_config import DefaultProviderSection, OpenRouterSection
from byoai_gateway.providers.address_guard import AddressGuard
from byoai_gateway.providers.origin import operators_address
from byoai_shared.api_keys import key_fault
from byoai_shared.base_urls import has_blank_or_control
from byoai_shared.config import ConfigError
from byoai_shared.http1.framing import is_hop_by_hop

LEAST_SECRET_BYTES: Final = 32
"""RFC 7518, section 3.2: an HS256 key is no shorter than the hash."""

_HEADER_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_SECRET_HEADERS: Final = frozenset(
    {"api-key", "authorization", "cookie", "x-api-key", "x-goog-api-key"}
)
_OWN_HEADERS: Final = frozenset(
    {
        "accept-encoding",
        "cdn-loop",
        "content-length",
        "host",
        "http-referer",
        "x-openrouter-title",
        "x-request-id",
        "x-title",
    }
)


def check(config: GatewayConfig) -> None:
    """Refuse what cannot work or would be unsafe.

    Raises:
        ConfigError: the sentence names the setting and what it may be.
    """
    _check_public_url(config.public_url)
    _check_users(config.users)
    if (config.listen.certificate is None) != (config.listen.key is None):
        raise ConfigError("listen.certificate and listen.key: give both or neither")
    for network in config.limits.trusted_proxies:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ConfigError(f"limits.trusted_proxies: {error}; write 10.0.0.0/8") from error
    _check_relays(config.relays)
    _check_database(config.database.url)
    if config.limits.store is not None:
        rate_windows.check_address(config.limits.store)
    _check_request_headers(config.router.request_headers)
    _check_providers(config)


def _check_relays(relays: Sequence[RelaySection]) -> None:
    addresses = [address for it in relays for address in (it.address, it.gateway_address)]
    if twice := sorted({it for it in addresses if addresses.count(it) > 1}):
        raise ConfigError(f"relays: {twice[0]!r} stands there twice; each listener has its own")
    for address in addresses:
        if not _is_relay_address(address):
            raise ConfigError(f"relays: {address!r} must be written as wss://host:port")


def _check_request_headers(names: Sequence[str]) -> None:
    for name in names:
        if not _HEADER_NAME.fullmatch(name):
            reason = "write the name of a header, in lower case"
        elif name in _SECRET_HEADERS:
            reason = "it carries what only the gateway may know of a user"
        elif name in _OWN_HEADERS or name.startswith("x-byoai-"):
            reason = "the gateway itself sets it"
        elif is_hop_by_hop(name.encode()):
            reason = "it is meant for one connection only"
        else:
            continue
        raise ConfigError(f"router.request_headers: {name!r} cannot go to providers: {reason}")


def _check_database(url: str) -> None:
    if not url.isprintable() or url != url.strip():
        raise ConfigError(
            "database.url contains a line break or control character, or blanks around it"
        )
    try:
        make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(
            "database.url is not an address; for example sqlite+aiosqlite:///gateway.db"
        ) from None  # its text may show a password


def _check_providers(config: GatewayConfig) -> None:
    _check_default_provider(config.default_provider)
    _check_openrouter(config.openrouter)
    try:
        AddressGuard(config.self_hosted.url_networks)
    except ConfigError as error:
        raise ConfigError(f"self_hosted.url_networks: {error}") from error


def _check_default_provider(provider: DefaultProviderSection) -> None:
    if provider.base_url is not None:
        _check_address("default_provider.base_url", provider.base_url)
    if provider.key is not None and (fault := key_fault(provider.key)):
        raise ConfigError(f"default_provider.key {fault}")
    _check_model("default_provider.model", provider.model)
    for name, model in provider.models.items():
        _check_model("default_provider.models", name)
        _check_model(f"default_provider.models.{name}", model)


def _check_openrouter(openrouter: OpenRouterSection) -> None:
    _check_address("openrouter.base_url", openrouter.base_url)
    if not openrouter.title.isprintable():
        raise ConfigError("openrouter.title is sent in a header; write it as one line of text")
    if openrouter.referer is not None and has_blank_or_control(openrouter.referer):
        raise ConfigError(
            "openrouter.referer is sent in a header; write it as one line without blanks"
        )


def _check_address(setting: str, url: str) -> None:
    try:
        operators_address(url)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from error


def _check_model(setting: str, name: str | None) -> None:
    if name is not None and not (name.strip() and name == name.strip() and name.isprintable()):
        raise ConfigError(
            f"{setting}: a model's name must be one line of text without blanks around it"
        )


def is_safe_url(url: str) -> bool:
    """Whether an address is https, or http to this very host (for development).

    `urlsplit` drops the line breaks that it finds, so they are looked for first.
    """
    if has_blank_or_control(url):
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(parts.hostname)
    try:
        is_loopback = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        is_loopback = parts.hostname == "localhost"
    return parts.scheme == "http" and is_loopback


def _is_relay_address(address: str) -> bool:
    if has_blank_or_control(address):
        return False
    try:
        parts = urlsplit(address)
        return parts.scheme == "wss" and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _check_public_url(url: str) -> None:
    if not is_safe_url(url):
        raise ConfigError(
            f"public.url: {url!r} must begin with https:// (http only to a loopback address) and "
            "contain no blank or line break"
        )


def _check_users(users: UsersSection) -> None:
    if users.secret is not None and users.jwks_url is not None:
        raise ConfigError("users: give secret or jwks_url, not both")
    if users.secret is not None:
        length = len(users.secret.reveal().encode())
        if length < LEAST_SECRET_BYTES:
            raise ConfigError(
                f"users.secret of {length} bytes is too short; "
                f"give at least {LEAST_SECRET_BYTES}, for example from: openssl rand -hex 32"
            )
    if users.jwks_url is not None and not is_safe_url(users.jwks_url):
        raise ConfigError(
            "users.jwks_url must begin with https:// (http only to a loopback address) and contain "
            "no blank or line break"
        )
