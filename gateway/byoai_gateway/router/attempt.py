"""One attempt at one provider: from a connection to the end of its answer.

Until the answer has begun a failure is raised and nothing has been answered, so that somebody
else may still be asked. From then on the answer is this provider's, whatever becomes of it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from byoai_gateway.router.answering import Answering
from byoai_gateway.router.classify import (
    connection_lost,
    malformed,
    timed_out,
    truncated,
    unreachable,
)
from byoai_gateway.router.dialects import MalformedEvent, Usage
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.failures import AttemptFailed, Failure
from byoai_gateway.router.streaming import StreamedAnswer
from byoai_gateway.router.ticker import Ticker
from byoai_gateway.router.upstream import Prepared, Upstream
from byoai_gateway.router.whole import check
from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.errors import BodyTooLarge, ConnectionClosed, HttpError, LocalProtocolError
from byoai_shared.http1.head import ResponseHead
from byoai_shared.link.errors import StreamReset
from byoai_shared.protocol.errors import ResetCode

WHOLE_BYTES: Final = 8 * 1024 * 1024
"""An answer in one piece that declares more than this is passed on without a look."""
MOST_BYTES: Final = 64 * 1024 * 1024
"""The largest answer in one piece that does not declare its length."""
ERROR_BYTES: Final = 256 * 1024
ERROR_S: Final = 5.0


@dataclass(slots=True)
class Attempt:
    """What one attempt came to."""

    upstream: Upstream
    answering: Answering
    deadline: float
    """Of the whole request, by the clock."""
    clock: Callable[[], float]
    model: str | None = None
    usage: Usage | None = None
    began_at: float | None = None
    """When the answer had begun, by the clock."""

    async def run(self) -> Failure | None:
        """Ask and answer; a failure that is returned was told to the client already.

        Raises:
            AttemptFailed: nothing was answered.
            HttpError: the answer broke in the middle and cannot say so; cut the client off.
        """
        prepared = self.upstream.prepare(self.answering.call)
        self.model = prepared.model
        connection = await self._connect()
        try:
            return await self._exchange(connection, prepared)
        finally:
            self.upstream.release(connection)

    async def _connect(self) -> ClientConnection:
        began_at = self.clock()
        try:
            async with asyncio.timeout(self.deadline - began_at):
                return await self.upstream.acquire()
        except TimeoutError:
            waited_s = self.clock() - began_at
            raise AttemptFailed(timed_out(self.upstream.provider, waited_s)) from None

    async def _exchange(self, connection: ClientConnection, prepared: Prepared) -> Failure | None:
        call = self.answering.call
        timers = self.upstream.timers
        wanted_s = timers.first_token_s if call.is_stream else timers.whole_answer_s
        limit_s = min(wanted_s, self.deadline - self.clock())
        stream: StreamedAnswer | None = None
        body: bytes | None = None
        try:
            async with asyncio.timeout(limit_s):
                with Ticker(self._keep_alive_s(), self.answering.comment):
                    response = await self._ask(connection, prepared)
                    if _is_stream(response.head, call.endpoint.dialect):
                        stream = await self._opened(response)
                    elif _is_whole(response):
                        body = await self._whole(response)
        except TimeoutError:
            raise AttemptFailed(timed_out(self.upstream.provider, limit_s)) from None
        self.began_at = self.clock()
        if stream is not None:
            return await self._pass_on(response, stream)
        if body is not None:
            self.answering.whole(response.head, body)
            return None
        await response.pipe(self.answering.stream(response.head))
        return None

    def _keep_alive_s(self) -> float | None:
        call = self.answering.call
        is_told = call.is_stream and call.endpoint.dialect is not Dialect.PLAIN
        return self.upstream.keep_alive_s if is_told else None

    async def _ask(self, connection: ClientConnection, prepared: Prepared) -> Response:
        """Send the request; return a response that says that it worked."""
        provider = self.upstream.provider
        try:
            response = await connection.request(prepared.head, prepared.body)
        except LocalProtocolError:
            raise
        except ConnectionClosed as error:
            failure = unreachable(provider) if _is_untouched(error) else connection_lost(provider)
            raise AttemptFailed(failure) from error
        except HttpError as error:
            raise AttemptFailed(connection_lost(provider)) from error
        if HTTPStatus.OK <= response.head.status < HTTPStatus.MULTIPLE_CHOICES:
            return response
        body = await _error_body(response)
        raise AttemptFailed(
            self.upstream.explain(response.head.status, response.head.headers, body)
        )

    async def _opened(self, response: Response) -> StreamedAnswer:
        call = self.answering.call
        stream = StreamedAnswer(
            call.endpoint.dialect,
            provider=self.upstream.provider,
            explain_error=self.upstream.explain_error,
            silence_s=self.upstream.timers.silence_s,
            hide_usage=not call.wants_usage,
        )
        response.body.attach(stream)
        try:
            await stream.opened()
        except BaseException:
            response.abort()
            raise
        return stream

    async def _pass_on(self, response: Response, stream: StreamedAnswer) -> Failure | None:
        try:
            stream.pour_into(self.answering.stream(response.head))
            failure = await stream.ended()
        finally:
            response.abort()
        self.usage = stream.usage
        return failure

    async def _whole(self, response: Response) -> bytes:
        """Take an answer in one piece and look whether it is an error after all."""
        try:
            body = await response.read(MOST_BYTES)
        except HttpError as error:
            raise AttemptFailed(truncated(self.upstream.provider)) from error
        dialect = self.answering.call.endpoint.dialect
        try:
            self.usage, said = check(dialect, body)
        except MalformedEvent as error:
            raise AttemptFailed(malformed(self.upstream.provider, str(error))) from error
        if said is not None:
            raise AttemptFailed(self.upstream.explain_error(said))
        return body


def _is_stream(head: ResponseHead, dialect: Dialect) -> bool:
    kind = head.header(b"content-type") or b""
    return dialect is not Dialect.PLAIN and kind.lower().startswith(b"text/event-stream")


def _is_whole(response: Response) -> bool:
    """Whether an answer is JSON of a size that may be kept."""
    head, framing = response.head, response.body.framing
    kind = head.header(b"content-type") or b""
    is_plain = (head.header(b"content-encoding") or b"identity") == b"identity"
    is_small = not isinstance(framing, int) or framing <= WHOLE_BYTES
    return is_plain and is_small and kind.lower().startswith(b"application/json")


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


def _is_untouched(error: ConnectionClosed) -> bool:
    """Whether not a byte of the request was acted upon."""
    reset = error.__cause__
    return not error.request_sent or (
        isinstance(reset, StreamReset) and reset.code is ResetCode.NOT_PROCESSED
    )
