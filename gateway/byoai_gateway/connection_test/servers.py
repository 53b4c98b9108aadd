"""The stages of a test with a server that speaks OpenAI's API: ours, by address, or by tunnel.

One request, `GET /v1/models`, tells of three stages; a server that has no such list is none the
worse for it.
"""

from collections.abc import Sequence
from typing import Final

from byoai_gateway.asked_models import ask_for_models
from byoai_gateway.connection_test.first_token import first_token
from byoai_gateway.connection_test.names import check_offered
from byoai_gateway.connection_test.report import StageFailed, StageSkipped
from byoai_gateway.model_choice import (
    UNNAMED,
    AskFor,
    ModelPreference,
    ServerOffer,
    listed_as,
    preferred,
)
from byoai_gateway.provider_config import DefaultProviderSection
from byoai_gateway.providers.tunnel import TunnelUpstream
from byoai_gateway.router.failures import ABSENCES, AttemptFailed, Failure, FailureKind
from byoai_gateway.router.upstream import ProviderName, Upstream
from byoai_shared.model_skills import Skill

_NO_WAY: Final = ABSENCES | frozenset({
    FailureKind.UNREACHABLE,
    FailureKind.ADDRESS_REFUSED,
    FailureKind.TUNNEL_BUSY,
    FailureKind.CONNECTION_LOST,
    FailureKind.FIRST_TOKEN_TIMEOUT,
})  # fmt: skip
_NOT_LET_IN: Final = frozenset(
    {FailureKind.KEY_REFUSED, FailureKind.CREDITS_SPENT, FailureKind.FORBIDDEN}
)
_NO_SERVER: Final = frozenset({FailureKind.UNREACHABLE, FailureKind.SERVER_ERROR})
_UNTRUSTED: Final = "tunnel_untrusted"
_TEXT: Final = "text-generation"
_NO_TEXT: Final = (
    "this tunnel was registered for a model that writes no text, so it is not asked for an answer"
)
_STANDS_IN: Final = (
    "the model server does not have the model {registered!r}, which the tunnel was registered for; "
    "requests that name no model get {model!r}"
)
_NO_LIST: Final = "{where} gives no list of models, which is no fault; the answer will show"


def _first(names: Sequence[str], registered: str | None) -> str | None:
    """Return the model that a request gets which names none."""
    outcome = preferred(Skill.TEXT, ModelPreference(), ServerOffer(tuple(names), True, registered))
    return outcome.name if isinstance(outcome, AskFor) else None


class _List:
    """A server's list of models, or how it was not to be had."""

    def __init__(self, upstream: Upstream, no_way: frozenset[FailureKind] = _NO_WAY) -> None:
        self._upstream = upstream
        self._no_way = no_way
        self.failure: Failure | None = None
        """Why there is none."""
        self.models: list[str] | None = None

    async def fetch(self) -> None:
        """Ask for it. Raises AttemptFailed when there is no way to the server."""
        try:
            self.models = [it.id for it in await ask_for_models(self._upstream)]
        except AttemptFailed as error:
            if error.failure.kind in self._no_way:
                raise
            # Not the error: it holds this frame, and would keep the probe in memory.
            self.failure = error.failure

    def check_let_in(self) -> None:
        """Raise the AttemptFailed that says that the server does not let us in."""
        if self.failure is not None and self.failure.kind in _NOT_LET_IN:
            raise AttemptFailed(self.failure)


class DefaultProbe:
    """Tries the operator's own provider; a `Probe`. It shows nothing of how it is reached."""

    def __init__(
        self, upstream: Upstream, section: DefaultProviderSection, model: str | None
    ) -> None:
        self._upstream = upstream
        self._section = section
        self._list = _List(upstream)
        self._is_left_to_us = model in UNNAMED
        self.provider = ProviderName.DEFAULT
        self.model = section.model if self._is_left_to_us else model

    async def reachable(self) -> str:
        """See `Probe`."""
        await self._list.fetch()
        return "the default provider answers"

    async def authenticated(self) -> str:
        """See `Probe`."""
        self._list.check_let_in()
        return "the default provider needs no key of yours"

    async def has_model(self) -> str:
        """See `Probe`; where the operator says which models there are, nobody else does."""
        known = self._section.models
        if self.model is None:
            if known:
                sentence = "no model is named, and this service has none of its own; name one"
                raise StageFailed("model_not_found", sentence)
            raise StageSkipped("no model is named, so the default provider takes its own")
        if known:
            return check_offered(self.model, list(known), "the default provider")
        if self._is_left_to_us:
            return "no model is named, so this service's own is asked"
        if self._list.models is None:
            raise StageSkipped(_NO_LIST.format(where="the default provider"))
        return check_offered(self.model, self._list.models, "the default provider")

    async def answers(self) -> str:
        """See `Probe`."""
        await first_token(self._upstream, None if self._is_left_to_us else self.model)
        return "the default provider began an answer"


class AddressProbe:
    """Tries a user's server at an address; a `Probe`."""

    def __init__(self, upstream: Upstream, model: str | None, *, has_key: bool) -> None:
        self._upstream = upstream
        self._has_key = has_key
        self._list = _List(upstream)
        self.provider = ProviderName.SELF_HOSTED
        self.model = None if model in UNNAMED else model

    async def reachable(self) -> str:
        """See `Probe`."""
        await self._list.fetch()
        return "the model server answers"

    async def authenticated(self) -> str:
        """See `Probe`."""
        failure = self._list.failure
        if not self._has_key and failure is not None and failure.kind is FailureKind.KEY_REFUSED:
            raise StageFailed("key_missing", "the model server wants a key; enter it, then test")
        self._list.check_let_in()
        if self._has_key:
            return "the model server lets you in with this key"
        return "the model server lets you in without a key; whoever knows its address may use it"

    async def has_model(self) -> str:
        """See `Probe`; without a name, the model that requests without one get."""
        if self._list.models is None:
            raise StageSkipped(_NO_LIST.format(where="the model server"))
        if self.model is None:
            self.model = _first(self._list.models, None)
        return check_offered(self.model or "", self._list.models, "the model server")

    async def answers(self) -> str:
        """See `Probe`."""
        await first_token(self._upstream, self.model)
        return "the model server began an answer"


class TunnelProbe:
    """Tries a user's tunnel: their agent, and the model server behind it; a `Probe`."""

    def __init__(self, upstream: TunnelUpstream, model: str | None) -> None:
        self._upstream = upstream
        # The agent answers: what cannot be reached then is its model server.
        self._list = _List(upstream, _NO_WAY - _NO_SERVER)
        self._is_untrusted = False
        self.provider = ProviderName.SELF_HOSTED
        self.model = None if model in UNNAMED else model

    async def reachable(self) -> str:
        """See `Probe`; whether it is the user's agent that answered is the next stage's."""
        try:
            self._upstream.release(await self._upstream.acquire())
        except AttemptFailed as error:
            if error.failure.error.code != _UNTRUSTED:
                raise
            self._is_untrusted = True
        return "an agent of this tunnel is online"

    async def authenticated(self) -> str:
        """See `Probe`."""
        if self._is_untrusted:
            sentence = (
                "whoever answered did not prove to be your agent, so nothing was sent; start the "
                "agent again, and let it join anew if that does not help"
            )
            raise StageFailed(_UNTRUSTED, sentence)
        await self._list.fetch()
        failure = self._list.failure
        if failure is not None and failure.kind is FailureKind.KEY_REFUSED:
            sentence = (
                "the agent refuses the tunnel's authentication key; if it was replaced just now, "
                "test again in a minute, or else start the agent again"
            )
            raise StageFailed(failure.error.code, sentence)
        self._list.check_let_in()
        return "your agent proved who it is and accepts the tunnel's authentication key"

    async def has_model(self) -> str:
        """See `Probe`."""
        failure = self._list.failure
        if failure is not None and failure.kind in _NO_SERVER:
            message = failure.error.message.rstrip(". ")
            sentence = f"{message}; start the model server on the agent's host, then test again"
            raise StageFailed(failure.error.code, sentence)
        if self._list.models is None:
            self.model = self.model or self._upstream.route.model
            raise StageSkipped(_NO_LIST.format(where="the model server"))
        if self.model is not None or not self._list.models:
            return check_offered(self.model or "", self._list.models, "the model server")
        registered = self._upstream.route.model
        self.model = _first(self._list.models, registered)
        if listed_as(registered, self._list.models) is not None:
            return check_offered(registered, self._list.models, "the model server")
        return _STANDS_IN.format(registered=registered, model=self.model)

    async def answers(self) -> str:
        """See `Probe`; a model that writes no text is not asked for any."""
        route = self._upstream.route
        if self.model == route.model and route.capabilities and _TEXT not in route.capabilities:
            raise StageSkipped(_NO_TEXT)
        try:
            await first_token(self._upstream, self.model)
        except AttemptFailed as error:
            if error.failure.kind is not FailureKind.KEY_REFUSED:
                raise
            # The agent took ours a moment ago.
            sentence = (
                "the model server refuses the key that your agent has for it; set the right one "
                "in the agent's settings"
            )
            raise StageFailed(error.failure.error.code, sentence) from error
        return "the model server began an answer"
