"""The addresses of servers as people give them: what is wrong with one, in words.

Pure. A fault never quotes the address: it may hold a password.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urlsplit

from byoai_shared.base_urls import has_blank_or_control
from byoai_shared.errors import ByoaiError

_NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?", re.IGNORECASE)
_ADDRESS: Final = re.compile(r"[0-9a-f:.]+(%[a-z0-9_.-]+)?", re.IGNORECASE)
"""An IPv6 address, perhaps with a zone (RFC 4007 section 11), without its brackets."""


class UrlFault(ByoaiError):
    """What is wrong with an address: a predicate such as `has no host`."""


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """Where a server is."""

    scheme: str
    host: str
    """A name in ASCII, or an address without brackets."""
    port: int
    path: str
    parts: SplitResult = field(repr=False)
    has_default_port: bool

    @property
    def authority(self) -> str:
        """The value of the Host field (RFC 9110 section 7.2)."""
        host = self.host.partition("%")[0] if ":" in self.host else self.host
        host = f"[{host}]" if ":" in host else host
        return host if self.has_default_port else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port, with the zone of an address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.has_default_port else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


def read_server_url(url: str, ports: Mapping[str, int]) -> ServerUrl:
    """Read the address of a server; `ports` has each scheme that it may have, and its port.

    Raises:
        UrlFault: it is none.
    """
    if has_blank_or_control(url):
        raise UrlFault("contains a blank or a line break; remove it")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise UrlFault("has an unclosed bracket or an invalid IPv6 address") from None
    if parts.scheme not in ports:
        allowed = " or ".join(f"{scheme}://" for scheme in ports)
        raise UrlFault(f"must begin with {allowed}")
    default = ports[parts.scheme]
    port = _port_of(parts, default)
    return ServerUrl(
        parts.scheme, _host_of(host), port, parts.path.rstrip("/"), parts, port == default
    )


def _port_of(parts: SplitResult, default: int) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        hint = ""
        if any(mark in parts.path + parts.query + parts.fragment for mark in "@"):
            hint = "; in a user name or password, write # as %23, / as %2F and ? as %3F"
        raise UrlFault(f"has no valid port: a port is a number from 1 to 65535{hint}")
    return port or default


def _host_of(host: str) -> str:
    if not host:
        raise UrlFault("has no host")
    if ":" in host:
        if not _ADDRESS.fullmatch(host):
            raise UrlFault("has an invalid IPv6 address")
        return host
    try:
        name = host.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not _NAME.fullmatch(name):
        raise UrlFault("has an invalid host name")
    return name
