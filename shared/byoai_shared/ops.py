"""What operators look at beside the work: health, readiness, metrics; over plain HTTP.

A listener of its own, on loopback unless the operator says otherwise: it asks nobody who they
are, so what users reach must never lead here. Only GET and HEAD of exact paths; a page is made
when it is asked for, and nothing is kept.

A browser on the operator's machine can be led here by a page on the internet whose name suddenly
means a loopback address (DNS rebinding). It then names that page's host, so only IP addresses,
localhost, and the names of the settings are answered.
"""

import ipaddress
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

import msgspec

from byoai_shared.connection_room import ConnectionRoom, RoomLimits
from byoai_shared.http1.connections import Connections
from byoai_shared.http1.head import HttpLimits
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.link.accept import ConnectionRate
from byoai_shared.listener import ConnectionGuard, GuardedServer

_TEXT: Final = "text/plain; charset=utf-8"
_LIMITS: Final = HttpLimits(
    max_head_bytes=16 * 1024, max_body_bytes=0, head_timeout_s=5.0, stall_timeout_s=10.0
)
_HEADERS: Final = (
    (b"content-type", _TEXT.encode("ascii")),
    (b"cache-control", b"no-store"),
)
_WRONG_HOST: Final = b"this host name is not known here; add it to ops.names, or use the address\n"
_DRAIN_S: Final = 1.0
_ROOM: Final = RoomLimits(in_all=64, waiting_per_address=16, waiting_per_proxy=16)


class Page(msgspec.Struct, frozen=True):
    """What is shown."""

    body: bytes
    content_type: str = _TEXT
    status: int = 200


MakePage = Callable[[], Awaitable[Page]]
WhyNotReady = Callable[[], Awaitable[str]]
"""Says in words why the program cannot serve now; empty when it can."""


def ops_pages(
    why_not_ready: WhyNotReady,
    metrics: Callable[[], Page],
    *,
    warnings: Callable[[], Sequence[str]] = tuple,
    degraded: WhyNotReady | None = None,
) -> dict[str, MakePage]:
    """Return the pages that every program has: `/healthz`, `/readyz`, `/metrics`.

    The first line of `/readyz` says whether the program can serve. What it does without, if
    anything, is on a line that begins with `degraded:`, and each of `warnings` on a line of its
    own, whatever the first line says.
    """

    async def healthz() -> Page:
        return Page(b"ok\n")

    async def readyz() -> Page:
        reason = await why_not_ready()
        first = f"not ready: {reason}" if reason else "ready"
        missing = await degraded() if degraded is not None else ""
        second = (f"degraded: {missing}",) if missing else ()
        lines = (first, *second, *(f"warning: {it}" for it in warnings()))
        return Page("".join(f"{line}\n" for line in lines).encode(), status=503 if reason else 200)

    async def metrics_now() -> Page:
        return metrics()

    return {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics_now}


@asynccontextmanager
async def serve_pages(
    host: str, port: int, pages: Mapping[str, MakePage], names: Sequence[str] = ()
) -> AsyncGenerator[str]:
    """Serve pages by their paths while entered; gives the bound address, `host:port`.

    `names` are host names by which it is asked, besides localhost, `host` and IP addresses.
    """
    connections = Connections()
    known = frozenset(it.lower() for it in ("localhost", host, *names) if it)

    async def answer(request: ServerRequest) -> None:
        if _is_known(request.head.header(b"host"), known):
            await _answer(request, pages)
        else:
            request.respond(HTTPStatus.MISDIRECTED_REQUEST, _HEADERS, _WRONG_HOST)

    guard = _guard()

    def connect() -> ServerConnection:
        return connections.add(
            ServerConnection(answer, _LIMITS, on_lost=connections.lost, busy_of=guard.busy_of)
        )

    server = GuardedServer.listen(host, port, guard, connect)
    try:
        yield server.address
    finally:
        server.close()
        await connections.drain(_DRAIN_S)


def _is_known(host: bytes | None, names: frozenset[str]) -> bool:
    """Say whether a Host field names this listener; without one no browser is asking."""
    if host is None:
        return True
    text = host.decode("latin-1").lower()
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.removesuffix(".") in names
    return True


def _guard() -> ConnectionGuard:
    """Few ask here, but they ask when others are flooding."""
    rate = ConnectionRate(
        per_s=500.0, burst=1000.0, per_address_per_s=200.0, per_address_burst=500.0
    )
    return ConnectionGuard(rate, ConnectionRoom(_ROOM))


async def _answer(request: ServerRequest, pages: Mapping[str, MakePage]) -> None:
    make = pages.get(request.head.target.partition("?")[0])
    if make is None:
        known = " ".join(pages)
        page = Page(f"there is nothing here but {known}\n".encode(), status=404)
    elif request.head.method not in {"GET", "HEAD"}:
        page = Page(b"look, do not touch: GET only\n", status=405)
    else:
        page = await make()
    content_type = (b"content-type", page.content_type.encode("ascii"))
    request.respond(page.status, (content_type, (b"cache-control", b"no-store")), page.body)
