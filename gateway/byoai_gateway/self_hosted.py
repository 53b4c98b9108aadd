"""The `self-hosted` provider: a user's request goes to the model server behind their tunnel.

The bytes of request and answer pass through unread. The request's head is made anew: who asks
is proven by the tunnel's authentication key, not by the user's token, which stays here.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

from byoai_gateway.refusals import Refusal, plan_required, tunnel_not_found
from byoai_gateway.tunnel_client import (
    TunnelBusy,
    TunnelClient,
    TunnelError,
    TunnelOffline,
    TunnelUntrusted,
)
from byoai_gateway.users import User
from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.errors import ConnectionClosed, HttpError
from byoai_shared.http1.forward import answer, send, without_hop_by_hop
from byoai_shared.http1.framing import end_to_end
from byoai_shared.http1.head import Headers, RequestHead, ResponseHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.identity import tunnel_hostname
from byoai_shared.link.errors import StreamReset
from byoai_shared.logs import get_logger
from byoai_shared.protocol.errors import ResetCode
from byoai_shared.secret import Secret

TUNNEL_HEADER: Final = b"x-byoai-tunnel"
_OURS: Final = frozenset(
    {
        b"host",
        b"authorization",
        b"cookie",
        b"x-request-id",
        b"forwarded",
        b"x-real-ip",
        TUNNEL_HEADER,
    }
)
"""Request headers that mean something between client and gateway only."""
_OURS_PREFIX: Final = b"x-forwarded-"

log = get_logger("gateway")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a user's requests go."""

    tunnel_id: str
    authentication_key: Secret


class Routes(Protocol):
    """What the registry says of users' tunnels."""

    async def route(self, user_id: str, tunnel_id: str | None) -> Route | None:
        """The user's tunnel of that id, or the one to use when none is named."""
        ...


class SelfHosted:
    """Serves requests of users who answer their AI calls themselves."""

    def __init__(self, routes: Routes, tunnels: TunnelClient) -> None:
        self._routes = routes
        self._tunnels = tunnels

    async def serve(self, request: ServerRequest, user: User, request_id: str) -> int:
        """Forward one request and its answer; return the answer's status.

        Raises:
            Refusal: nothing was answered yet; say this to the client.
            HttpError: the answer broke in the middle; the client's connection must be cut.
        """
        if not user.may_self_host:
            raise plan_required()
        named = request.head.header(TUNNEL_HEADER)
        route = await self._routes.route(user.user_id, named.decode("latin-1") if named else None)
        if route is None:
            raise _no_tunnel() if named is None else tunnel_not_found()
        head = tunnel_request(request.head, route, request_id)
        connection, response = await self._ask(request, head, route.tunnel_id)
        try:
            await answer(request, response, rewrite=lambda it: _with_request_id(it, request_id))
        finally:
            self._tunnels.release(route.tunnel_id, connection)
        return response.head.status

    async def _ask(
        self, request: ServerRequest, head: RequestHead, tunnel_id: str
    ) -> tuple[ClientConnection, Response]:
        """Send the request; once more on a new stream if not a byte of it was acted upon."""
        for is_last in (False, True):
            connection = await self._acquire(tunnel_id)
            is_new = connection.exchanges == 0
            try:
                return connection, await send(request, head, connection)
            except ConnectionClosed as error:
                self._tunnels.release(tunnel_id, connection)
                if is_last or is_new or not _is_retry_safe(error) or not request.body.complete:
                    raise _agent_lost() from error
            except HttpError as error:
                self._tunnels.release(tunnel_id, connection)
                raise _agent_lost() from error
            except BaseException:
                self._tunnels.release(tunnel_id, connection)
                raise
        raise AssertionError("the second turn returns or raises")

    async def _acquire(self, tunnel_id: str) -> ClientConnection:
        try:
            return await self._tunnels.acquire(tunnel_id)
        except TunnelOffline as error:
            message = "your agent is not connected; start it with `byoai-agent run` on its host"
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, "agent_offline", message, retry_after_s=5
            ) from error
        except TunnelBusy as error:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS, "tunnel_busy", str(error), retry_after_s=1
            ) from error
        except TunnelUntrusted as error:
            log.warning("tunnel.untrusted", tunnel_id=tunnel_id, reason=str(error), next="refused")
            raise Refusal(HTTPStatus.BAD_GATEWAY, "tunnel_untrusted", str(error)) from error
        except TunnelError as error:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, "tunnel_lost", str(error), retry_after_s=1
            ) from error


def tunnel_request(head: RequestHead, route: Route, request_id: str) -> RequestHead:
    """Make the head that travels through the tunnel."""
    kept = tuple(
        (name, value)
        for name, value in end_to_end(head.headers)
        if name not in _OURS and not name.startswith(_OURS_PREFIX)
    )
    own: Headers = (
        (b"host", tunnel_hostname(route.tunnel_id).encode()),
        (b"authorization", b"Bearer " + route.authentication_key.reveal().encode()),
        (b"x-request-id", request_id.encode()),
    )
    return RequestHead(head.method, head.target, own + kept)


def _with_request_id(head: ResponseHead, request_id: str) -> ResponseHead:
    plain = without_hop_by_hop(head)
    headers = tuple(pair for pair in plain.headers if pair[0] != b"x-request-id")
    own = (b"x-request-id", request_id.encode())
    return ResponseHead(plain.status, (*headers, own), plain.reason)


def _is_retry_safe(error: ConnectionClosed) -> bool:
    reset = error.__cause__
    return not error.request_sent or (
        isinstance(reset, StreamReset) and reset.code is ResetCode.NOT_PROCESSED
    )


def _agent_lost() -> Refusal:
    message = (
        "your agent, or the model server behind it, went away before it answered; it may have "
        "begun the work"
    )
    return Refusal(HTTPStatus.BAD_GATEWAY, "agent_lost", message)


def _no_tunnel() -> Refusal:
    message = "you have no tunnel yet; register one with POST /api/tunnel/register"
    return Refusal(HTTPStatus.NOT_FOUND, "tunnel_not_found", message)
