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
from urllib.parse import urlsplit

from byoai_shared.errors import ConfigError

_HTTP_SCHEME: Final = {"wss": "https", "ws": "http", "https": "https", "http": "http"}
_KNOWN: Final = frozenset({"http", "socks4", "socks5"})
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
        ConfigError: the environment names a kind of proxy that cannot be used.
    """
    target = urlsplit(url)
    host = target.hostname or ""
    settings = urllib.request.getproxies() if proxies is None else proxies
    proxy = settings.get(_HTTP_SCHEME.get(target.scheme, "")) or settings.get("all")
    if not proxy or is_loopback(host):
        return None
    address = f"{host}:{target.port}" if target.port else host
    if (bypass or urllib.request.proxy_bypass)(address):
        return None
    if _in_networks(host, settings.get("no", "")):
        return None
    return _normalised(proxy)


def is_loopback(host: str) -> bool:
    """Whether a host name or address literal means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_networks(host: str, no_proxy: str) -> bool:
    """Whether an address literal lies in a network of NO_PROXY (curl does it, stdlib not)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in no_proxy.split(","):
        try:
            if "/" in entry and address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


def without_credentials(proxy: str) -> str:
    """A proxy's address as it may be shown."""
    parts = urlsplit(proxy)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}:{parts.port}" if parts.port else f"{parts.scheme}://{host}"


def _normalised(proxy: str) -> str:
    scheme, separator, rest = proxy.partition("://")
    if not separator:
        return f"http://{proxy}"
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    if scheme not in _KNOWN:
        raise ConfigError(
            f"the environment asks for a {scheme!r} proxy; "
            "http, socks4 and socks5 can be used: change HTTPS_PROXY or ALL_PROXY"
        )
    return f"{scheme}://{rest}"
