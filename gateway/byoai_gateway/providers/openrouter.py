"""OpenRouter: asked with the user's own key, and told which application asks.

A model that it offers is passed on; no name, or one of the operator's own, means the model that
the user prefers (see `model_choice`). Without a preference OpenRouter takes the account's default.
Nothing is taken out of answers: `usage.cost` is the user's money.

It refuses what OpenRouter does not have before a byte is sent: uploads of forms (it takes sound
inside JSON), scores, and the showing of a single model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final, Self, TypeVar, assert_never
from urllib.parse import urljoin, urlsplit

import msgspec

from byoai_gateway.model_choice import (
    AskFor,
    LeaveOut,
    ModelPreference,
    NotOffered,
    asked_by,
    choose,
)
from byoai_gateway.provider_config import OpenRouterSection, RouterSection
from byoai_gateway.providers.openrouter_answers import MalformedAnswer
from byoai_gateway.providers.openrouter_names import OpenRouterOffer
from byoai_gateway.providers.origin import operators_address
from byoai_gateway.providers.outbound import Outbound, Unreachable
from byoai_gateway.providers.requests import passed_headers, prepared
from byoai_gateway.router.agent_choice import Candidate
from byoai_gateway.router.classify import (
    endpoint_not_found,
    failure_of_error,
    failure_of_status,
    key_quoted,
    malformed,
    model_not_found,
    unreachable,
)
from byoai_gateway.router.endpoints import BodyKind
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.upstream import Call, Prepared, ProviderName, Timers
from byoai_shared.api_errors import api_error
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.head import Headers, RequestHead
from byoai_shared.model_skills import Skill
from byoai_shared.secret import Secret

MODELS_OF_USER: Final = "/models/user"
MODELS_OF_ALL: Final = "/models"
CALL_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_PATHS: Final = {
    "/chat/completions": "/chat/completions",
    "/completions": "/completions",
    "/embeddings": "/embeddings",
    "/responses": "/responses",
    "/messages": "/messages",
    "/rerank": "/rerank",
    "/audio/speech": "/audio/speech",
    "/models": MODELS_OF_USER,
}
"""Our paths and OpenRouter's. Its list of all models is public: it would take any key for good."""
_PROVIDER: Final = ProviderName.OPENROUTER

_Value = TypeVar("_Value")


class OpenRouter:
    """The service, as the settings say; asked on behalf of any user.

    `public_url` names the application when the settings name no other address for it.

    Raises:
        ConfigError: the address in the settings is none.
    """

    def __init__(
        self,
        settings: OpenRouterSection,
        router: RouterSection,
        public_url: str,
        outbound: Outbound,
    ) -> None:
        self.outbound = outbound
        self.address = operators_address(settings.base_url)
        self.timers = Timers(settings.first_token_s, router.silence_s, router.whole_answer_s)
        self.passed = passed_headers(router.request_headers)
        title = settings.title.encode()
        self._attribution: Headers = (
            (b"http-referer", (settings.referer or public_url).encode()),
            (b"x-openrouter-title", title),
            (b"x-title", title),  # the older name of the same
        )

    def upstream(
        self,
        key: Secret,
        preference: ModelPreference | None = None,
        offer: OpenRouterOffer | None = None,
    ) -> "OpenRouterUpstream":
        """Return the provider for one user; `offer` is what is known of the key's models."""
        return OpenRouterUpstream(
            self, key, preference or ModelPreference(), offer or OpenRouterOffer()
        )

    def headers(self, key: Secret | None) -> Headers:
        """What every request to it carries."""
        if key is None:
            return self._attribution
        return ((b"authorization", b"Bearer " + key.reveal().encode()), *self._attribution)

    async def ask(
        self, path: str, key: Secret | None, read: Callable[[bytes], _Value], limit_bytes: int
    ) -> _Value:
        """Get something small of OpenRouter's own, below its base address, as `read` reads it.

        Raises:
            AttemptFailed: it cannot be had; the failure says why, as for any request.
        """
        accepts = ((b"accept", b"application/json"), (b"accept-encoding", b"identity"))
        head = RequestHead("GET", self.address.path + path, (*self.headers(key), *accepts))
        try:
            status, headers, body = await self.outbound.fetch(
                self.address.origin, head, limit_bytes=limit_bytes, timeout_s=CALL_S
            )
        except Unreachable as error:
            raise AttemptFailed(unreachable(_PROVIDER, str(error))) from error
        if not 200 <= status < 300:
            raise AttemptFailed(_told_apart(failure_of_status(_PROVIDER, status, headers, body)))
        try:
            return read(body)
        except MalformedAnswer as error:
            raise AttemptFailed(malformed(_PROVIDER, str(error))) from error

    def next_page(self, path: str, link: str | None) -> str | None:
        """Where the page after that of `path` is; None if `link` leads anywhere but to lists."""
        origin = self.address.origin
        authority = origin.authority.decode()
        try:
            here = f"{origin.scheme}://{authority}{self.address.path}{path}"
            there = urlsplit(urljoin(here, link or here))
        except ValueError:
            return None
        target = f"{there.path}?{there.query}"
        is_ours = (there.scheme, there.netloc.lower()) == (origin.scheme, authority)
        is_list = there.path.startswith(self.address.path + MODELS_OF_ALL)
        if link is None or not (is_ours and is_list and target.isascii() and target.isprintable()):
            return None
        return target.removeprefix(self.address.path).replace(" ", "%20")


@dataclass(frozen=True, slots=True)
class OpenRouterUpstream:
    """OpenRouter with one user's key; an `Upstream`."""

    service: OpenRouter
    key: Secret
    preference: ModelPreference
    offer: OpenRouterOffer

    @property
    def provider(self) -> ProviderName:
        """See `Upstream`."""
        return _PROVIDER

    @property
    def server(self) -> str:
        """See `Upstream`."""
        return _PROVIDER.value

    @property
    def timers(self) -> Timers:
        """See `Upstream`."""
        return self.service.timers

    def own_answer(self, call: Call) -> bytes | None:
        """See `Upstream`."""
        del call
        return None

    def learn(self, call: Call) -> None:
        """See `Upstream`; a request never waits for the list of models."""

    def prepare(self, call: Call) -> Prepared:
        """See `Upstream`."""
        path = _PATHS.get(call.endpoint.path)
        if path is None:
            raise AttemptFailed(endpoint_not_found(_PROVIDER, call.endpoint.path))
        address = self.service.address
        _, mark, query = call.head.target.partition("?")
        own: Headers = (
            (b"host", address.origin.authority),
            (b"x-request-id", call.request_id.encode()),
            *self.service.headers(self.key),
        )
        model = self._model(call)
        # A name that means nothing there would be refused; without one the default is taken.
        without = () if model is not None else ("model",)
        target = f"{address.path}{path}{mark}{query}"
        passed = self.service.passed
        return prepared(call, target=target, own=own, model=model, without=without, passed=passed)

    def candidates(self, model: str | None) -> tuple[Candidate, ...]:
        """See `Upstream`; it has no agents."""
        del model
        return ()

    def by_agent(self, agent_id: str) -> Self:
        """See `Upstream`; it has no agents."""
        del agent_id
        return self

    def take_fresh(self) -> ClientConnection | None:
        """See `Upstream`."""
        return self.service.outbound.take_fresh(self.service.address.origin, None)

    async def acquire(self) -> ClientConnection:
        """See `Upstream`."""
        try:
            return await self.service.outbound.acquire(self.service.address.origin, None)
        except Unreachable as error:
            raise AttemptFailed(unreachable(_PROVIDER, str(error))) from error

    def release(self, connection: ClientConnection) -> None:
        """See `Upstream`."""
        self.service.outbound.release(self.service.address.origin, None, connection)

    def explain(self, status: int, headers: Headers, body: bytes) -> Failure:
        """See `Upstream`."""
        if self.key.is_in(body):
            return key_quoted(_PROVIDER)
        return _told_apart(failure_of_status(_PROVIDER, status, headers, body))

    def explain_error(self, error: msgspec.Raw) -> Failure:
        """See `Upstream`."""
        if self.key.is_in(error):
            return key_quoted(_PROVIDER)
        return _told_apart(failure_of_error(_PROVIDER, error))

    def _model(self, call: Call) -> str | None:
        if call.endpoint.body is BodyKind.NONE:
            return None
        asked = asked_by(call.endpoint, call.model)
        # Its list is of the models that write text.
        offer = self.offer if asked.skill is Skill.TEXT else OpenRouterOffer(takes_any=True)
        outcome = choose(asked, self.preference, offer)
        match outcome:
            case AskFor(name):
                return name
            case LeaveOut():
                return None
            case NotOffered(name, offered):
                raise AttemptFailed(model_not_found(_PROVIDER, name, offered))
            case _:
                assert_never(outcome)


def _told_apart(failure: Failure) -> Failure:
    if failure.kind is not FailureKind.CREDITS_SPENT or failure.retry_after_s is None:
        return failure
    # A 402 that says when to come back means requests under way, not an empty account: with
    # them done there is credit again, and nothing is wrong with the key.
    kind = FailureKind.RATE_LIMITED
    message = "OpenRouter holds your credit for requests under way; ask again when they are done"
    error = api_error(HTTPStatus.TOO_MANY_REQUESTS, kind.value, message)
    return replace(failure, kind=kind, error=error)
