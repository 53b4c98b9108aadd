"""The aiohttp application: routes made from calls, and what is served besides them.

It does not listen. Whoever serves it decides on what and in front of what it stands.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from http import HTTPStatus

import msgspec
from aiohttp import web

from byoai_gateway import __version__
from byoai_gateway.addresses import ClientAddresses
from byoai_gateway.api.agents import AgentCalls
from byoai_gateway.api.answers import Handler, answered, in_our_shape
from byoai_gateway.api.bodies import MAX_BODY_BYTES, AskedByUser, read_body, read_query
from byoai_gateway.api.calls import Access, AnyCall, Incoming, NoBody
from byoai_gateway.api.connection_test import ConnectionTestCalls
from byoai_gateway.api.models import ModelCalls
from byoai_gateway.api.openapi import PEM, document
from byoai_gateway.api.preferences import PreferenceCalls
from byoai_gateway.api.tunnels import TunnelCalls
from byoai_gateway.choosing import Choices
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.refusals import Refusal, user_not_found
from byoai_gateway.status import PresenceDirectory
from byoai_gateway.users import User
from byoai_gateway.web_protocol import keeping_connection, while_connected
from byoai_shared.http1.head import DEFAULT_LIMITS
from byoai_shared.ops import WhyNotReady


def create_app(
    control: ControlPlane,
    presence: PresenceDirectory,
    choices: Choices,
    why_not_ready: WhyNotReady,
    *,
    close_connections: bool = False,
) -> web.Application:
    """Make the application.

    With `close_connections` every answer is the last on its connection: for a front that looks
    at the first request only and hands the connection over for good.
    """
    middlewares = [_closing, in_our_shape] if close_connections else [in_our_shape]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
    calls = (
        *PreferenceCalls(control, choices).calls(),
        *ModelCalls(control, choices).calls(),
        *ConnectionTestCalls(control, choices).calls(),
        *TunnelCalls(control, presence).calls(),
        *AgentCalls(control).calls(),
    )
    addresses = ClientAddresses(control.config.limits.trusted_proxies)
    for call in calls:
        app.router.add_route(call.method, call.path, _handler(call, control, addresses))
    _add_health(app, why_not_ready)
    described = document(
        calls,
        __version__,
        max_head_bytes=DEFAULT_LIMITS.max_head_bytes,
        max_body_bytes=control.config.limits.max_body_bytes,
    )
    _add_others(app, control, msgspec.json.encode(described))
    return app


def _handler(call: AnyCall, control: ControlPlane, addresses: ClientAddresses) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        # No id of ours; and NUL is text to SQLite but an error to PostgreSQL.
        if not all(part.isprintable() for part in request.match_info.values()):
            raise web.HTTPNotFound
        caller = None
        if call.access is Access.USER:
            caller = await control.users.authenticate(request.headers.get("Authorization"))
            if call.is_change:
                await control.limits.change(caller.user_id)
            elif call.is_removal:
                await control.limits.removal(caller.user_id)
        forwarded_for = request.headers.getall("X-Forwarded-For", [])
        address = addresses.limit_key(request.remote, forwarded_for)
        incoming = Incoming(request.match_info, address, caller)
        body = await _read(call, request)
        if caller is not None:
            _refuse_other_users(caller, body, request.query.getall("userId", []))
        with keeping_connection(request) if caller is not None else nullcontext():
            running = call.run(incoming, body)
            answer = await (while_connected(request, running) if call.ends_with_client else running)
        return answered(answer, call.status)

    return handle


async def _read(call: AnyCall, request: web.Request) -> msgspec.Struct:
    wanted: type[msgspec.Struct] = call.takes
    if call.takes_query:
        return read_query(request, wanted)
    if call.takes_body:
        return await read_body(request, wanted)
    # Nothing needs to be said, but what is said of the user must be so.
    says_who = call.may_say_who and request.body_exists
    return await read_body(request, AskedByUser) if says_who else NoBody()


def _refuse_other_users(caller: User, body: msgspec.Struct, in_query: Sequence[str]) -> None:
    """A token speaks for its own user only, whoever the request says it is about."""
    in_body = body.user_id if isinstance(body, AskedByUser) else None
    if any(named not in (None, caller.user_id) for named in (in_body, *in_query)):
        raise user_not_found()


def _add_health(app: web.Application, why_not_ready: WhyNotReady) -> None:
    """For load balancers, on the port whose health they ask about."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(_: web.Request) -> web.Response:
        reason = await why_not_ready()
        if reason:
            raise _not_ready(reason)
        return web.json_response({"status": "ready"})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)


def _add_others(app: web.Application, control: ControlPlane, openapi: bytes) -> None:
    async def shown(_: web.Request) -> web.Response:
        return web.Response(body=openapi, content_type="application/json")

    async def ca(_: web.Request) -> web.Response:
        if control.private_ca is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND, "no_private_ca", "this gateway has no CA of its own"
            )
        return web.Response(body=control.private_ca.pem.encode("ascii"), content_type=PEM)

    app.router.add_get("/openapi.json", shown)
    app.router.add_get("/agent/v1/ca", ca)


def _not_ready(reason: str) -> Refusal:
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "not_ready",
        f"the gateway cannot serve: {reason}",
        retry_after_s=1,
    )


@web.middleware
async def _closing(request: web.Request, handler: Handler) -> web.StreamResponse:
    # Not in `on_response_prepare`: that is too late for the Connection field.
    response = await handler(request)
    response.force_close()
    return response
