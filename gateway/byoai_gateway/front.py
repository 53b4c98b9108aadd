"""The gateway's public door: one port for the OpenAI-compatible API and everything else.

`/v1/*` is the hot path and is served here, on our own strict HTTP/1.1. Any other request hands
its connection over to the web application, which answers and closes it.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from byoai_gateway.refusals import Refusal
from byoai_gateway.request_ids import request_id
from byoai_gateway.router.answering import error_body, request_id_headers
from byoai_gateway.serving import Serving, why_ended
from byoai_gateway.tally import BROKEN_OFF, CLIENT_LEFT, RequestTally
from byoai_shared.http1.connections import Connections
from byoai_shared.http1.errors import HttpError, RemoteProtocolError
from byoai_shared.http1.head import HttpLimits, RequestHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.listener import ConnectionGuard

V1_PREFIX: Final = "/v1/"
_CONTINUE: Final = b"100-continue"


class Front:
    """Makes the protocol of each connection to the public port, and owns them all."""

    def __init__(
        self,
        serving: Serving,
        web: Callable[[], asyncio.Protocol],
        limits: HttpLimits,
        tally: RequestTally,
        guard: ConnectionGuard,
    ) -> None:
        self._serving = serving
        self._web = web
        self._limits = limits
        self._tally = tally
        self._guard = guard
        self._connections = Connections()

    def connection(self) -> ServerConnection:
        """Make the protocol of one more connection."""
        return self._connections.add(
            ServerConnection(
                self._answer,
                self._limits,
                divert=self._divert,
                on_lost=self._connections.lost,
                busy_of=self._guard.busy_of,
            )
        )

    async def drain(self, timeout_s: float) -> None:
        """Take no further request, wait for the answers under way, then cut what is left."""
        await self._connections.drain(timeout_s)

    def _divert(self, head: RequestHead) -> asyncio.Protocol | None:
        if head.target.startswith(V1_PREFIX):
            return None
        # The web application would answer it in a shape of its own.
        if (head.header(b"expect") or _CONTINUE).lower() != _CONTINUE:
            raise RemoteProtocolError(
                "expectation other than 100-continue", status=HTTPStatus.EXPECTATION_FAILED
            )
        return self._web()

    async def _answer(self, request: ServerRequest) -> None:
        given_id = request_id((request.head.header(b"x-request-id") or b"").decode("latin-1"))
        with self._tally.request() as outcome:
            try:
                outcome.ended(await self._serving.serve(request, given_id))
            except Refusal as refusal:
                outcome.ended(refusal.code)
                _refuse(request, refusal, given_id)
            except HttpError:
                outcome.ended(why_ended(request, BROKEN_OFF))
                raise
            except asyncio.CancelledError:
                outcome.ended(why_ended(request, CLIENT_LEFT))
                raise


def _refuse(request: ServerRequest, refusal: Refusal, given_id: str) -> None:
    headers = refusal.headers()
    if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR and refusal.retry_after_s is None:
        headers["x-should-retry"] = "false"
    encoded = ((name.lower().encode(), value.encode()) for name, value in headers.items())
    target = request.head.target
    body = error_body(target, refusal.error(), refusal.status)
    request.respond(refusal.status, (*encoded, *request_id_headers(target, given_id)), body)
