"""Turns what a call gives, or why it was refused, into an HTTP answer.

Errors always have OpenAI's shape. What nobody expected becomes a 500 that tells the client an
id and the log everything else.
"""

import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from byoai_gateway.api.bodies import too_large
from byoai_gateway.refusals import Refusal
from byoai_gateway.users import UserRefused
from byoai_shared.enrolment import error_body
from byoai_shared.logs import get_logger

REQUEST_ID: Final = "x-request-id"
_MAX_REQUEST_ID: Final = 128
_TYPES: Final = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = get_logger("gateway")


def answered(answer: msgspec.Struct, status: HTTPStatus) -> web.Response:
    """Make the answer of a call that succeeded."""
    body = msgspec.json.encode(answer)
    return web.Response(status=status, body=body, content_type="application/json")


def refused(refusal: Refusal) -> web.Response:
    """Make the answer of a call that was refused."""
    kind = _TYPES.get(refusal.status, "invalid_request_error")
    if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = "server_error"
    response = web.Response(
        status=refusal.status,
        body=error_body(str(refusal), type=kind, code=refusal.code, param=refusal.param),
        content_type="application/json",
    )
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


@web.middleware
async def in_our_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error in one shape, and give every answer the request's id."""
    request_id = _request_id(request)
    try:
        response = await handler(request)
    except Refusal as refusal:
        response = refused(refusal)
    except UserRefused as error:
        response = refused(Refusal(HTTPStatus.UNAUTHORIZED, "invalid_api_key", str(error)))
    except web.HTTPException as error:
        response = refused(_translated(error))
    except Exception:
        # The last resort before a connection: nothing may pass it but cancellation.
        log.exception("call.failed", method=request.method, request_id=request_id)
        response = refused(_unexpected(request_id))
    response.headers[REQUEST_ID] = request_id
    response.headers["Cache-Control"] = "no-store"
    response.headers["Server"] = "byoai"  # nobody needs our versions
    return response


def _translated(error: web.HTTPException) -> Refusal:
    """Say in our words what aiohttp refuses by itself."""
    match error.status:
        case HTTPStatus.NOT_FOUND:
            return Refusal(HTTPStatus.NOT_FOUND, "not_found", "there is nothing at this path")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            message = "this path does not take this method"
            return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", message)
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return too_large()
        case status:
            return Refusal(HTTPStatus(status), "invalid_request", HTTPStatus(status).phrase)


def _unexpected(request_id: str) -> Refusal:
    return Refusal(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal_error",
        f"something went wrong at the gateway; tell its operator this id: {request_id}",
    )


def _request_id(request: web.Request) -> str:
    """Take the caller's own id if it is fit to be passed on and logged."""
    given = request.headers.get(REQUEST_ID, "")
    is_fit = 0 < len(given) <= _MAX_REQUEST_ID and given.isascii() and given.isprintable()
    return given if is_fit else f"req_{secrets.token_hex(12)}"
