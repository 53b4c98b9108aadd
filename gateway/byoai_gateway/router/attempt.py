"""One attempt at one provider: from a connection to the end of its answer.

Until the answer has begun a failure is raised and nothing has been answered, so that somebody
else may still be asked. From then on the answer is this provider's, whatever becomes of it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from byoai_gateway.router.answering import Answering
from byoai_gateway.router.asking import ask, is_stream, is_whole, opened, read_whole
from byoai_gateway.router.classify import malformed, timed_out
from byoai_gateway.router.dialects import Usage
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.failures import AttemptFailed, Failure
from byoai_gateway.router.streaming import StreamedAnswer
from byoai_gateway.router.ticker import Ticker
from byoai_gateway.router.upstream import Prepared, Upstream
from byoai_shared.http1.client import ClientConnection, Response


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
            ConnectionClosed: the client is gone.
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
        dialect = call.endpoint.dialect
        timers = self.upstream.timers
        wanted_s = timers.first_token_s if call.is_stream else timers.whole_answer_s
        limit_s = min(wanted_s, self.deadline - self.clock())
        stream: StreamedAnswer | None = None
        body = b""
        try:
            async with asyncio.timeout(limit_s):
                with Ticker(self._keep_alive_s(), self.answering.comment):
                    response = await ask(self.upstream, connection, prepared)
                    if is_stream(response.head, dialect):
                        stream = await opened(self.upstream, call, response, dialect)
                    elif is_whole(response, dialect):
                        body, self.usage, failure = await read_whole(
                            self.upstream, dialect, response
                        )
                        if failure is not None:
                            raise AttemptFailed(failure)
                    else:
                        stream = await opened(self.upstream, call, response, Dialect.PLAIN)
                        self._refuse_bytes_among_events(response)
        except TimeoutError:
            raise AttemptFailed(timed_out(self.upstream.provider, limit_s)) from None
        self.began_at = self.clock()
        if stream is not None:
            return await self._pass_on(response, stream)
        self.answering.whole(response.head, body)
        return None

    def _refuse_bytes_among_events(self, response: Response) -> None:
        if self.answering.is_begun:
            response.abort()
            what = "it is no stream, and too large or compressed"
            raise AttemptFailed(malformed(self.upstream.provider, what))

    def _keep_alive_s(self) -> float | None:
        call = self.answering.call
        is_told = call.is_stream and call.endpoint.dialect is not Dialect.PLAIN
        return self.upstream.keep_alive_s if is_told else None

    async def _pass_on(self, response: Response, stream: StreamedAnswer) -> Failure | None:
        try:
            stream.pour_into(self.answering.stream(response.head))
            return await stream.ended()
        finally:
            # Whoever leaves early has had what was said so far.
            self.usage = stream.usage
            response.abort()
