"""A request under `/v1`, from the user's token to the record of what became of it.

Who asks, may they, what do they ask, who answers: in this order, each step refusing on its own.
The asking itself is the router's.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple, Protocol

from byoai_gateway.clock import Clock
from byoai_gateway.providers.requests import is_loop
from byoai_gateway.refusals import Refusal, method_not_allowed
from byoai_gateway.router.answering import is_anthropics
from byoai_gateway.router.endpoints import Endpoint, find, methods_of
from byoai_gateway.router.keeping import Budget
from byoai_gateway.router.payload import kept_bytes, read_call
from byoai_gateway.router.router import Choice, Result, Router
from byoai_gateway.tally import ANSWERED, BROKEN_OFF, CLIENT_LEFT, FAILED
from byoai_gateway.usage import UsageLog, UsageRecord
from byoai_gateway.user_limits import UserLimits
from byoai_gateway.users import User, UserRefused
from byoai_shared.http1.errors import HttpError, TruncatedMessage
from byoai_shared.http1.head import RequestHead
from byoai_shared.http1.request import ServerRequest


class Authenticator(Protocol):
    """Who asks."""

    async def authenticate(self, authorization: str | None) -> User:
        """Check the main application's token of a request.

        Raises:
            UserRefused: there is none, or it does not hold.
        """
        ...


class Chooser(Protocol):
    """Who answers."""

    async def choose(self, user: User, again: Callable[[], Awaitable[User]]) -> Choice:
        """The user's own choice; `again` checks who asks once more, before a fallback.

        Raises:
            Refusal: what they chose cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class Serving:
    """Everything a request meets."""

    users: Authenticator
    limits: UserLimits
    choices: Chooser
    router: Router
    usage: UsageLog
    budget: Budget
    clock: Clock

    async def serve(self, request: ServerRequest, request_id: str) -> str:
        """Answer one request; return a word for how it ended.

        Raises:
            Refusal: nothing was answered yet; say this to the client.
            HttpError: the answer broke in the middle; the client's connection must be cut.
        """
        if is_loop(request.head.headers):
            raise _loop()
        user = await self._authenticate(request.head)
        endpoint = _endpoint(request.head)
        async with self.limits.request(user.user_id):
            record = Record(request_id, user, endpoint, int(self.clock()), time.monotonic())
            return await self._answer(request, record)

    async def _answer(self, request: ServerRequest, record: "Record") -> str:
        """Answer a request that its user was admitted to make; whatever happens, it is recorded."""
        result = Result()
        outcome = FAILED
        try:
            await self._choose_and_answer(request, record, result)
            outcome = ANSWERED if result.failure is None else result.failure.kind.value
        except Refusal as refusal:
            outcome = refusal.code
            raise
        except HttpError:
            outcome = why_ended(request, BROKEN_OFF)
            raise
        except asyncio.CancelledError:
            outcome = why_ended(request, CLIENT_LEFT)
            raise
        finally:
            self.usage.add(record.of(result, outcome))
        if result.note is not None:
            # Whoever asks next on this connection sees it. Who leaves now has had their answer:
            # it ended as it ended, and there is nothing left to break off.
            with suppress(asyncio.CancelledError):
                await asyncio.shield(result.note)
        return outcome

    async def _choose_and_answer(
        self, request: ServerRequest, record: "Record", result: Result
    ) -> None:
        user = record.user
        choice = await self.choices.choose(user, lambda: self._authenticate(request.head))
        with self.budget.hold(user.user_id, kept_bytes(request, record.endpoint)) as held:
            call = await read_call(request, record.endpoint, record.request_id, held)
            result.model = call.model
            await self.router.answer(request, call, user, choice, result)
            # What is written and not taken is memory, too: it counts as this request's until then.
            await request.drained()

    async def _authenticate(self, head: RequestHead) -> User:
        authorization = _authorization(head)
        try:
            return await self.users.authenticate(
                authorization.decode("latin-1") if authorization is not None else None
            )
        except UserRefused as error:
            raise Refusal(HTTPStatus.UNAUTHORIZED, "invalid_api_key", str(error)) from error


class Record(NamedTuple):
    """A request's record in the making; begun once the request is admitted."""

    request_id: str
    user: User
    endpoint: Endpoint
    started_at: int
    """Unix seconds."""
    began_at: float
    """By the monotonic clock."""

    def of(self, result: Result, outcome: str) -> UsageRecord:
        """Write down how it ended; not a word of what was said."""
        answered_at = result.began_at
        usage = result.usage
        return UsageRecord(
            request_id=self.request_id,
            user_id=self.user.user_id,
            started_at=self.started_at,
            endpoint=self.endpoint.path,
            provider=result.tale.provider.value if result.tale.provider else "",
            model=result.model,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cost=usage.cost if usage else None,
            first_token_ms=_ms(answered_at - self.began_at) if answered_at else None,
            duration_ms=_ms(time.monotonic() - self.began_at),
            attempts=result.tale.attempts,
            fallback_reason=result.tale.fallback_reason,
            outcome=outcome,
        )


def _authorization(head: RequestHead) -> bytes | None:
    """Return what a request says about its user.

    Anthropic's clients send a key in a field of their own, also where they list models; they name
    the version of their API. With both fields, Authorization counts, as it does for every call.
    """
    authorization = head.header(b"authorization")
    if authorization is not None:
        return authorization
    if not is_anthropics(head.target) and head.header(b"anthropic-version") is None:
        return None
    key = head.header(b"x-api-key")
    return None if key is None else b"Bearer " + key


def why_ended(request: ServerRequest, otherwise: str) -> str:
    """Say why a request was broken off: for what became of its own body, or otherwise."""
    error = request.body.error
    if error is None:
        return otherwise
    return CLIENT_LEFT if isinstance(error, TruncatedMessage) else error.code


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _loop() -> Refusal:
    return Refusal(
        HTTPStatus.LOOP_DETECTED,
        "loop_detected",
        "this request came from a gateway like this one, which would pass it on without end; "
        "let selfHostedUrl name the model server itself",
    )


def _endpoint(head: RequestHead) -> Endpoint:
    endpoint = find(head.method, head.target)
    if endpoint is not None:
        return endpoint
    if allowed := methods_of(head.target):
        raise method_not_allowed(allowed)
    raise Refusal(HTTPStatus.NOT_FOUND, "not_found", "there is nothing at this path under /v1")
