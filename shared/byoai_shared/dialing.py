"""Connects to a server: every address of its name, then TLS where it is wanted.

Addresses of both families are tried with a short head start between them (RFC 8305), so that a
family that leads nowhere costs a fraction of a second. `localhost` always means this host, on
both families, and is never looked up (RFC 6761 section 6.3).

TLS runs over our own transport: it delivers an answer that precedes a reset, see `unread`.

It sets no time limit except that of the TLS handshake: callers limit the whole.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from aiohappyeyeballs import (
    start_connection,  # pyright: ignore[reportUnknownVariableType] -- its tuples have no types
)

from byoai_shared.tls_transport import TlsError, TlsTransport

ATTEMPT_DELAY_S: Final = 0.25
"""RFC 8305 section 5."""
_LOOPBACK: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))

AddressInfo = tuple[int, int, int, str, tuple[str | bytes | int, ...]]
"""Family, type, protocol, canonical name and socket address."""
_Protocol = TypeVar("_Protocol", bound=asyncio.Protocol)


def is_localhost(host: str) -> bool:
    """Whether a host name is one that always means this host."""
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


async def addresses_of(host: str, port: int) -> Sequence[AddressInfo]:
    """Return the addresses of a host.

    Raises:
        socket.gaierror: the name has none.
        UnicodeError: it cannot be a name.
    """
    if is_localhost(host):
        kind, protocol = socket.SOCK_STREAM, socket.IPPROTO_TCP
        return [(family, kind, protocol, "", (text, port)) for family, text in _LOOPBACK]
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def connected_socket(addresses: Sequence[AddressInfo]) -> socket.socket:
    """Return a socket that is connected to one of the addresses.

    Raises:
        OSError: none of them accepts the connection.
    """
    try:
        return await start_connection(addresses, happy_eyeballs_delay=ATTEMPT_DELAY_S)
    except RuntimeError as error:  # uvloop's, in place of an OSError
        raise OSError(str(error)) from error


async def open_connection(
    make: Callable[[], _Protocol],
    connected: socket.socket,
    *,
    context: ssl.SSLContext | None,
    server_hostname: str,
    handshake_timeout_s: float,
) -> _Protocol:
    """Run a protocol over a connected socket, in TLS if there is a `context`.

    Raises:
        ssl.SSLError: the TLS handshake failed.
        OSError: the connection was lost meanwhile.
    """
    loop = asyncio.get_running_loop()
    if context is None:
        return (await loop.create_connection(make, sock=connected))[1]
    protocol = make()
    session = TlsTransport(
        protocol,
        context,
        server_side=False,
        server_hostname=server_hostname,
        handshake_timeout_s=handshake_timeout_s,
    )
    await loop.create_connection(lambda: session, sock=connected)
    try:
        await session.established()
    except TlsError as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise error.__cause__ from None
        reset = errno.ECONNRESET
        raise ConnectionResetError(reset, os.strerror(reset)) from error
    return protocol
