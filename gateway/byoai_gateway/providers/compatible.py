"""Providers that speak OpenAI's API at an address: the operator's own, and users' servers by URL.

They differ in who is trusted. The operator's address is in the settings and may be inside; its
key is the operator's, so users reach only the models and calls that the settings name. A user's
address goes through the guard at every dial; its key is the user's, and so is what it serves.
"""

from collections.abc import Awaitable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final, Protocol, Self
from urllib.parse import quote, unquote

import msgspec

from byoai_gateway.model_choice import UNNAMED, ModelPreference, ServerOffer
from byoai_gateway.provider_config import DefaultProviderSection, RouterSection
from byoai_gateway.providers.address_guard import AddressGuard, AddressRefused
from byoai_gateway.providers.field_table import (
    USERS_OWN,
    FieldPolicy,
    dropped_fields,
    of_default,
)
from byoai_gateway.providers.model_lists import card_body, list_body
from byoai_gateway.providers.origin import BaseAddress, operators_address
from byoai_gateway.providers.outbound import Outbound, Unreachable, UnreachableReason
from byoai_gateway.providers.requests import PASSED, passed_headers, prepared
from byoai_gateway.providers.server_models import is_list_needed, server_model
from byoai_gateway.refusals import Refusal
from byoai_gateway.router.agent_choice import Candidate
from byoai_gateway.router.classify import (
    address_refused,
    endpoint_not_found,
    failure_of_error,
    failure_of_status,
    key_quoted,
    model_not_found,
    unreachable,
    upload_too_large,
    upload_without_length,
)
from byoai_gateway.router.endpoints import MODEL, MODELS, PREFIX, BodyKind
from byoai_gateway.router.failures import AttemptFailed, Failure
from byoai_gateway.router.payload import REPLAYABLE_UPLOAD_BYTES
from byoai_gateway.router.upstream import Call, Prepared, ProviderName, Timers, Upstream
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.framing import Framing, Open
from byoai_shared.http1.head import Headers
from byoai_shared.http1.incoming import IncomingBody
from byoai_shared.logs import get_logger
from byoai_shared.secret import Secret

_MESSAGES: Final = "/messages"
_MODEL_FIELD: Final = frozenset({"model"})

log = get_logger("gateway")


class Models(Protocol):
    """Which model a call means at a provider."""

    def __call__(self, call: Call, named: str | None) -> str | None:
        """Return the provider's name for it; None: what stands in the call, if anything.

        Raises:
            AttemptFailed: there is no such model, or not for users.
        """
        ...


class Lists(Protocol):
    """Lists of models that servers gave, kept by a name."""

    def offer(self, name: tuple[str, ...]) -> ServerOffer:
        """What is known of a server's models, without asking it."""
        ...

    async def of(self, name: tuple[str, ...], upstream: Upstream) -> object:
        """Ask a server for its list, unless it is known.

        Raises:
            AttemptFailed: it cannot be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Manners:
    """How requests to a provider differ from what users send."""

    models: Models
    names: Collection[str] = ()
    """All that users may ask for, where that is not for the provider to say."""
    has_messages: bool = True
    keeps_query: bool = False
    is_rebuilt: bool = False
    fields: FieldPolicy = USERS_OWN
    """Which fields of a body go there."""
    passed: frozenset[bytes] = PASSED
    """Names of the headers that it gets of a user's request."""
    lists: "UserModels | None" = None
    """Of a user's server: the list of its models, and what the user prefers of it."""


@dataclass(frozen=True, slots=True)
class UserModels:
    """Which model of a user's server a call means; a `Models`."""

    preference: ModelPreference
    lists: Lists
    name: tuple[str, ...]
    """What the server's list is kept by."""

    def __call__(self, call: Call, named: str | None) -> str | None:
        """See `Models`."""
        return server_model(call, named, self.preference, self.lists.offer(self.name))

    async def learn(self, upstream: Upstream) -> None:
        """Ask the server for its list; without one the request goes without a model."""
        with suppress(AttemptFailed):
            await self.lists.of(self.name, upstream)


@dataclass(frozen=True, slots=True)
class CompatibleUpstream:
    """An OpenAI-compatible server at an address; an `Upstream`."""

    provider: ProviderName
    timers: Timers
    _address: BaseAddress
    _key: Secret | None
    _guard: AddressGuard | None
    _outbound: Outbound
    _manners: _Manners

    @property
    def server(self) -> str:
        """See `Upstream`."""
        return self._address.origin.authority.decode() + self._address.path

    def own_answer(self, call: Call) -> bytes | None:
        """See `Upstream`."""
        names, endpoint = self._manners.names, call.endpoint
        if not names or (endpoint is not MODELS and endpoint is not MODEL):
            return None
        if endpoint is MODELS:
            return list_body(names)
        name = _model_in_path(self.provider, call)
        if name not in names:
            raise AttemptFailed(model_not_found(self.provider, name, tuple(names)))
        return card_body(name)

    def learn(self, call: Call) -> Awaitable[None] | None:
        """See `Upstream`: only the list may tell what an unnamed model means."""
        lists = self._manners.lists
        if lists is None or not is_list_needed(call, lists.preference):
            return None
        return lists.learn(self)

    def prepare(self, call: Call) -> Prepared:
        """See `Upstream`."""
        manners = self._manners
        if call.endpoint.path.startswith(_MESSAGES) and not manners.has_messages:
            raise AttemptFailed(endpoint_not_found(self.provider, PREFIX + call.endpoint.path))
        if manners.names and isinstance(call.body, IncomingBody):
            raise AttemptFailed(self._explain_unread(call.body.framing))
        named = _model_in_path(self.provider, call) if call.endpoint is MODEL else call.model
        model = manners.models(call, named)
        without = dropped_fields(self.provider, call, manners.fields)
        # A name that means nothing to a user's server would be refused.
        unnamed = _MODEL_FIELD if model is None and manners.lists is not None else frozenset[str]()
        own: Headers = (
            (b"host", self._address.origin.authority),
            (b"x-request-id", call.request_id.encode()),
        )
        if self._key is not None:
            own = (*own, (b"authorization", b"Bearer " + self._key.reveal().encode()))
        return prepared(
            call,
            target=self._target(call, model or named),
            own=own,
            model=model,
            without=without | unnamed,
            is_rebuilt=manners.is_rebuilt,
            passed=manners.passed,
        )

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
        return self._outbound.take_fresh(self._address.origin, self._guard)

    async def acquire(self) -> ClientConnection:
        """See `Upstream`."""
        try:
            return await self._outbound.acquire(self._address.origin, self._guard)
        except Unreachable as error:
            raise AttemptFailed(self._explain_unreachable(error)) from error

    def release(self, connection: ClientConnection) -> None:
        """See `Upstream`."""
        self._outbound.release(self._address.origin, self._guard, connection)

    def explain(self, status: int, headers: Headers, body: bytes) -> Failure:
        """See `Upstream`."""
        if self._quotes_the_operators_key(body):
            return key_quoted(self.provider)
        return failure_of_status(self.provider, status, headers, body)

    def explain_error(self, error: msgspec.Raw) -> Failure:
        """See `Upstream`."""
        if self._quotes_the_operators_key(error):
            return key_quoted(self.provider)
        return failure_of_error(self.provider, error)

    def _target(self, call: Call, model: str | None) -> str:
        path = call.endpoint.path
        if call.endpoint is MODEL and model is not None:
            path = f"{MODELS.path}/{quote(model, safe='/:@')}"
        query = call.head.target.partition("?")[2] if self._manners.keeps_query else ""
        return self._address.path + path + (f"?{query}" if query else "")

    def _quotes_the_operators_key(self, said: bytes | msgspec.Raw) -> bool:
        key = self._key
        if key is None or self.provider is not ProviderName.DEFAULT:
            return False
        return key.is_in(bytes(said))

    def _explain_unread(self, framing: Framing) -> Failure:
        """Say why an upload does not go where only some models may be asked for.

        Its beginning would not do: a form may name another model at its end.
        """
        if isinstance(framing, Open):
            return upload_without_length(self.provider)
        return upload_too_large(self.provider, REPLAYABLE_UPLOAD_BYTES)

    def _explain_unreachable(self, error: Unreachable) -> Failure:
        if self.provider is ProviderName.DEFAULT:
            # Where the operator's server is, is for the operator to know.
            log.warning(
                "provider.unreachable",
                provider=self.provider.value,
                setting="default_provider.base_url",
                reason=str(error),
                next="the request fails, or somebody is asked once more",
            )
            return unreachable(self.provider)
        if error.reason is UnreachableReason.ADDRESS_REFUSED:
            return address_refused(self.provider, str(error))
        return unreachable(self.provider, str(error))


class DefaultProvider:
    """The operator's own provider, if there is one.

    Raises ConfigError when it is made with an address that is none.
    """

    def __init__(
        self, section: DefaultProviderSection, router: RouterSection, outbound: Outbound
    ) -> None:
        self._section = section
        self._address = None if section.base_url is None else operators_address(section.base_url)
        self._timers = Timers(section.first_token_s, router.silence_s, router.whole_answer_s)
        self._outbound = outbound
        self._passed = passed_headers(router.request_headers)
        # Nothing in them is a user's: the same two serve everybody.
        self._as_chosen = self._made(is_fallback=False)
        self._as_fallback = self._made(is_fallback=True)

    @property
    def is_configured(self) -> bool:
        """Whether there is one."""
        return self._address is not None

    def admits(self, plan: str | None) -> bool:
        """Whether users of this plan may use it."""
        return not self._section.plans or plan in self._section.plans

    def upstream(self, *, is_fallback: bool) -> CompatibleUpstream:
        """Return it, ready to be asked; only when it is configured.

        As a fallback it takes a model that it does not know as a wish for its own.
        """
        upstream = self._as_fallback if is_fallback else self._as_chosen
        assert upstream is not None  # noqa: S101 -- see above
        return upstream

    def _made(self, *, is_fallback: bool) -> CompatibleUpstream | None:
        section = self._section
        if self._address is None:
            return None
        manners = _Manners(
            partial(_default_model, section=section, is_fallback=is_fallback),
            names=section.models,
            has_messages=section.anthropic_messages,
            # Where users may have some models only, no reader of a body may find another.
            is_rebuilt=bool(section.models),
            fields=of_default(is_limited=bool(section.models), is_fallback=is_fallback),
            passed=self._passed,
        )
        return CompatibleUpstream(
            ProviderName.DEFAULT,
            self._timers,
            self._address,
            section.key,
            None,
            self._outbound,
            manners,
        )


def self_hosted_by_url(  # noqa: PLR0917 -- what a user's server is reached and asked by
    url: str,
    key: Secret | None,
    guard: AddressGuard,
    outbound: Outbound,
    timers: Timers,
    passed: frozenset[bytes] = PASSED,
    *,
    models: UserModels | None = None,
) -> CompatibleUpstream:
    """Make the provider of a user who gave the address of their model server.

    Raises:
        Refusal: the address, taken when other rules held perhaps, may not be used.
    """
    try:
        address = guard.check_url(url)
    except AddressRefused as error:
        raise Refusal(
            HTTPStatus.FORBIDDEN, "address_refused", str(error), param="selfHostedUrl"
        ) from error
    return CompatibleUpstream(
        ProviderName.SELF_HOSTED,
        timers,
        BaseAddress(address.origin, address.path or PREFIX),
        key,
        guard,
        outbound,
        _Manners(models or _as_named, keeps_query=True, passed=passed, lists=models),
    )


def _as_named(call: Call, named: str | None) -> str | None:
    del call
    return named


def _default_model(
    call: Call, named: str | None, *, section: DefaultProviderSection, is_fallback: bool
) -> str | None:
    known = section.models
    if call.endpoint is MODELS:
        return None
    if call.endpoint.body is BodyKind.MULTIPART:
        # Forms are not rewritten: a model must be known by the name that stands there.
        if known and (named is None or known.get(named) != named):
            raise AttemptFailed(model_not_found(ProviderName.DEFAULT, named, tuple(known)))
        return named
    is_wish = is_fallback and named not in known and section.model is not None
    is_left_to_us = named in UNNAMED or is_wish
    wanted = section.model if is_left_to_us else named
    if known and (wanted is None if is_left_to_us else wanted not in known):
        raise AttemptFailed(model_not_found(ProviderName.DEFAULT, named, tuple(known)))
    return None if wanted is None else known.get(wanted, wanted)


def _model_in_path(provider: ProviderName, call: Call) -> str:
    """Return the model that a path names. Raises AttemptFailed when it leads elsewhere."""
    path = call.head.target.partition("?")[0]
    name = unquote(path.removeprefix(f"{PREFIX}{MODELS.path}/"))
    leads_elsewhere = any(part in {"", ".", ".."} for part in name.split("/"))
    if leads_elsewhere or "\\" in name or not name.isprintable():
        raise AttemptFailed(model_not_found(provider, name))
    return name
