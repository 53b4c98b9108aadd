"""Sockets that say nothing, or half of something, on each listener."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from demo.stack import HOST
from hostile.hostile_agent import linked
from hostile.place import ATTACKER, NotRefused, Place, Size, said

CONNECT_S: Final = 10.0
HALF_A_HEAD: Final = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-slow: "
OTHERS: Final = ("relay.agents", "relay.gateways", "relay.ops", "gateway.ops")


async def at_the_public_port(place: Place, size: Size) -> str:
    """Open silent sockets, half heads and half bodies; others are served meanwhile."""
    port = (HOST, place.gateway_port)
    kinds = (b"", HALF_A_HEAD, half_a_body(place))
    closed = 0
    for kind in kinds:
        async with flood(port, size.sockets, kind) as sockets:
            await is_healthy(port)
            await place.bystander.ask()
            closed += count_closed(sockets)
    if not closed:
        raise NotRefused(f"all of {size.sockets * len(kinds):,} sockets were kept open")
    return (
        f"{size.sockets * len(kinds):,} sockets: {closed:,} closed, /healthz and a request answered"
    )


async def at_the_other_listeners(place: Place, size: Size) -> str:
    """Open silent sockets on the relay's listeners and both ops pages."""
    closed: list[str] = []
    for listener in OTHERS:
        async with flood(place.address(listener), size.sockets, b"") as sockets:
            if listener.endswith(".ops"):
                await is_healthy(place.address(listener))
            else:
                async with linked(place, takes_streams=True):
                    await place.bystander.ask()
            closed.append(f"{listener} {count_closed(sockets):,}")
    return f"of {size.sockets:,} each closed: {', '.join(closed)}"


def half_a_body(place: Place) -> bytes:
    """Return a request with a body of which only the beginning comes."""
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"
        f"authorization: Bearer {place.trudy.token}\r\ncontent-type: application/json\r\n"
        'content-length: 1000000\r\n\r\n{"model": "hosti'
    ).encode()


async def is_healthy(address: tuple[str, int]) -> None:
    """Ask for /healthz as a load balancer does."""
    request = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    answer = await said(address, request)
    if not answer.startswith("HTTP/1.1 200 "):
        raise NotRefused(f"/healthz was answered {answer[:40]!r}")


@asynccontextmanager
async def flood(
    address: tuple[str, int], count: int, words: bytes
) -> AsyncGenerator[list[socket.socket]]:
    """Hold sockets of one address that have sent no more than `words`."""
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            it = socket.socket()
            sockets.append(it)
            it.setblocking(False)
            it.bind((ATTACKER, 0))
            try:
                async with asyncio.timeout(CONNECT_S):
                    await loop.sock_connect(it, address)
                    await loop.sock_sendall(it, words)
            except (ConnectionError, TimeoutError):
                continue  # counted as closed below
        yield sockets
    finally:
        for it in sockets:
            it.close()


def count_closed(sockets: list[socket.socket]) -> int:
    """Count those that the other side has closed."""
    closed = 0
    for it in sockets:
        try:
            while it.recv(65536):
                pass
        except BlockingIOError:
            continue
        except OSError:
            pass
        closed += 1
    return closed
