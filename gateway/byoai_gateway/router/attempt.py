"""One attempt at one provider: from a connection to the end of its answer.

Until the answer has begun a failure is raised and nothing has been answered, so that somebody
else may still be asked. From then on the answer is this provider's, whatever becomes of it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from byoai_gateway.router.answering import Answering
from byoai_gateway.router.asking import Form, ask, opened, read_whole, recognize, recognized_at_once
from byoai_gateway.router.classify import malformed, out_of_time, timed_out
from byoai_gateway.router.decision import counts_as_attempt
from byoai_gateway.router.dialects import Usage
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.failures import AttemptFailed, Failure
from byoai_gateway.router.streaming import StreamedAnswer
from byoai_gateway.router.ticker import Ticker
from byoai_gateway.router.upstream import Prepared, Upstream
from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.head import ResponseHead


@dataclass(slots=True)
class Attempt:
    """What one attempt came to."""

    upstream: Upstream
    answering: Answering
    prepared: Prepared
    deadline: float
    """Of the whole request, by the clock."""
    clock: Callable[[], float]
    ticker: Ticker
    """Of the comments; stopped when the answer has begun."""
    on_asked: Callable[[], None]
    """Called once there is a connection to ask on, or an attempt to make one has failed."""
    timeout_s: float | None = None
    """What the client allows for an answer in one piece, if it says so."""
    usage: Usage | None = None
    began_at: float | None = None
    """When the answer had begun, by the clock."""
    _limit: asyncio.Timeout | None = None
    _latest: float = 0.0
    """When the whole request's time is over, by the loop's clock."""

    async def run(self) -> Failure | None:
        """Ask and answer; a failure that is returned was told to the client already.

        Raises:
            AttemptFailed: nothing was answered.
            ConnectionClosed: the client is gone.
        """
        connection = self.upstream.take_fresh()
        if connection is None:
            connection = await self._connect()
        self.on_asked()
        try:
            return await self._exchange(connection)
        finally:
            self.upstream.release(connection)

    async def _connect(self) -> ClientConnection:
        try:
            async with asyncio.timeout(self.deadline - self.clock()):
                connection = await self.upstream.acquire()
        except TimeoutError:
            self.on_asked()
            raise AttemptFailed(out_of_time(self.upstream.provider)) from None
        except AttemptFailed as error:
            if counts_as_attempt(error.failure):
                self.on_asked()
            raise
        return connection

    async def _exchange(self, connection: ClientConnection) -> Failure | None:
        call = self.answering.call
        dialect = call.endpoint.dialect
        wanted_s = self._silence_s()
        now = asyncio.get_running_loop().time()
        self._latest = now + self.deadline - self.clock()
        stream: StreamedAnswer | None = None
        body = b""
        try:
            async with asyncio.timeout_at(min(now + wanted_s, self._latest)) as self._limit:
                response = await ask(self.upstream, connection, self.prepared)
                if not response.body.complete:
                    self.alive()
                    response.body.watch(self.alive)
                found = recognized_at_once(call, response)
                form, head = found or await recognize(self.upstream, call, response)
                if form is Form.EVENTS:
                    self._refuse_events_for_one_piece(response)
                    stream = await opened(self.upstream, call, response, dialect, self)
                elif form is Form.WHOLE:
                    body, self.usage, failure = await read_whole(self.upstream, call, response)
                    if failure is not None:
                        raise AttemptFailed(failure)
                else:
                    stream = await opened(self.upstream, call, response, Dialect.PLAIN)
                    self._refuse_bytes_among_events(response, stream)
        except TimeoutError:
            provider = self.upstream.provider
            # What others have left of the request's time is no measure of this provider.
            is_late = self._limit is not None and self._limit.when() != self._latest
            late = timed_out(provider, wanted_s) if is_late else out_of_time(provider)
            raise AttemptFailed(late) from None
        finally:
            self._limit = None
        response.body.watch(None)
        self.ticker.stop()
        self.began_at = self.clock()
        if stream is not None:
            return await self._pass_on(response, head, stream)
        self.answering.whole(head, body)
        return None

    def alive(self) -> None:
        """Note a sign of life: only silence is timed."""
        limit = self._limit
        if limit is not None and not limit.expired():
            now = asyncio.get_running_loop().time()
            limit.reschedule(min(now + self._silence_s(), self._latest))

    def show(self, comment: bytes) -> bool:
        """See `Watcher`."""
        if not self.answering.show_comment(comment):
            return False
        self.ticker.postpone()
        return True

    def _silence_s(self) -> float:
        """How long the provider may be silent before its answer begins."""
        timers = self.upstream.timers
        if self.answering.call.is_stream:
            return timers.first_token_s
        return max(timers.whole_answer_s, self.timeout_s or 0.0)

    def _refuse_events_for_one_piece(self, response: Response) -> None:
        """Client libraries that asked for one piece would return the events as a text."""
        if not self.answering.call.is_stream:
            self._refuse(response, "it is a stream, and an answer in one piece was asked for")

    def _refuse_bytes_among_events(self, response: Response, stream: StreamedAnswer) -> None:
        if self.answering.is_begun:
            stream.forget()
            self._refuse(response, "it is no stream, and too large or compressed")

    def _refuse(self, response: Response, what: str) -> NoReturn:
        response.abort()
        raise AttemptFailed(malformed(self.upstream.provider, what))

    async def _pass_on(
        self, response: Response, head: ResponseHead, stream: StreamedAnswer
    ) -> Failure | None:
        try:
            stream.pour_into(self.answering.stream(head))
            return await stream.ended()
        finally:
            # Whoever leaves early has had what was said so far.
            self.usage = stream.usage
            response.abort()
