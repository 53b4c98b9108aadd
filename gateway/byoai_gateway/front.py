"""The gateway's public door: one port for the OpenAI-compatible API and everything else.

`/v1/*` is the hot path and is served here, on our own strict HTTP/1.1. Any other request hands
its connection over to the web application, which answers and closes it.
"""

import asyncio
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Protocol

from byoai_gateway.refusals import Refusal
from byoai_gateway.self_hosted import SelfHosted, respond_refusal
from byoai_gateway.users import User, UserRefused
from byoai_shared.http1.head import HttpLimits, RequestHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection

V1_PREFIX: Final = "/v1/"
MAX_REQUEST_ID_BYTES: Final = 128


class Authenticator(Protocol):
    """Who asks."""

    async def authenticate(self, authorization: str | None) -> User:
        """Check the main application's token of a request.

        Raises:
            UserRefused: there is none, or it does not hold.
        """
        ...


class Front:
    """Makes the protocol of each connection to the public port, and owns them all."""

    def __init__(
        self,
        users: Authenticator,
        self_hosted: SelfHosted,
        web: Callable[[], asyncio.Protocol],
        limits: HttpLimits,
    ) -> None:
        self._users = users
        self._self_hosted = self_hosted
        self._web = web
        self._limits = limits
        self._connections: set[ServerConnection] = set()

    def connection(self) -> ServerConnection:
        """Make the protocol of one more connection."""
        connection = ServerConnection(
            self._answer, self._limits, divert=self._divert, on_lost=self._connections.discard
        )
        self._connections.add(connection)
        return connection

    async def drain(self, timeout_s: float) -> None:
        """Take no further request, wait for the answers under way, then cut what is left."""
        for connection in tuple(self._connections):
            connection.drain()
        tasks = [connection.task for connection in self._connections if connection.task]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        for connection in tuple(self._connections):
            connection.abort()

    def _divert(self, head: RequestHead) -> asyncio.Protocol | None:
        return None if head.target.startswith(V1_PREFIX) else self._web()

    async def _answer(self, request: ServerRequest) -> None:
        request_id = _request_id(request.head)
        try:
            user = await self._authenticate(request.head)
            await self._self_hosted.serve(request, user, request_id)
        except Refusal as refusal:
            respond_refusal(request, refusal, request_id)

    async def _authenticate(self, head: RequestHead) -> User:
        authorization = head.header(b"authorization")
        try:
            return await self._users.authenticate(
                authorization.decode("latin-1") if authorization is not None else None
            )
        except UserRefused as error:
            raise Refusal(HTTPStatus.UNAUTHORIZED, "invalid_api_key", str(error)) from error


def _request_id(head: RequestHead) -> str:
    """Take the caller's own id if it is fit to be passed on and logged."""
    given = (head.header(b"x-request-id") or b"").decode("latin-1")
    is_fit = 0 < len(given) <= MAX_REQUEST_ID_BYTES and given.isascii() and given.isprintable()
    return given if is_fit else f"req_{secrets.token_hex(12)}"
