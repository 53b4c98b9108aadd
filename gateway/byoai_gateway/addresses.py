"""From which address a request comes, behind proxies that are trusted to say so."""

import ipaddress
from collections.abc import Sequence

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_IPV6_HOME_BITS = 64


class ClientAddresses:
    """Reads X-Forwarded-For, but only as far as trusted proxies wrote it."""

    def __init__(self, trusted_proxies: Sequence[str]) -> None:
        self._trusted = [ipaddress.ip_network(network) for network in trusted_proxies]

    def limit_key(self, peer: str | None, forwarded_for: Sequence[str]) -> str:
        """What to count a client by: its IPv4 address, or its IPv6 network of 64 bits.

        The hops are read from the nearest on; the first that is no trusted proxy is the
        client. Whatever stands beyond it the client may have made up.
        """
        hops = [hop.strip() for field in forwarded_for for hop in field.split(",")]
        address = _parse(peer or "")
        while address is not None and hops and self._is_trusted(address):
            address = _parse(hops.pop())
        if address is None:
            return "unknown"
        if isinstance(address, ipaddress.IPv6Address):
            network = ipaddress.ip_network((address, _IPV6_HOME_BITS), strict=False)
            return str(network.network_address)
        return str(address)

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def _parse(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.split("%", 1)[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
