"""Where a user's own address may lead: to the public internet, and where the operator says.

Whoever may name an address to a server may make it knock at doors only it can reach: its own
ports, the cloud's metadata service, the database beside it. So addresses are judged twice: the
URL when it is saved, for a sentence that helps, and every address that is really connected to,
at each dial, which is what protects. Names prove nothing: they may mean another address each
time they are asked for.

The table is our own. `ipaddress.is_global` says yes to ways back inside (NAT64, 6to4), to
multicast and, depending on Python's age, to more.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

import idna

from byoai_gateway.providers.origin import BaseAddress, Origin
from byoai_shared.base_urls import corrected, endpoint_at_end, has_blank_or_control
from byoai_shared.errors import ByoaiError, ConfigError

_MAX_URL: Final = 2048
_MAX_NAME: Final = 253
_HTTPS: Final = 443
_FIRST_FREE_PORT: Final = 1024

# IANA's special-purpose registries, and what clouds answer at from inside.
_DENIED_IPV4: Final = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' NAT; Alibaba's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host
        "169.254.0.0/16",  # link-local; metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
# Everything else that is special (loopback, mapped and NAT64 addresses, unique local,
# link-local, site-local, multicast, discard) lies outside the only block in use.
_GLOBAL_IPV6: Final = IPv6Network("2000::/3")
_DENIED_IPV6: Final = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_INNER_NAMES: Final = re.compile(
    r"(?:.*\.)?(?:localhost|localdomain|local|internal|intranet|private|corp|home|lan|arpa|test|"
    r"invalid|example|onion|alt)"
)
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# A last part like these makes a name an IPv4 address to whoever reads liberally (WHATWG URL).
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_DOTS: Final = re.compile(r"/(?:\.|%2[eE]){1,2}(?:/|$)")


class AddressRefused(ByoaiError):
    """An address that a user's requests may not be sent to; the sentence says why."""


class AddressGuard:
    """Judges addresses; `allowed_networks` (CIDR) are the operator's exceptions.

    Raises ConfigError when it is made with what is no network.
    """

    def __init__(self, allowed_networks: Sequence[str] = ()) -> None:
        try:
            self._allowed = tuple(ip_network(network) for network in allowed_networks)
        except ValueError as error:
            raise ConfigError(f"a network that addresses may lead to is none: {error}") from error

    def check(self, address: str) -> None:
        """Judge an address that is about to be connected to, as the resolver wrote it.

        Raises:
            AddressRefused: it is not public, nor allowed; or not an address.
        """
        try:
            found = ip_address(address)
        except ValueError as error:
            raise AddressRefused("the name did not lead to an address") from error
        if isinstance(found, IPv6Address):
            if found.scope_id is not None:
                raise AddressRefused(_NOT_PUBLIC)
            found = found.ipv4_mapped or found
        if not (any(found in network for network in self._allowed) or _is_public(found)):
            raise AddressRefused(_NOT_PUBLIC)

    def check_url(self, url: str) -> BaseAddress:
        """Read the address of a user's model server.

        Raises:
            AddressRefused: it is no https address that may be used; the sentence is for the user.
        """
        if len(url) > _MAX_URL:
            raise AddressRefused(f"the address is longer than {_MAX_URL} characters")
        if has_blank_or_control(url) or "\\" in url:
            raise AddressRefused("the address holds characters that an address may not")
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise AddressRefused("the address is not a URL") from error
        if parts.scheme != "https":
            raise AddressRefused("the address must begin with https://")
        if "?" in url or "#" in url:
            raise AddressRefused("the address must end with its path: no ? and no #")
        host, port = _host_and_port(parts.netloc)
        if endpoint := endpoint_at_end(parts.path):
            raise AddressRefused(
                f"the address must end before the endpoint, without {endpoint}: "
                f"use {corrected(parts)}"
            )
        return BaseAddress(Origin("https", self._host(host), port), _path(parts.path))

    def _host(self, host: str) -> str:
        if host.startswith("["):
            return self._literal(host[1:-1])
        name = _ascii_name(host)
        if _NUMBER.fullmatch(name.rpartition(".")[2]):
            return self._literal(name)
        if len(name) > _MAX_NAME or not all(map(_LABEL.fullmatch, name.split("."))):
            raise AddressRefused("the address has no valid host name")
        # Where an inner network is allowed, its names are; the dial judges what they mean.
        if not self._allowed and ("." not in name or _INNER_NAMES.fullmatch(name)):
            raise AddressRefused(_NOT_PUBLIC)
        return name

    def _literal(self, text: str) -> str:
        """Return an address in its one plain form; octal, hexadecimal and short ones have none."""
        try:
            address = ip_address(text)
        except ValueError as error:
            raise AddressRefused("the address has no valid host name or IP address") from error
        self.check(text)
        return str(address)


_ANYWHERE: Final = AddressGuard(("0.0.0.0/0", "::/0"))


def origin_of(url: str) -> Origin | None:
    """Return the server that a user's address names, wherever it is; None if it names none."""
    try:
        return _ANYWHERE.check_url(url).origin
    except AddressRefused:
        return None


_NOT_PUBLIC: Final = (
    "the address leads into a private or reserved network; use one on the public internet, or a "
    "tunnel"
)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _DENIED_IPV4)
    return address in _GLOBAL_IPV6 and not any(address in network for network in _DENIED_IPV6)


def _host_and_port(netloc: str) -> tuple[str, int]:
    if "@" in netloc:
        raise AddressRefused("the address must not hold a user name or password")
    found = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([0-9]{1,5}))?", netloc, re.ASCII)
    if found is None:
        raise AddressRefused("the address has no valid host name")
    port = int(found[2]) if found[2] else _HTTPS
    if port != _HTTPS and not _FIRST_FREE_PORT <= port <= 0xFFFF:
        raise AddressRefused("the port must be 443, or one from 1024 to 65535")
    return found[1], port


def _ascii_name(host: str) -> str:
    """Return a name as resolvers know it; what only looks like a dot or digit becomes one."""
    name = host.lower()
    if not name.isascii():
        try:
            name = idna.encode(host, uts46=True, std3_rules=True).decode("ascii").lower()
        except UnicodeError as error:  # idna's errors are
            raise AddressRefused("the address has no valid host name") from error
    return name.removesuffix(".")


def _path(path: str) -> str:
    if not _PATH.fullmatch(path) or _DOTS.search(path):
        raise AddressRefused("the path of the address holds what it may not")
    return path.rstrip("/")
