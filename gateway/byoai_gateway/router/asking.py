"""Asks a provider: from a prepared request to the beginning of its answer.

For whoever wants the answer, a client or a test of a connection. What fails here fails before
anything was passed on, and is raised as the `AttemptFailed` that the rules decide by.
"""

import asyncio
from http import HTTPStatus
from typing import Final, NamedTuple

from byoai_gateway.refusals import Refusal
from byoai_gateway.router.classify import (
    connection_lost,
    malformed,
    malformed_http,
    truncated,
    unreachable,
)
from byoai_gateway.router.dialects import MalformedEvent, Usage
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.failures import AttemptFailed, Failure
from byoai_gateway.router.keeping import no_room
from byoai_gateway.router.payload import choices_asked
from byoai_gateway.router.streaming import StreamedAnswer, Watcher
from byoai_gateway.router.upstream import Call, Prepared, Upstream
from byoai_gateway.router.whole import check
from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.errors import (
    BodyTooLarge,
    ConnectionClosed,
    HttpError,
    LocalProtocolError,
    RemoteProtocolError,
    TruncatedMessage,
)
from byoai_shared.http1.head import ResponseHead
from byoai_shared.link.errors import StreamReset
from byoai_shared.protocol.errors import ResetCode

WHOLE_BYTES: Final = 8 * 1024 * 1024
"""An answer in one piece that declares more than this is passed on without a look."""
MOST_BYTES: Final = 64 * 1024 * 1024
"""The largest answer in one piece that does not declare its length."""
ERROR_BYTES: Final = 256 * 1024
ERROR_S: Final = 5.0


class Whole(NamedTuple):
    """An answer in one piece; one that failed may have cost something all the same."""

    body: bytes
    usage: Usage | None
    failure: Failure | None


async def ask(upstream: Upstream, connection: ClientConnection, prepared: Prepared) -> Response:
    """Send the request; return a response that says that it worked.

    Raises:
        AttemptFailed: it says that it did not, or there is none.
    """
    try:
        response = await connection.request(prepared.head, prepared.body)
    except LocalProtocolError:
        raise
    except ConnectionClosed as error:
        explain = unreachable if _is_untouched(error) else connection_lost
        raise AttemptFailed(explain(upstream.provider)) from error
    except HttpError as error:
        explain = malformed_http if _breaks_rules(error) else connection_lost
        raise AttemptFailed(explain(upstream.provider)) from error
    if HTTPStatus.OK <= response.head.status < HTTPStatus.MULTIPLE_CHOICES:
        return response
    body = await _error_body(response)
    if not _is_readable(response.head):
        body = b""  # not a word of it could be shown to anybody
    raise AttemptFailed(upstream.explain(response.head.status, response.head.headers, body))


async def opened(
    upstream: Upstream,
    call: Call,
    response: Response,
    dialect: Dialect,
    watcher: Watcher | None = None,
) -> StreamedAnswer:
    """Return an answer that has begun; failed or cancelled, the response is aborted.

    `dialect` is how it comes: PLAIN for bytes without a grammar of ours, whatever was asked.

    Raises:
        AttemptFailed: it ended, or said that it failed, before it began.
    """
    stream = StreamedAnswer(
        dialect,
        provider=upstream.provider,
        explain_error=upstream.explain_error,
        silence_s=upstream.timers.silence_s,
        hide_usage=not call.wants_usage,
        choices=choices_asked(call),
        held=call.held,
        watcher=watcher,
    )
    if dialect is not Dialect.PLAIN and not _is_readable(response.head):
        response.abort()
        raise AttemptFailed(malformed(upstream.provider, "its events are compressed"))
    response.body.attach(stream)
    try:
        await stream.opened()
    except BaseException:
        response.abort()
        stream.forget()
        raise
    return stream


async def read_whole(upstream: Upstream, call: Call, response: Response) -> Whole:
    """Take an answer in one piece, and look whether it is an error after all.

    Raises:
        AttemptFailed: not all of it came, it cannot be read, or there is no room for it.
    """
    held_before = call.held.size
    whole: Whole | None = None
    try:
        whole = await _whole(upstream, call, response)
        return whole
    finally:
        if whole is None or whole.failure is not None:
            response.abort()
            call.held.shrink(call.held.size - held_before)


async def _whole(upstream: Upstream, call: Call, response: Response) -> Whole:
    try:
        body = await call.held.keep_answer(response.body, MOST_BYTES)
    except Refusal as refusal:
        raise AttemptFailed(no_room(refusal)) from refusal
    except BodyTooLarge as error:
        raise AttemptFailed(malformed(upstream.provider, str(error))) from error
    except HttpError as error:
        explain = malformed_http if _breaks_rules(error) else truncated
        raise AttemptFailed(explain(upstream.provider)) from error
    try:
        usage, said = check(call.endpoint.dialect, body)
    except MalformedEvent as error:
        raise AttemptFailed(malformed(upstream.provider, str(error))) from error
    return Whole(body, usage, None if said is None else upstream.explain_error(said))


def is_stream(head: ResponseHead, dialect: Dialect) -> bool:
    """Whether an answer comes as events of a dialect that we read."""
    kind = head.header(b"content-type") or b""
    return dialect is not Dialect.PLAIN and kind.lower().startswith(b"text/event-stream")


def is_whole(response: Response, dialect: Dialect) -> bool:
    """Whether an answer is to be JSON, and of a size that may be kept.

    Where a dialect knows nothing else, a web page must not pass for an answer.
    """
    head, framing = response.head, response.body.framing
    kind = head.header(b"content-type") or b""
    is_small = not isinstance(framing, int) or framing <= WHOLE_BYTES
    is_json = dialect is not Dialect.PLAIN or kind.lower().startswith(b"application/json")
    return _is_readable(head) and is_small and is_json


async def _error_body(response: Response) -> bytes:
    try:
        async with asyncio.timeout(ERROR_S):
            return await response.read(ERROR_BYTES)
    except (TimeoutError, BodyTooLarge):
        return b""
    except HttpError:
        return b""
    finally:
        response.abort()


def _breaks_rules(error: HttpError) -> bool:
    return isinstance(error, RemoteProtocolError) and not isinstance(error, TruncatedMessage)


def _is_readable(head: ResponseHead) -> bool:
    """Whether it is not compressed; nobody was asked to, some do so all the same."""
    return (head.header(b"content-encoding") or b"identity").lower() == b"identity"


def _is_untouched(error: ConnectionClosed) -> bool:
    """Whether not a byte of the request was acted upon."""
    reset = error.__cause__
    return not error.request_sent or (
        isinstance(reset, StreamReset) and reset.code is ResetCode.NOT_PROCESSED
    )
