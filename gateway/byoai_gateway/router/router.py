"""Answers one request: asks the user's provider, once more if that may help, then the fallback.

One deadline, one retry and one fallback for the whole request. The rules are in `decision`, the
asking in `attempt`, what is learnt from it in `ledger`; here they meet the user's settings and
the record of it all.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Final, assert_never

import msgspec

from byoai_gateway.provider_config import RouterSection
from byoai_gateway.router.agent_choice import Candidate
from byoai_gateway.router.answering import Answering, Tale
from byoai_gateway.router.attempt import Attempt
from byoai_gateway.router.classify import breaker_open
from byoai_gateway.router.decision import (
    FallBack,
    GiveUp,
    Next,
    Progress,
    Retry,
    decide,
    repeat_is_useless,
)
from byoai_gateway.router.dialects import Usage
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.ledger import Asked, Flags, Ledger, Note
from byoai_gateway.router.payload import is_bound_to_state, keeps_state
from byoai_gateway.router.request_timeout import request_timeout_s
from byoai_gateway.router.ticker import Ticker
from byoai_gateway.router.upstream import Call, Prepared, Upstream
from byoai_gateway.users import User
from byoai_shared.http1.head import ResponseHead
from byoai_shared.http1.request import ServerRequest

RETRIES = 1
_RETRYING_CLIENT: Final = b"x-stainless-retry-count"
"""The official clients count their own retries here; ours would multiply them."""
_MOST_QUIRKS: Final = 10_000
_QUIRK_S: Final = 86_400.0
_JSON: Final = ResponseHead(HTTPStatus.OK, ((b"content-type", b"application/json"),))


class Choice(msgspec.Struct, frozen=True):
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
    """Of the request; of the provider that was asked, where that is another."""
    began_at: float | None = None
    """By the monotonic clock."""
    note: Note | None = None


class Router:
    """Asks providers on behalf of users."""

    def __init__(
        self,
        settings: RouterSection,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.clock = clock
        """Seconds, by the monotonic clock."""
        self.ledger = Ledger(settings, clock)
        self._without_usage: dict[tuple[str, str | None], float] = {}
        self.attempts = self.ledger.attempts

    async def answer(
        self, request: ServerRequest, call: Call, user: User, choice: Choice, result: Result
    ) -> None:
        """Answer a request, with an error if need be; `result` is written meanwhile.

        Raises:
            Refusal: the request names a time that is none; nothing was answered.
            HttpError: the answer broke in the middle; the client's connection must be cut.
        """
        settings = self.settings
        timeout_s = request_timeout_s(request.head, settings.longest_deadline_s)
        answering = Answering(request, call, result.tale)
        errand = _Errand(answering, choice, user.user_id, result, self, timeout_s)
        await errand.run()

    def may_ask_for_usage(self, upstream: Upstream, model: str | None) -> bool:
        """Whether a server is not known to refuse `stream_options` for this model."""
        known = self._without_usage
        noted_at = known.get((upstream.server, model)) if known else None
        return noted_at is None or self.clock() - noted_at > _QUIRK_S

    def note_usage_refused(self, upstream: Upstream, model: str | None) -> None:
        """Remember that it does, for a day."""
        known = self._without_usage
        if len(known) >= _MOST_QUIRKS:
            del known[next(iter(known))]
        known[upstream.server, model] = self.clock()

    async def settle(self) -> None:
        """Wait for the notes whose clients have left; for when no more requests come."""
        await self.ledger.settle()


class _Errand:
    """One request on its way: who is asked now, and what may still be tried."""

    def __init__(  # noqa: PLR0917 -- a request, and the router that all requests share
        self,
        answering: Answering,
        choice: Choice,
        user_id: str,
        result: Result,
        router: Router,
        timeout_s: float | None,
    ) -> None:
        self._answering = answering
        self._flags = choice.flags
        self._user_id = user_id
        self._result = result
        self._router = router
        self._ledger = router.ledger
        self._clock = router.clock
        self._timeout_s = timeout_s
        settings = router.settings
        self._deadline = self._clock() + (timeout_s or settings.deadline_s)
        self._upstream = choice.upstream
        self._fallback = choice.fallback
        self._fallback_reason: str | None = None
        self._retries = RETRIES
        self._was_asked = False  # the present provider, in the present attempt
        self._added_usage = False  # to the present attempt's request
        self._loads_until: float | None = None  # since the present provider was not ready
        self._times_not_ready = 0
        self._leaves_out_usage = False
        self._tried: list[str] = []  # agents of the present provider that failed this request
        self._has_other_agent = False
        self._ticker = Ticker(
            answering.keep_alive, settings.first_keep_alive_s, settings.keep_alive_s
        )
        result.tale.provider = choice.upstream.provider

    async def run(self) -> None:
        """Ask until there is an answer, or nobody left to ask; see `Router.answer`."""
        last_word: Failure | None = None
        with self._ticker:
            if self._is_kept_alive():
                self._ticker.start()
            while True:
                self._was_asked = self._added_usage = self._has_other_agent = False
                failure = await self._ask()
                if failure is None:
                    return
                if last_word is None or self._was_asked:
                    # Why nobody was asked once more is no reason for the failure before it.
                    last_word = failure
                if not await self._goes_on(failure, last_word):
                    break
            self._result.failure = last_word
            self._answering.fail(last_word, may_be_repeated=self._may_be_repeated(last_word))

    def _is_kept_alive(self) -> bool:
        """Whether the client understands comments: it asked for a stream of events."""
        call = self._answering.call
        return call.is_stream and call.endpoint.dialect is not Dialect.PLAIN

    def _may_be_repeated(self, failure: Failure) -> bool:
        """Whether the client's own policy decides if it asks again."""
        was_spent = self._result.tale.fallback_reason is not None
        return not was_spent and not repeat_is_useless(failure)

    # ---- what next

    async def _goes_on(self, failure: Failure, last_word: Failure) -> bool:
        """Prepare to ask again, as the rules say; return False if the failure is to be told."""
        step = self._next(failure)
        match step:
            case Retry(after_s, is_counted):
                self._retries -= is_counted
                # What is not counted and is no loading model is the usage that was refused.
                self._leaves_out_usage |= failure.kind is FailureKind.REJECTED
                self._times_not_ready += failure.kind is FailureKind.NOT_READY
                await asyncio.sleep(after_s)
                return True
            case FallBack():
                return await self._falls_back(last_word)
            case GiveUp():
                return False
            case _:
                assert_never(step)

    def _next(self, failure: Failure) -> Next:
        left_s = self._deadline - self._clock()
        if left_s <= 0:
            return GiveUp()
        progress = self._progress(failure, left_s)
        step = decide(failure, progress)
        if isinstance(step, Retry) and step.after_s >= left_s:
            # There is no time to wait for this provider, but there is for another.
            return decide(failure, replace(progress, retries_left=0))
        return step

    def _progress(self, failure: Failure, left_s: float) -> Progress:
        call = self._answering.call
        if not isinstance(call.body, bytes):
            return Progress(retries_left=0, may_fall_back=False, committed=False)
        # Once a stream was begun to keep it alive, its client can no longer repeat the request.
        client_retries = call.head.header(_RETRYING_CLIENT) is not None
        leaves_retries = client_retries and not self._answering.is_begun
        return Progress(
            retries_left=0 if leaves_retries else self._retries,
            may_fall_back=self._fallback is not None and not is_bound_to_state(call),
            committed=False,
            may_repeat_processed=not keeps_state(call),
            loading_left_s=self._loading_left_s(failure, left_s),
            times_not_ready=self._times_not_ready,
            has_other_agent=self._has_other_agent,
            added_usage=self._added_usage,
        )

    def _loading_left_s(self, failure: Failure, left_s: float) -> float:
        """How much longer the present provider may be waited for while it is not ready.

        One that says when it will be is believed; for one that does not, loading is silence.
        """
        if failure.kind is not FailureKind.NOT_READY or failure.retry_after_s is not None:
            return left_s
        now = self._clock()
        if self._loads_until is None:
            self._loads_until = now + self._upstream.timers.first_token_s
        return min(left_s, self._loads_until - now)

    async def _falls_back(self, failure: Failure) -> bool:
        fallback, self._fallback = self._fallback, None
        if fallback is None:
            return False
        try:
            async with asyncio.timeout(self._deadline - self._clock()):
                substitute = await fallback()
        except TimeoutError:
            return False
        if substitute is None:
            return False
        self._upstream, self._fallback_reason = substitute, failure.kind.value
        self._loads_until, self._times_not_ready = None, 0
        self._leaves_out_usage = False
        self._tried.clear()
        return True

    # ---- asking

    async def _ask(self) -> Failure | None:
        """Ask the present provider; return why nothing was answered, None when something was."""
        upstream, call = self._upstream, self._answering.call
        asked = Asked(self._user_id, upstream.provider, self._flags)
        try:
            body = upstream.own_answer(call)
            if body is not None:
                self._answer_ourselves(body)
                return None
            learning = upstream.learn(call)
            if learning is not None:
                await self._within_time(learning)
            prepared = upstream.prepare(self._as_understood(call))
            asked = asked._replace(model=prepared.model)
        except AttemptFailed as error:
            return await _once_noted(self._ledger.explained(asked, error.failure), error.failure)
        candidates = upstream.candidates(prepared.model)
        if candidates:
            return await self._ask_agent(asked, prepared, candidates)
        wait_s = self._ledger.admit(asked)
        if wait_s is not None:
            return breaker_open(upstream.provider, wait_s)
        return await self._attempt(upstream, asked, prepared)

    async def _ask_agent(
        self, asked: Asked, prepared: Prepared, candidates: Sequence[Candidate]
    ) -> Failure | None:
        """Ask the best agent of the present provider, as `_ask` does."""
        chosen = self._choose(asked, candidates)
        if chosen is None:
            wait_s = self._ledger.wait_s(asked, candidates)
            return breaker_open(asked.provider, wait_s)
        asked = asked._replace(agent_id=chosen)
        self._ledger.admit(asked)
        failure = await self._attempt(self._upstream.by_agent(chosen), asked, prepared)
        if failure is not None:
            self._tried.append(chosen)
            self._has_other_agent = self._choose(asked, candidates) not in {None, *self._tried}
        return failure

    def _choose(self, asked: Asked, candidates: Sequence[Candidate]) -> str | None:
        # What cannot be sent again is no probe.
        may_probe = isinstance(self._answering.call.body, bytes)
        return self._ledger.choose(asked, candidates, self._tried, may_probe=may_probe)

    def _as_understood(self, call: Call) -> Call:
        """Return the call without what its server is known to refuse."""
        if not call.is_stream:
            return call
        may_ask = self._router.may_ask_for_usage(self._upstream, call.model)
        if may_ask and not self._leaves_out_usage:
            return call
        return msgspec.structs.replace(call, may_add_usage=False)

    async def _within_time(self, learning: Awaitable[None]) -> None:
        """Let the provider find out what it needs to know, within the request's time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline - self._clock()):
                await learning

    def _answer_ourselves(self, body: bytes) -> None:
        """Answer what needs nobody to be asked."""
        self._speaks()
        self._result.began_at = self._clock()
        self._answering.whole(_JSON, body)

    async def _attempt(
        self, upstream: Upstream, asked: Asked, prepared: Prepared
    ) -> Failure | None:
        result, ledger = self._result, self._ledger
        attempt = Attempt(
            upstream,
            self._answering,
            prepared,
            self._deadline,
            self._clock,
            self._ticker,
            lambda: self._count(prepared.model),
            self._timeout_s,
        )
        self._added_usage = prepared.added_usage
        asked_at = self._clock()
        try:
            result.failure = await attempt.run()
        except AttemptFailed as error:
            return await self._failed(asked, error.failure)
        except BaseException:
            # The client has gone, or so have we: nothing that the provider did.
            ledger.left(asked, was_asked=self._was_asked)
            raise
        finally:
            if self._was_asked:
                result.model = prepared.model or result.model
                result.usage = attempt.usage
            result.began_at = attempt.began_at
            if attempt.began_at is not None:
                ledger.attempts.began(asked.provider, attempt.began_at - asked_at)
        if result.failure is None:
            result.note = ledger.answered(asked)
            if self._leaves_out_usage:
                # Only now is it known that the usage was at fault, and not the user's request.
                self._router.note_usage_refused(self._upstream, self._answering.call.model)
        else:
            result.note = ledger.failed(asked, result.failure, attempt.began_at)
        return None

    async def _failed(self, asked: Asked, failure: Failure) -> Failure:
        if self._was_asked:
            return await _once_noted(self._ledger.failed(asked, failure), failure)
        self._ledger.left(asked, was_asked=False)
        return await _once_noted(self._ledger.explained(asked, failure), failure)

    def _count(self, model: str | None) -> None:
        """The present provider is really asked, for this model."""
        self._was_asked = True
        self._result.tale.model = model
        self._result.tale.attempts += 1
        self._speaks()

    def _speaks(self) -> None:
        """What the client hears from now on comes from the present provider."""
        tale, provider, reason = self._result.tale, self._upstream.provider, self._fallback_reason
        if reason is not None and tale.fallback_reason is None:
            tale.provider, tale.fallback_reason = provider, reason
            self._ledger.attempts.fallbacks[reason] += 1


async def _once_noted(note: Note | None, failure: Failure) -> Failure:
    """Return the failure when it stands at the setting: whoever is told of it may look."""
    if note is not None:
        await asyncio.shield(note)
    return failure
