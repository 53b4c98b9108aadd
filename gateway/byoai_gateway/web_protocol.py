"""The web application's end of a connection that the public door hands over.

aiohttp answers by itself what it cannot read: as text, with its version, and with a piece of what
it was sent, which may be a token. Here such an answer has the shape of every other error, and
nothing of the request is said or logged. The door has looked at the head before; what is left to
refuse is rare.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final, TypeVar

from aiohttp import web

from byoai_gateway.api.answers import refused
from byoai_gateway.refusals import Refusal
from byoai_shared.http1.head import DEFAULT_LIMITS, HttpLimits
from byoai_shared.http1.stall import StallWatch
from byoai_shared.listener import ConnectionGuard
from byoai_shared.logs import get_logger

log = get_logger("gateway")

_Result = TypeVar("_Result")

_SETTINGS: Final[dict[str, Any]] = {
    "access_log": None,
    "auto_decompress": False,
    "max_line_size": DEFAULT_LIMITS.max_head_bytes,
    "max_field_size": DEFAULT_LIMITS.max_head_bytes,
}


class WebProtocol(web.RequestHandler):
    """aiohttp's, but for how it says that it cannot read a request, and that its client left."""

    __slots__ = ("_guard", "_stall", "client_left")

    def __init__(
        self,
        manager: web.Server,
        limits: HttpLimits,
        guard: ConnectionGuard,
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(manager, loop=loop, **_SETTINGS)
        self.client_left = asyncio.Event()
        self._guard = guard
        stall_s = limits.stall_timeout_s
        self._stall = None if stall_s is None else StallWatch(loop, stall_s, self._cut)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell who waits for it, besides what aiohttp does: it lets handlers run on."""
        super().connection_lost(exc)
        self.client_left.set()
        if self._stall is not None:
            self._stall.stop()

    def pause_writing(self) -> None:
        """See that a client that takes nothing of its answer does not keep it here for ever."""
        super().pause_writing()
        if self._stall is not None and self.transport is not None:
            self._stall.paused(self.transport)

    def resume_writing(self) -> None:
        """The client takes it again."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.resumed()

    def _cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def set_busy(self, is_busy: bool) -> None:  # noqa: FBT001 -- as `Place.set_busy` has it
        """Say whether a known user is being answered: then the connection is not closed."""
        if self.transport is not None:
            self._guard.busy_of(self.transport)(is_busy)

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002 -- aiohttp's signature
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """Answer what no handler was reached for, and close."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("call.failed", exc_info=exc)
            refusal = Refusal(HTTPStatus(status), "internal_error", "internal error")
        else:
            refusal = Refusal(HTTPStatus(status), "bad_request", "this is not HTTP/1.1")
        if exc is not None:
            exc.__traceback__ = None  # its frames hold this connection, which holds the error
        response = refused(refusal)
        response.headers["Server"] = "byoai"
        response.force_close()
        return response


def web_protocols(
    server: web.Server, limits: HttpLimits, guard: ConnectionGuard
) -> Callable[[], WebProtocol]:
    """What makes the protocol of each connection; `server` answers what is read there.

    Heads may be as large as the public door takes them. Bodies are taken as they are: a small
    one that is compressed could become a very large one.
    """
    loop = asyncio.get_running_loop()

    def protocol() -> WebProtocol:
        return WebProtocol(server, limits, guard, loop=loop)

    return protocol


@contextmanager
def keeping_connection(request: web.BaseRequest) -> Generator[None]:
    """Keep a connection from being closed for a new one while its user is being answered."""
    protocol: asyncio.BaseProtocol = request.protocol
    if not isinstance(protocol, WebProtocol):
        yield
        return
    protocol.set_busy(True)
    try:
        yield
    finally:
        protocol.set_busy(False)


async def while_connected(request: web.BaseRequest, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Do something for a client, for as long as it is there.

    Raises:
        Refusal: it has left, so nobody will read this; what was done is cancelled and has ended.
    """
    protocol: asyncio.BaseProtocol = request.protocol
    if not isinstance(protocol, WebProtocol):
        return await work
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(protocol.client_left.wait())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "client_left", "the client hung up")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
