"""The web application's end of a connection that the public door hands over.

aiohttp answers by itself what it cannot read: as text, with its version, and with a piece of what
it was sent, which may be a token. Here such an answer has the shape of every other error, and
nothing of the request is said or logged. The door has looked at the head before; what is left to
refuse is rare.
"""

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final, TypeVar

from aiohttp import web

from byoai_gateway.api.answers import refused
from byoai_gateway.refusals import Refusal
from byoai_shared.http1.head import DEFAULT_LIMITS
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

    __slots__ = ("client_left",)

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(manager, loop=loop, **_SETTINGS)
        self.client_left = asyncio.Event()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell who waits for it, besides what aiohttp does: it lets handlers run on."""
        super().connection_lost(exc)
        self.client_left.set()

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
        response = refused(refusal)
        response.headers["Server"] = "byoai"
        response.force_close()
        return response


def web_protocols(server: web.Server) -> Callable[[], WebProtocol]:
    """What makes the protocol of each connection; `server` answers what is read there.

    Heads may be as large as the public door takes them. Bodies are taken as they are: a small
    one that is compressed could become a very large one.
    """
    loop = asyncio.get_running_loop()

    def protocol() -> WebProtocol:
        return WebProtocol(server, loop=loop)

    return protocol


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
