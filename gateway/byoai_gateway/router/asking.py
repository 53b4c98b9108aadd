"""Asks a provider: from a prepared request to the beginning of its answer.

For whoever wants the answer, a client or a test of a connection. What fails here fails before
anything was passed on, and is raised as the `AttemptFailed` that the rules decide by.
"""

import asyncio
from enum import Enum, auto
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
from byoai_gateway.router.endpoints import Dialect, Endpoint
from byoai_gateway.router.failures import AttemptFailed, Failure
from byoai_gateway.router.keeping import no_room
from byoai_gateway.router.payload import choices_asked
from byoai_gateway.router.sniffing import (
    Bytes,
    is_labelled_events,
    is_labelled_json,
    is_labelled_page,
    is_plain_json,
    is_readable,
    relabelled,
    sniffed,
)
from byoai_gateway.router.streaming import StreamedAnswer, Watcher
from byoai_gateway.router.upstream import Call, Prepared, Upstream
from byoai_gateway.router.whole import NotJson, check
from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.errors import (
    BodyTooLarge,
    ConnectionClosed,
    HttpError,
    LocalProtocolError,
    RemoteProtocolError,
    TruncatedMessage,
)
from byoai_shared.http1.framing import Open
from byoai_shared.http1.head import ResponseHead
from byoai_shared.link.errors import StreamReset
from byoai_shared.protocol.errors import ResetCode

WHOLE_BYTES: Final = 8 * 1024 * 1024
"""An answer in one piece that declares more than this is passed on without a look."""
MOST_BYTES: Final = 64 * 1024 * 1024
"""The largest answer in one piece that does not declare its length."""
ERROR_BYTES: Final = 256 * 1024
ERROR_S: Final = 5.0


class Form(Enum):
    """How an answer is taken."""

    EVENTS = auto()
    """Event by event, as its dialect says."""
    WHOLE = auto()
    """In one piece, which is JSON and is looked at."""
    OPAQUE = auto()
    """As bytes that are not looked at."""


class Recognized(NamedTuple):
    """What an answer is, and its head as the client may have it."""

    form: Form
    head: ResponseHead


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
    if not is_readable(response.head.headers):
        body = b""  # not a word of it could be shown to anybody
    raise AttemptFailed(upstream.explain(response.head.status, response.head.headers, body))


def recognized_at_once(call: Call, response: Response) -> Recognized | None:
    """Say what an answer is that needs no look at its bytes, as nearly all in one piece; or None.

    It is JSON by its label and is decoded in any case.
    """
    if call.is_stream or not call.endpoint.is_json or not is_plain_json(response.head):
        return None
    return Recognized(_form(call.endpoint, response, Bytes.JSON), response.head)


async def recognize(upstream: Upstream, call: Call, response: Response) -> Recognized:
    """Say what an answer is, by its first bytes where its label may be wrong.

    Nothing of the body is taken. Failed or cancelled, the response is aborted.

    Raises:
        AttemptFailed: it is nothing that the endpoint answers with.
    """
    head, endpoint = response.head, call.endpoint
    if not is_readable(head.headers):
        is_stream = is_labelled_events(head) and endpoint.dialect is not Dialect.PLAIN
        return Recognized(Form.EVENTS if is_stream else Form.OPAQUE, head)
    try:
        kind = await _kind(call, response)
    except NotJson as error:
        response.abort()
        raise AttemptFailed(malformed(upstream.provider, str(error))) from error
    except BaseException:
        response.abort()
        raise
    return Recognized(_form(endpoint, response, kind), relabelled(head, kind))


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
    if dialect is not Dialect.PLAIN and not is_readable(response.head.headers):
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
        usage, said = check(call.endpoint, body)
    except MalformedEvent as error:
        raise AttemptFailed(_no_answer(upstream, response, error)) from error
    return Whole(body, usage, None if said is None else upstream.explain_error(said))


def _no_answer(upstream: Upstream, response: Response, error: MalformedEvent) -> Failure:
    is_begun = isinstance(error, NotJson) and error.is_begun
    if is_begun and response.body.framing is Open.UNTIL_CLOSE:
        # Only complete JSON shows that the end of the connection was the end of the answer.
        return truncated(upstream.provider)
    return malformed(upstream.provider, str(error))


async def _kind(call: Call, response: Response) -> Bytes:
    """Say what a readable answer is; a label is believed where bytes do not decide.

    Raises NotJson where JSON is due and it is neither that nor events.
    """
    head, body = response.head, response.body
    is_json = is_labelled_json(head)
    if not call.endpoint.is_json:
        if is_labelled_page(head):
            raise NotJson(b"<")
        return Bytes.JSON if is_json else Bytes.OTHER
    if is_json and not call.is_stream:
        return Bytes.JSON  # it is decoded in any case
    begin = await body.peek(lambda begin: sniffed(begin) is not None)
    found = sniffed(begin)
    if found is Bytes.JSON or found is Bytes.EVENTS:
        return found
    if is_labelled_events(head):
        return Bytes.EVENTS
    if is_json or body.error is not None:
        return Bytes.JSON  # reading the rest of it tells what is wrong with it
    raise NotJson(begin)


def _form(endpoint: Endpoint, response: Response, kind: Bytes) -> Form:
    framing = response.body.framing
    is_small = not isinstance(framing, int) or framing <= WHOLE_BYTES
    if kind is Bytes.JSON and is_small:
        return Form.WHOLE
    is_stream = kind is Bytes.EVENTS and endpoint.dialect is not Dialect.PLAIN
    return Form.EVENTS if is_stream else Form.OPAQUE


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


def _is_untouched(error: ConnectionClosed) -> bool:
    """Whether not a byte of the request was acted upon."""
    reset = error.__cause__
    return not error.request_sent or (
        isinstance(reset, StreamReset) and reset.code is ResetCode.NOT_PROCESSED
    )
