"""Which models a user may ask for, whoever their provider is.

What is known is answered at once; who must be asked is asked for a few seconds at most. What
cannot be had is said, never made up: what stands in place of a list is explained in its note.
The names behind the operator's map are the operator's, and are not shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from math import ceil
from typing import Annotated, Final, assert_never

from msgspec import Meta

from byoai_gateway.asked_models import Listed
from byoai_gateway.choosing import Choices, SettingsUsed, list_name
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.model_choice import (
    AskFor,
    LeaveOut,
    ModelPreference,
    NotOffered,
    ServerOffer,
    listed_as,
    preferred,
)
from byoai_gateway.preferences.preferences import Preferences
from byoai_gateway.providers.model_lists import ListedModel
from byoai_gateway.providers.openrouter import OpenRouterUpstream
from byoai_gateway.providers.openrouter_account import ModelList
from byoai_gateway.providers.openrouter_answers import OfferedModel
from byoai_gateway.providers.tunnel import TunnelUpstream
from byoai_gateway.refusals import Refusal
from byoai_gateway.reported_models import reports
from byoai_gateway.router.decision import attention_for
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.upstream import ProviderName, Upstream
from byoai_gateway.status import Shown
from byoai_gateway.users import User
from byoai_shared.model_skills import Skill
from byoai_shared.protocol.control import Status, UpstreamHealth

_RETRY_S: Final = 5
_LONGEST_RETRY_S: Final = 60
_NO_LISTS: Final = frozenset({FailureKind.REJECTED, FailureKind.MODEL_NOT_FOUND})
"""How a server fails that does not have the call at all."""
_TIMEOUTS: Final = frozenset({FailureKind.FIRST_TOKEN_TIMEOUT, FailureKind.PROVIDER_TIMEOUT})

_PUBLIC: Final = (
    "this is OpenRouter's list for everybody, because the list for your key cannot be had now; "
    "your settings there may forbid some of these"
)
_OFFLINE: Final = "only the names in your settings are known: {why}"
_NONE_REPORTED: Final = (
    "your agent reports no models, so only the names in your settings are known; check that the "
    "model server runs"
)
_DOWN: Final = "your agent is connected, but its model server does not answer; look whether it runs"
_UNLISTED: Final = "this server does not list its models; name the one you want in your requests"
_PREFERRED_UNLISTED: Final = (
    "your preferred model is not in this list; choose one of the list in the settings"
)
_NONE_LISTED: Final = "this server lists no models; load one there"
_ACCOUNTS_DEFAULT: Final = (
    "you prefer no model, so OpenRouter takes your account's default for requests that name none"
)
_PROVIDERS_DEFAULT: Final = "requests that name no model get the provider's own default"
_DEFAULT_UNLISTED: Final = (
    "requests that name no model get this service's own, which is not in this list"
)
_NO_DEFAULT: Final = "this service has no model for requests that name none; name one of these"
_DEFAULT_ONLY: Final = (
    "the list cannot be had now, so this is only the model that is asked when a request names none"
)


class OfferedModelShown(Shown, frozen=True):
    """A model that may be asked for; null is what is not known of it."""

    id: Annotated[str, Meta(description="what to write as `model` in a request")]
    name: str | None = None
    context_length: Annotated[int | None, Meta(description="in tokens")] = None
    input_modalities: tuple[str, ...] | None = None
    output_modalities: tuple[str, ...] | None = None
    prompt_price: Annotated[
        str | None, Meta(description="US dollars per token, as a decimal number")
    ] = None
    completion_price: str | None = None
    supported_parameters: tuple[str, ...] | None = None
    expires_on: str | None = None


class ModelsOffered(Shown, frozen=True):
    """The models that a provider offers to the user."""

    provider: ProviderName
    models: tuple[OfferedModelShown, ...]
    is_public_list: Annotated[
        bool | None, Meta(description="whether it is the provider's list for everybody")
    ] = None
    fetched_at: Annotated[
        int | None, Meta(description="when a provider was asked for it; Unix seconds")
    ] = None
    default_model: Annotated[
        str | None,
        Meta(
            description="the one of `models` that a text request gets which names none; null if "
            "it is none of them, and then `note` says why"
        ),
    ] = None
    note: Annotated[str | None, Meta(description="what is to be known of the list")] = None


@dataclass(frozen=True, slots=True)
class _Look:
    """Whose models are looked at, and for whom."""

    user_id: str
    saved: Preferences
    chosen: Preferences
    """The same with the provider that is looked at."""
    upstream: Upstream


class OfferedModels:
    """Finds the models of users' providers."""

    def __init__(self, control: ControlPlane, choices: Choices) -> None:
        self._preferences = control.preferences
        self._default = control.config.default_provider
        self._choices = choices

    async def of(self, user: User, provider: ProviderName | None = None) -> ModelsOffered:
        """The models of the user's provider, or of another one that they might choose.

        Raises:
            Refusal: the provider cannot be used as the settings are, or cannot be asked now.
        """
        saved = await self._preferences.of(user.user_id)
        chosen = saved if provider is None else replace(saved, provider=provider)
        look = _Look(user.user_id, saved, chosen, await self._choices.upstream(user, chosen))
        try:
            return await self._offered(look)
        except AttemptFailed as error:
            raise await self._refused(look, error.failure) from error

    async def _offered(self, look: _Look) -> ModelsOffered:
        match look.upstream:
            case OpenRouterUpstream(key=key, preference=preference):
                found = await self._choices.ways.accounts.models(key)
                return _of_openrouter(found, preference.name)
            case TunnelUpstream() as upstream:
                return await _of_tunnel(upstream)
            case _:
                return await self._of_compatible(look)

    async def _of_compatible(self, look: _Look) -> ModelsOffered:
        is_default = look.upstream.provider is ProviderName.DEFAULT
        if is_default and self._default.models:
            return self._of_default(_named(tuple(self._default.models)))
        try:
            listed = await self._choices.ways.lists.of(_name(look), look.upstream)
        except AttemptFailed as error:
            if is_default and self._default.model is not None:
                return self._of_default(_named((self._default.model,)), note=_DEFAULT_ONLY)
            if error.failure.kind not in _NO_LISTS:
                raise
            return _unlisted(look)
        if is_default:
            return self._of_default(_listed(listed.models), listed)
        offer = self._choices.ways.lists.offer(_name(look))
        model, note = _answers_unnamed(look.chosen.preferred_model, offer)
        return ModelsOffered(
            provider=look.upstream.provider,
            models=_listed(listed.models),
            fetched_at=int(listed.fetched_at),
            default_model=model,
            note=note,
        )

    def _of_default(
        self,
        models: tuple[OfferedModelShown, ...],
        listed: Listed | None = None,
        note: str | None = None,
    ) -> ModelsOffered:
        own = self._default.model
        is_listed = own in {it.id for it in models}
        missing = _DEFAULT_UNLISTED
        if own is None:
            missing = _NO_DEFAULT if self._default.models else _PROVIDERS_DEFAULT
        return ModelsOffered(
            provider=ProviderName.DEFAULT,
            models=models,
            fetched_at=None if listed is None else int(listed.fetched_at),
            default_model=own if is_listed else None,
            note=note if is_listed else missing,
        )

    async def _refused(self, look: _Look, failure: Failure) -> Refusal:
        """Say what a failure means to who looks; note it if a setting is to blame."""
        provider = look.upstream.provider
        attention = attention_for(provider, failure)
        # No model was asked for: none of the user's choice can be the one that is not found.
        if attention is not None and failure.kind is not FailureKind.MODEL_NOT_FOUND:
            used = SettingsUsed(self._preferences, look.user_id, look.saved)
            await used.noticed(*attention, None)
            setting, code = attention
            return Refusal(HTTPStatus.FORBIDDEN, code, failure.error.message, param=setting)
        return Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "models_unavailable",
            f"the models cannot be listed now: {_why(failure)}",
            retry_after_s=_retry_s(failure),
        )


def _note_of(statuses: Sequence[Status], *, has_models: bool) -> str | None:
    if not has_models:
        return _NONE_REPORTED
    return _DOWN if all(it.health is UpstreamHealth.DOWN for it in statuses) else None


async def _of_tunnel(upstream: TunnelUpstream) -> ModelsOffered:
    statuses = reports(upstream.statuses(upstream.route.tunnel_id))
    known = _note_of(statuses, has_models=bool(upstream.offer.names))
    if not statuses:
        known = _OFFLINE.format(why=(await upstream.absence()).message)
    offer, preference = upstream.offer, upstream.preference.name
    model, note = _answers_unnamed(preference, offer)
    names = sorted(offer.names) or dict.fromkeys(filter(None, (preference, upstream.route.model)))
    return ModelsOffered(
        provider=ProviderName.SELF_HOSTED,
        models=_named(tuple(names)),
        default_model=model,
        note=known or note,
    )


def _answers_unnamed(preference: str | None, offer: ServerOffer) -> tuple[str | None, str | None]:
    """Return the listed model that a request without a name gets; or why there is none."""
    outcome = preferred(Skill.TEXT, ModelPreference(preference), offer)
    match outcome:
        case AskFor(name) if not offer.names:
            return name, None
        case AskFor(name):
            listed = listed_as(name, offer.names)
            return listed, None if listed is not None else _PREFERRED_UNLISTED
        case NotOffered():
            return None, _PREFERRED_UNLISTED
        case LeaveOut():
            return None, _NONE_LISTED
        case _:
            assert_never(outcome)


def _unlisted(look: _Look) -> ModelsOffered:
    """Show what is preferred of a server that does not list its models."""
    name = look.chosen.preferred_model
    return ModelsOffered(
        provider=look.upstream.provider,
        models=() if name is None else _named((name,)),
        default_model=name,
        note=_UNLISTED,
    )


def _of_openrouter(found: ModelList, preference: str | None) -> ModelsOffered:
    model = listed_as(preference, found.names)
    note = (
        None
        if model is not None
        else (_ACCOUNTS_DEFAULT if preference is None else _PREFERRED_UNLISTED)
    )
    return ModelsOffered(
        provider=ProviderName.OPENROUTER,
        models=tuple(_offered(model) for model in found.models),
        is_public_list=found.is_public,
        fetched_at=int(found.fetched_at),
        default_model=model,
        note="; ".join(filter(None, (_PUBLIC if found.is_public else None, note))) or None,
    )


def _offered(model: OfferedModel) -> OfferedModelShown:
    return OfferedModelShown(
        id=model.id,
        name=model.name,
        context_length=model.context_length,
        input_modalities=model.input_modalities or None,
        output_modalities=model.output_modalities or None,
        prompt_price=model.prompt_price,
        completion_price=model.completion_price,
        supported_parameters=model.supported_parameters or None,
        expires_on=model.expires_on,
    )


def _named(names: Sequence[str]) -> tuple[OfferedModelShown, ...]:
    return tuple(OfferedModelShown(id=name) for name in names)


def _listed(models: Sequence[ListedModel]) -> tuple[OfferedModelShown, ...]:
    return tuple(OfferedModelShown(id=it.id, context_length=it.context_length) for it in models)


def _name(look: _Look) -> tuple[str, ...]:
    """What a list is kept by."""
    if look.upstream.provider is ProviderName.DEFAULT:
        return (ProviderName.DEFAULT,)
    return list_name(look.user_id, look.saved)


def _why(failure: Failure) -> str:
    if failure.kind in _TIMEOUTS:
        return "no answer came in time; try again in a moment"
    return failure.error.message


def _retry_s(failure: Failure) -> int:
    wait_s = _RETRY_S if failure.retry_after_s is None else ceil(failure.retry_after_s)
    return max(1, min(wait_s, _LONGEST_RETRY_S))
