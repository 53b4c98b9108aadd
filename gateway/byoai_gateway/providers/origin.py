"""Where a provider is: the server to connect to, and the path before its calls.

Addresses of the operator's own are read here and trusted; those of users pass `address_guard`.
"""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from byoai_shared.base_urls import corrected, endpoint_at_end, has_blank_or_control
from byoai_shared.errors import ConfigError

Scheme = Literal["http", "https"]
_PORTS: Final[dict[Scheme, int]] = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """A server: what a connection is made to, and may be shared by."""

    scheme: Scheme
    host: str
    """A name in ASCII and lower case, or an address without brackets."""
    port: int

    @property
    def authority(self) -> bytes:
        """What stands in `Host` (RFC 9110 section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}").encode()


@dataclass(frozen=True, slots=True)
class BaseAddress:
    """An origin and the path that all calls begin with, without a slash at its end."""

    origin: Origin
    path: str


def operators_address(url: str) -> BaseAddress:
    """Read an address from the settings.

    Raises:
        ConfigError: it is none of http or https, carries more than host, port and path, or ends
            with the path of an endpoint.
    """
    if has_blank_or_control(url):
        raise ConfigError(
            "a provider's address contains a blank, a line break or a control character; remove it"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError as error:  # UnicodeError is one
        raise ConfigError("a provider's address is not a URL") from error
    match parts.scheme:
        case "http" | "https" as scheme:
            pass
        case _:
            raise ConfigError("a provider's address must begin with https:// or http://")
    if not host or port == 0 or "@" in parts.netloc or "?" in url or "#" in url:
        raise ConfigError("a provider's address is a host, perhaps a port, and a path; no more")
    if not parts.path.isascii():
        raise ConfigError("the path of a provider's address contains characters other than ASCII")
    if endpoint := endpoint_at_end(parts.path):
        raise ConfigError(
            f"a provider's address ends before the endpoint, without {endpoint}: "
            f"write {corrected(parts)}"
        )
    return BaseAddress(Origin(scheme, host, port or _PORTS[scheme]), parts.path.rstrip("/"))
