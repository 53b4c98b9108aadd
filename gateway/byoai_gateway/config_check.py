"""Refuses settings that cannot work together or would be unsafe, before anything is started.

Pure, and only about what types cannot say: each field by itself is checked where it is read.
"""

import ipaddress
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from byoai_gateway.config import GatewayConfig, RelaySection, UsersSection
from byoai_gateway.providers.address_guard import AddressGuard
from byoai_gateway.providers.origin import operators_address
from byoai_shared.config import ConfigError

LEAST_SECRET_BYTES: Final = 32
"""RFC 7518, section 3.2: an HS256 key is no shorter than the hash."""


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
    _check_providers(config)


def _check_relays(relays: Sequence[RelaySection]) -> None:
    addresses = [address for it in relays for address in (it.address, it.gateway_address)]
    if twice := sorted({it for it in addresses if addresses.count(it) > 1}):
        raise ConfigError(f"relays: {twice[0]!r} stands there twice; each listener has its own")
    for address in addresses:
        if not _is_relay_address(address):
            raise ConfigError(f"relays: {address!r} must be written as wss://host:port")


def _check_providers(config: GatewayConfig) -> None:
    openrouter = config.openrouter
    if not (openrouter.title.isprintable() and (openrouter.referer or "").isprintable()):
        raise ConfigError(
            "openrouter.title and openrouter.referer stand in headers; write each as one line"
        )
    addresses = {
        "default_provider.base_url": config.default_provider.base_url,
        "openrouter.base_url": openrouter.base_url,
    }
    for setting, url in addresses.items():
        try:
            _ = None if url is None else operators_address(url)
        except ConfigError as error:
            raise ConfigError(f"{setting}: {error}") from error
    try:
        AddressGuard(config.self_hosted.url_networks)
    except ConfigError as error:
        raise ConfigError(f"self_hosted.url_networks: {error}") from error


def is_safe_url(url: str) -> bool:
    """Whether an address is https, or http to this very host (for development)."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return bool(parts.hostname)
    try:
        is_loopback = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        is_loopback = parts.hostname == "localhost"
    return parts.scheme == "http" and is_loopback


def _is_relay_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme == "wss" and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _check_public_url(url: str) -> None:
    if not is_safe_url(url):
        raise ConfigError(
            f"public.url: {url!r} must begin with https:// (http only to a loopback address)"
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
        raise ConfigError("users.jwks_url must begin with https://")
