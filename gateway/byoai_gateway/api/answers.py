"""Turns what a call gives, or why it was refused, into an HTTP answer.

Errors always have OpenAI's shape. What nobody expected becomes a 500 that tells the client an
id and the log everything else.
"""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec
from aiohttp import web

from byoai_gateway.api.bodies import too_large
from byoai_gateway.refusals import Refusal, method_not_allowed
from byoai_gateway.request_ids import HEADER, request_id, work_for
from byoai_gateway.users import UserRefused
from byoai_shared.logs import get_logger

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = get_logger("gateway")


def answered(answer: msgspec.Struct, status: HTTPStatus) -> web.Response:
    """Make the answer of a call that succeeded."""
    body = msgspec.json.encode(answer)
    return web.Response(status=status, body=body, content_type="application/json")


def refused(refusal: Refusal) -> web.Response:
    """Make the answer of a call that was refused."""
    return web.Response(status=refusal.status, headers=refusal.headers(), body=refusal.body())


@web.middleware
async def in_our_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error in one shape, and give every answer the request's id."""
    given_id = request_id(request.headers.get(HEADER, ""))
    work_for(given_id)
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
        log.exception("call.failed", method=request.method, request_id=given_id)
        response = refused(_unexpected(given_id))
    response.headers[HEADER] = given_id
    response.headers["Cache-Control"] = "no-store"
    response.headers["Server"] = "byoai"  # nobody needs our versions
    return response


def _translated(error: web.HTTPException) -> Refusal:
    """Say in our words what aiohttp refuses by itself."""
    match error.status:
        case HTTPStatus.NOT_FOUND:
            return Refusal(HTTPStatus.NOT_FOUND, "not_found", "there is nothing at this path")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return method_not_allowed(error.headers["Allow"].split(","))
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return too_large()
        case status:
            return Refusal(HTTPStatus(status), "invalid_request", HTTPStatus(status).phrase)


def _unexpected(given_id: str) -> Refusal:
    return Refusal(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal_error",
        f"something went wrong at the gateway; tell its operator this id: {given_id}",
    )
