"""Connects through a forward proxy: HTTP CONNECT, SOCKS4 or SOCKS5.

User name and password are the bytes that the address has percent-encoded (RFC 3986 section 2.1);
characters that it has as they are count as UTF-8. The name of the destination is resolved by the
proxy. No error shows the user name or the password.
"""

import socket
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_.asyncio import Proxy

from byoai_shared.errors import ByoaiError
from byoai_shared.server_urls import ServerUrl, UrlFault, read_server_url

_PORTS: Final = {"http": 80, "socks4": 1080, "socks5": 1080}
_TYPES: Final = {"http": ProxyType.HTTP, "socks4": ProxyType.SOCKS4, "socks5": ProxyType.SOCKS5}
_AUTHENTICATION_REQUIRED: Final = 407
_SHOWN: Final = 100


class ProxyFailed(ByoaiError):
    """No connection came about by way of a proxy."""


@dataclass(frozen=True, slots=True)
class ProxyServer:
    """A proxy."""

    server: ServerUrl
    username: bytes | None = field(default=None, repr=False)
    password: bytes = field(default=b"", repr=False)

    @property
    def shown(self) -> str:
        """Its address without user name and password."""
        return self.server.origin


def read_proxy(url: str) -> ProxyServer:
    """Read the address of a proxy.

    Raises:
        UrlFault: it is none.
    """
    server = read_server_url(url, _PORTS)
    parts = server.parts
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise UrlFault(
            "has something behind its port; in a user name or password, write # as %23, "
            "/ as %2F and ? as %3F"
        )
    if parts.username is None:
        return ProxyServer(server)
    username = unquote_to_bytes(parts.username)
    password = unquote_to_bytes(parts.password or "")
    if server.scheme == "http" and b":" in username:
        raise UrlFault("has a colon in its user name, which HTTP cannot express")
    if server.scheme != "http" and not (username + password).isascii():
        raise UrlFault("has a user name or password with characters that SOCKS cannot express")
    return ProxyServer(server, username, password)


async def connect_through(proxy: ProxyServer, host: str, port: int) -> socket.socket:
    """Return a socket that leads to `host` through the proxy.

    Raises:
        ProxyFailed: it did not come about; the sentence says why and what to do.
    """
    # The library encodes these as Latin-1 for HTTP: what comes out are the bytes that we had.
    username = None if proxy.username is None else proxy.username.decode("latin-1")
    password = proxy.password.decode("latin-1")
    kind = _TYPES[proxy.server.scheme]
    dialing = Proxy(kind, proxy.server.host, proxy.server.port, username, password, rdns=True)
    try:
        return await dialing.connect(host, port)
    except ProxyConnectionError as error:
        sentence = (
            f"the proxy {proxy.shown} cannot be reached; check HTTPS_PROXY and ALL_PROXY, "
            f"or name {host} in NO_PROXY"
        )
        raise ProxyFailed(sentence) from error
    except ProxyTimeoutError as error:
        raise ProxyFailed(f"the proxy {proxy.shown} did not answer in time") from error
    except ProxyError as error:
        raise ProxyFailed(_refusal(proxy, host, error)) from error
    except UnicodeError as error:
        raise ProxyFailed(f"{host} is not a name that a proxy can be asked for") from error


def _refusal(proxy: ProxyServer, host: str, error: ProxyError) -> str:
    if error.error_code == _AUTHENTICATION_REQUIRED:
        return (
            f"the proxy {proxy.shown} did not accept the user name and password (407); "
            "write them into its address, as in http://user:password@proxy:3128"
        )
    said = "".join(character for character in str(error) if character.isprintable())
    return (
        f"the proxy {proxy.shown} did not let us through to {host}: {said[:_SHOWN]}; "
        f"ask its operator to allow {host}, or name it in NO_PROXY"
    )
