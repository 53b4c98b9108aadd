"""Which proxy stands between this host and an address, by the environment's convention.

`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, upper or lower case, as curl and
every other tool on the host obey them; on Windows and macOS the system's own settings as
well. A WebSocket address counts as the HTTP address it starts from. Addresses of the host
itself are never asked of a proxy.
"""

import ipaddress
import urllib.request
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import SplitResult, urlsplit

from byoai_shared.dialing import is_localhost
from byoai_shared.errors import ConfigError
from byoai_shared.proxy import read_proxy
from byoai_shared.server_urls import UrlFault

_HTTP_SCHEME: Final = {"wss": "https", "ws": "http", "https": "https", "http": "http"}
_KNOWN: Final = frozenset({"http", "socks4", "socks5"})
_EXAMPLE: Final = "http://proxy.example:3128"
# curl's spellings: with `h` the proxy resolves the name, which ours always let it do.
_ALIASES: Final = {"socks5h": "socks5", "socks4a": "socks4", "socks": "socks5"}


def proxy_for(
    url: str,
    *,
    proxies: Mapping[str, str] | None = None,
    bypass: Callable[[str], object] | None = None,
) -> str | None:
    """The proxy URL to reach `url` through, or None for a direct way.

    Raises:
        ConfigError: the environment names a proxy that cannot be used.
    """
    target = urlsplit(url)
    host = target.hostname or ""
    port = _port_of(target)
    settings = urllib.request.getproxies() if proxies is None else proxies
    proxy = settings.get(_HTTP_SCHEME.get(target.scheme, "")) or settings.get("all")
    if not proxy or is_loopback(host):
        return None
    address = f"{host}:{port}" if port else host
    if (bypass or urllib.request.proxy_bypass)(address):
        return None
    if _in_networks(host, settings.get("no", "")):
        return None
    return _normalised(proxy)


def is_loopback(host: str) -> bool:
    """Whether a host name or address literal means this machine."""
    if is_localhost(host):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _port_of(target: SplitResult) -> int | None:
    try:
        return target.port
    except ValueError:  # who connects says so
        return None


def _in_networks(host: str, no_proxy: str) -> bool:
    """Whether NO_PROXY has an address literal or its network (curl does it, stdlib not)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in no_proxy.split(","):
        try:
            if address in ipaddress.ip_network(entry.strip(" []"), strict=False):
                return True
        except ValueError:
            continue
    return False


def _normalised(proxy: str) -> str:
    proxy = proxy.strip()
    scheme, separator, rest = proxy.partition("://")
    if not separator:
        scheme, rest = "http", proxy
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    if scheme not in _KNOWN:
        shown = scheme if scheme.isalnum() else "unknown"
        raise ConfigError(
            f"the environment asks for a {shown!r} proxy; "
            "http, socks4 and socks5 can be used: change HTTPS_PROXY or ALL_PROXY"
        )
    address = f"{scheme}://{rest}"
    try:
        read_proxy(address)
    except UrlFault as fault:
        raise ConfigError(
            f"the proxy's address in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY {fault}; "
            f"write it like {_EXAMPLE}"
        ) from None
    return address
