"""Answers one request: asks the user's provider, once more if that may help, then the fallback.

One deadline, one retry and one fallback for the whole request. The rules are in `decision`, the
asking in `attempt`; here they meet the breaker, the user's settings and the record of it all.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final, Protocol

from byoai_gateway.provider_config import RouterSection
from byoai_gateway.router.answering import Answering, Tale
from byoai_gateway.router.attempt import Attempt
from byoai_gateway.router.breaker import Breakers, Key
from byoai_gateway.router.classify import breaker_open
from byoai_gateway.router.decision import (
    FallBack,
    GiveUp,
    Next,
    Progress,
    Retry,
    attention_for,
    counts_for_breaker,
    decide,
)
from byoai_gateway.router.dialects import Usage
from byoai_gateway.router.failures import AttemptFailed, Failure
from byoai_gateway.router.payload import is_bound_to_state
from byoai_gateway.router.upstream import Call, ProviderName, Upstream
from byoai_gateway.tally import ANSWERED, CLIENT_LEFT, AttemptTally
from byoai_gateway.users import User
from byoai_shared.http1.head import ResponseHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.logs import get_logger

RETRIES = 1
_JSON: Final = ResponseHead(HTTPStatus.OK, ((b"content-type", b"application/json"),))

log = get_logger("gateway")


class Flags(Protocol):
    """Where it is noted that a setting of a request's user stopped working, or works again.

    Neither raises: an answer must not fail for it.
    """

    def noticed(self, setting: str, code: str) -> Coroutine[Any, Any, None]:
        """A provider refused because of this setting, as it was when the request began."""
        ...

    def worked(self, provider: ProviderName) -> Coroutine[Any, Any, None]:
        """A provider answered with the settings as they were when the request began."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is to answer a user, and who may be asked instead."""

    upstream: Upstream
    fallback: Callable[[], Awaitable[Upstream | None]] | None
    """Checks access again; None if the user did not turn it on."""
    flags: Flags


@dataclass(slots=True)
class Result:
    """What became of a request, for its record."""

    tale: Tale = field(default_factory=Tale)
    failure: Failure | None = None
    usage: Usage | None = None
    model: str | None = None
    began_at: float | None = None
    """By the monotonic clock."""
    note: asyncio.Task[None] | None = None
    """What the answer said of a setting, on its way into the database."""


class Router:
    """Asks providers on behalf of users."""

    def __init__(
        self,
        settings: RouterSection,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.attempts = AttemptTally()
        self._settings = settings
        self._clock = clock
        self._breakers = Breakers(settings.breaker_failures, settings.breaker_open_s, clock)
        self._notes: set[asyncio.Task[None]] = set()

    async def answer(
        self, request: ServerRequest, call: Call, user: User, choice: Choice, result: Result
    ) -> None:
        """Answer a request, with an error if need be; `result` is written meanwhile.

        Raises:
            HttpError: the answer broke in the middle; the client's connection must be cut.
        """
        answering = Answering(request, call, result.tale)
        upstream, fallback = choice.upstream, choice.fallback
        if fallback is not None and is_bound_to_state(call):
            fallback = None
        retries = RETRIES
        deadline = self._clock() + self._settings.deadline_s
        while True:
            answering.tale.provider = upstream.provider
            asked = _Asked(upstream, answering, user.user_id, choice.flags)
            failure = await self._ask(asked, deadline, result)
            if failure is None:
                return
            can_repeat = isinstance(call.body, bytes)
            progress = Progress(
                retries_left=retries if can_repeat else 0,
                may_fall_back=fallback is not None and can_repeat,
                committed=False,
            )
            match self._next(failure, progress, deadline):
                case Retry(after_s):
                    retries -= 1
                    await asyncio.sleep(after_s)
                    continue
                case FallBack() if fallback is not None:
                    substitute = await self._substitute(fallback, deadline)
                    fallback = None
                    if substitute is not None:
                        answering.tale.fallback_reason = failure.kind.value
                        self.attempts.fallbacks[failure.kind.value] += 1
                        # The one retry is the request's, not each provider's.
                        upstream = substitute
                        continue
                case _:
                    pass
            result.failure = failure
            answering.fail(failure)
            return

    async def settle(self) -> None:
        """Wait for the notes whose clients have left; for when no more requests come."""
        if self._notes:
            await asyncio.wait(self._notes)

    def _noting(self, note: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a note, which is written though its client leaves, as most do once answered."""
        task = asyncio.create_task(note)
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)
        return task

    def _next(self, failure: Failure, progress: Progress, deadline: float) -> Next:
        if self._clock() >= deadline:
            return GiveUp()
        step = decide(failure, progress)
        if isinstance(step, Retry) and self._clock() + step.after_s >= deadline:
            # There is no time to wait for this provider, but there is for another.
            return decide(failure, replace(progress, retries_left=0))
        return step

    async def _substitute(
        self, fallback: Callable[[], Awaitable[Upstream | None]], deadline: float
    ) -> Upstream | None:
        try:
            async with asyncio.timeout(deadline - self._clock()):
                return await fallback()
        except TimeoutError:
            return None

    async def _ask(self, asked: "_Asked", deadline: float, result: Result) -> Failure | None:
        """Make one attempt; return why nothing was answered, None when something was."""
        try:
            if self._is_answered(asked, result):
                return None
        except AttemptFailed as error:
            return error.failure
        key, provider = asked.key, asked.upstream.provider
        wait_s = self._breakers.admit(key)
        if wait_s is not None:
            # Nobody was asked, so this is no attempt.
            return breaker_open(provider, wait_s)
        asked.answering.tale.attempts += 1
        attempt = Attempt(asked.upstream, asked.answering, deadline, self._clock)
        asked_at = self._clock()
        try:
            result.failure = await attempt.run()
        except AttemptFailed as error:
            note = self._failed(asked, error.failure)
            if note is not None:
                await asyncio.shield(note)
            return error.failure
        except BaseException:
            # The client has gone, or so have we: nothing that the provider did.
            self._breakers.released(key)
            self.attempts.ended(provider, CLIENT_LEFT)
            raise
        finally:
            result.model, result.usage = attempt.model, attempt.usage
            result.began_at = attempt.began_at
            if attempt.began_at is not None:
                self.attempts.began(provider, attempt.began_at - asked_at)
        if result.failure is None:
            self._breakers.succeeded(key)
            self.attempts.ended(provider, ANSWERED)
            result.note = self._noting(asked.flags.worked(provider))
        else:
            result.note = self._failed(asked, result.failure, attempt.began_at)
        return None

    def _is_answered(self, asked: "_Asked", result: Result) -> bool:
        """Answer what can be answered without asking: this is no attempt."""
        body = asked.upstream.own_answer(asked.answering.call)
        if body is None:
            return False
        result.began_at = self._clock()
        asked.answering.whole(_JSON, body)
        return True

    def _failed(
        self, asked: "_Asked", failure: Failure, answered_at: float | None = None
    ) -> asyncio.Task[None] | None:
        key, provider = asked.key, asked.upstream.provider
        self.attempts.ended(provider, failure.kind)
        if counts_for_breaker(failure):
            self._breakers.failed(key, answered_at)
        else:
            # Somebody answered, even if it was with a no.
            self._breakers.released(key)
        log.info(
            "attempt.failed",
            provider=provider.value,
            reason=failure.kind.value,
            status=failure.status,
            user_id=asked.user_id,
        )
        attention = attention_for(provider, failure)
        if attention is None:
            return None
        return self._noting(asked.flags.noticed(*attention))


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who is asked now, and for whom."""

    upstream: Upstream
    answering: Answering
    user_id: str
    flags: Flags

    @property
    def key(self) -> Key:
        """Of its breaker."""
        return (self.user_id, self.upstream.provider)
