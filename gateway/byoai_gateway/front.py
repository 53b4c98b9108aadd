"""The gateway's public door: one port for the OpenAI-compatible API and everything else.

`/v1/*` is the hot path and is served here, on our own strict HTTP/1.1. Any other request hands
its connection over to the web application, which answers and closes it.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Protocol

from byoai_gateway.refusals import Refusal
from byoai_gateway.request_ids import HEADER, request_id
from byoai_gateway.self_hosted import SelfHosted
from byoai_gateway.tally import RequestTally
from byoai_gateway.users import User, UserRefused
from byoai_shared.http1.connections import Connections
from byoai_shared.http1.head import HttpLimits, RequestHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection

V1_PREFIX: Final = "/v1/"


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
        tally: RequestTally,
    ) -> None:
        self._users = users
        self._self_hosted = self_hosted
        self._web = web
        self._limits = limits
        self._tally = tally
        self._connections = Connections()

    def connection(self) -> ServerConnection:
        """Make the protocol of one more connection."""
        return self._connections.add(
            ServerConnection(
                self._answer, self._limits, divert=self._divert, on_lost=self._connections.lost
            )
        )

    async def drain(self, timeout_s: float) -> None:
        """Take no further request, wait for the answers under way, then cut what is left."""
        await self._connections.drain(timeout_s)

    def _divert(self, head: RequestHead) -> asyncio.Protocol | None:
        return None if head.target.startswith(V1_PREFIX) else self._web()

    async def _answer(self, request: ServerRequest) -> None:
        given_id = _request_id(request.head)
        with self._tally.request() as outcome:
            try:
                user = await self._authenticate(request.head)
                outcome.answered(await self._self_hosted.serve(request, user, given_id))
            except Refusal as refusal:
                outcome.refused(refusal.code)
                _refuse(request, refusal, given_id)

    async def _authenticate(self, head: RequestHead) -> User:
        authorization = head.header(b"authorization")
        try:
            return await self._users.authenticate(
                authorization.decode("latin-1") if authorization is not None else None
            )
        except UserRefused as error:
            raise Refusal(HTTPStatus.UNAUTHORIZED, "invalid_api_key", str(error)) from error


def _request_id(head: RequestHead) -> str:
    return request_id((head.header(b"x-request-id") or b"").decode("latin-1"))


def _refuse(request: ServerRequest, refusal: Refusal, given_id: str) -> None:
    headers = {**refusal.headers(), HEADER: given_id}
    encoded = ((name.lower().encode(), value.encode()) for name, value in headers.items())
    request.respond(refusal.status, tuple(encoded), refusal.body())
