"""Asks a provider for the beginning of an answer, by the very way that requests go.

The rest of the answer is not waited for: the connection is cut as soon as it has begun, so that
nobody pays for more.
"""

from typing import Final, assert_never

import msgspec

from byoai_gateway.request_ids import current_request_id, request_id
from byoai_gateway.router.asking import Form, ask, opened, read_whole, recognize
from byoai_gateway.router.classify import malformed
from byoai_gateway.router.endpoints import CHAT, PREFIX
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.upstream import Call, Fields, Upstream
from byoai_shared.http1.client import Response
from byoai_shared.http1.head import RequestHead

_MAX_TOKENS: Final = 16
"""Some providers refuse fewer."""
_LOST: Final = frozenset({FailureKind.UNREACHABLE, FailureKind.CONNECTION_LOST})
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def first_token(upstream: Upstream, model: str | None) -> None:
    """Return when an answer has begun.

    Raises:
        AttemptFailed: there is none.
    """
    try:
        await _begin(upstream, _call(model, max_tokens=_MAX_TOKENS))
    except AttemptFailed as error:
        if not _is_about_the_limit(error.failure):
            raise
        # Newer models want another name for it, older servers do not know that one.
        await _begin(upstream, _call(model, max_tokens=None))


async def _begin(upstream: Upstream, call: Call) -> None:
    prepared = upstream.prepare(call)
    while True:
        connection = await upstream.acquire()
        is_used = connection.exchanges > 0
        try:
            await _begun(upstream, call, await ask(upstream, connection, prepared))
        except AttemptFailed as error:
            # The server may have let go of an idle connection just now.
            if not is_used or error.failure.kind not in _LOST:
                raise
        else:
            return
        finally:
            upstream.release(connection)


async def _begun(upstream: Upstream, call: Call, response: Response) -> None:
    try:
        form, _ = await recognize(upstream, call, response)
        match form:
            case Form.EVENTS:
                await opened(upstream, call, response, call.endpoint.dialect)
            case Form.WHOLE:
                failure = (await read_whole(upstream, call, response)).failure
                if failure is not None:
                    raise AttemptFailed(failure)
            case Form.OPAQUE:
                what = "it is neither a stream nor JSON that can be read"
                raise AttemptFailed(malformed(upstream.provider, what))
            case _:
                assert_never(form)
    finally:
        response.abort()


def _call(model: str | None, *, max_tokens: int | None) -> Call:
    asked: dict[str, object] = {
        "messages": [{"role": "user", "content": "Say OK."}],
        "stream": True,
    }
    if model is not None:
        asked["model"] = model
    if max_tokens is not None:
        asked["max_tokens"] = max_tokens
    body = msgspec.json.encode(asked)
    fields: Fields = _fields.decode(body)
    headers = ((b"content-type", b"application/json"), (b"accept", b"text/event-stream"))
    head = RequestHead(CHAT.method, PREFIX + CHAT.path, headers)
    own_id = request_id(current_request_id() or "")
    return Call(
        CHAT, head, body, fields, model, is_stream=True, wants_usage=False, request_id=own_id
    )


def _is_about_the_limit(failure: Failure) -> bool:
    if failure.kind is not FailureKind.REJECTED:
        return False
    return failure.error.param == "max_tokens" or "max_tokens" in failure.error.message
